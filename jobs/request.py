"""The effective generation request: what a worker runs, with every default resolved and echoed.

The gateway builds it from the public request (service/schemas.py); it is frozen, JSON, and refuses
unknown fields, so that nothing is silently ignored on either side.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jobs.controls import (
    MAX_SEED,
    Adapter,
    AppearanceControl,
    Control,
    CorrespondenceControl,
    Fraction,
    Frozen,
    IdentityControl,
    InvertedReference,
    Keypoint,
    Pose,
    Reference,
    SampledReference,
    Span,
    SpatialControl,
    StoredImage,
    Weight,
)

__all__ = [
    "MAX_SEED",
    "Adapter",
    "AppearanceControl",
    "Control",
    "CorrespondenceControl",
    "Fraction",
    "GenerationRequest",
    "IdentityControl",
    "InvertedReference",
    "Keypoint",
    "OutputOptions",
    "Pose",
    "Reference",
    "SampledReference",
    "Span",
    "SpatialControl",
    "StoredImage",
    "Task",
]

Task = Literal["text_to_image", "spatial", "drag", "appearance", "identity"]


class OutputOptions(Frozen):
    """What to store beside the images."""

    format: Literal["png", "webp", "jpeg"] = "png"
    embed_parameters: bool = Field(True, description="JSON of the parameters inside the PNG")
    readouts: bool = Field(True, description="the heads' readouts at the last step, as images")
    evolution_steps: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), max_length=20, description="steps whose predicted clean image and readouts are stored"
    )


class GenerationRequest(Frozen):
    """One generation, complete: `num_images` independent images with seeds seed, seed + 1, …"""

    task: Task
    model: str
    prompt: str
    negative_prompt: str
    num_images: int = Field(ge=1)
    num_candidates: int | None = Field(
        None, ge=1, description="pictures that are computed and ranked; null: num_images"
    )
    keep: Literal["best", "all"] = Field(
        "best", description="of more candidates: the num_images best, or all of them"
    )
    seed: int = Field(ge=0, le=MAX_SEED)
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    num_inference_steps: int = Field(ge=1, le=1000)
    guidance_scale: float = Field(ge=1, le=50, allow_inf_nan=False)
    eta: Fraction
    form: Literal["one_pass", "two_pass"]
    branch: Literal["unconditional", "conditional", "both"]
    update_rule: Literal["elementwise", "rms", "unnormalized", "timestep_rescaled"]
    controls: tuple[Control, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    adapter_gradient: Literal["constant", "full"] = Field(
        "constant", description="whether the readout gradient goes through ControlNets, too"
    )
    reference: Reference | None = Field(None, description="what relative controls compare with")
    start: Literal["seed", "reference"] = Field(
        "seed", description="whose noise the picture begins with"
    )
    weight_sweep: tuple[Weight, ...] | None = Field(
        None, description="the k-th picture has the first seed and its weights times the k-th"
    )
    output: OutputOptions = OutputOptions()

    @property
    def num_samples(self) -> int:
        """Pictures that are computed, with seeds seed, seed + 1, …"""
        return max(self.num_images, self.num_candidates or 0)
