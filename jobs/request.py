"""The effective generation request: what a worker runs, with every default resolved and echoed.

The gateway builds it from the public request (service/schemas.py); it is frozen, JSON, and refuses
unknown fields, so that nothing is silently ignored on either side.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jobs.controls import (
    MAX_SEED,
    Adapter,
    AppearanceControl,
    Control,
    CorrespondenceControl,
    Fraction,
    Frozen,
    IdentityControl,
    InitImage,
    InvertedReference,
    Keypoint,
    Pose,
    Reference,
    SampledReference,
    Span,
    SpatialControl,
    StoredImage,
    Weight,
    first_step,
)

__all__ = [
    "MAX_SEED",
    "Adapter",
    "Animation",
    "AppearanceControl",
    "Control",
    "CorrespondenceControl",
    "Fraction",
    "GenerationRequest",
    "IdentityControl",
    "InitImage",
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


class Animation(Frozen):
    """A drag on its way: frame k of n has its points moved by k / (n - 1); all have one noise.

    The linspace of the paper's supplement. The first frame moves nothing; a pair of points acts
    from the frame on in which it has left its cell of the latents.
    """

    frames: int = Field(ge=2, le=64)
    format: Literal["webp", "gif", "mp4"] = "webp"
    fps: float = Field(8.0, ge=1, le=50, allow_inf_nan=False)
    keep_frames: bool = Field(True, description="frames as images too; else the last one alone")

    def way(self, index: int) -> float:
        """How far the points of a frame have moved, 0 to 1."""
        return index / (self.frames - 1)


class OutputOptions(Frozen):
    """What to store beside the images."""

    format: Literal["png", "webp", "jpeg"] = "png"
    embed_parameters: bool = Field(True, description="JSON of the parameters inside the PNG")
    readouts: bool = Field(True, description="the heads' readouts at the last step, as images")
    evolution_steps: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), max_length=20, description="steps whose predicted clean image and readouts are stored"
    )
    animation: Animation | None = Field(None, description="`num_images` are its frames")


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
    init_image: InitImage | None = Field(None, description="what is noised to begin with")
    mask: StoredImage | None = Field(
        None,
        description="of the init image, or else of the reference: white is repainted; null: "
        "everything",
    )
    weight_sweep: tuple[Weight, ...] | None = Field(
        None, description="the k-th picture has the first seed and its weights times the k-th"
    )
    output: OutputOptions = OutputOptions()

    @model_validator(mode="before")
    @classmethod
    def _lift_mask(cls, stored: Any) -> Any:
        """Requests that were stored before masks went with references have it in the init image."""
        init = stored.get("init_image") if isinstance(stored, dict) else None
        if isinstance(init, dict) and "mask" in init:
            others = {name: value for name, value in init.items() if name != "mask"}
            return stored | {"init_image": others, "mask": init["mask"]}
        return stored

    @property
    def first_step(self) -> int:
        """The first step that is run; steps, spans and noises are counted from the schedule's."""
        if self.init_image is None:
            return 0
        return first_step(self.init_image.strength, self.num_inference_steps)

    @property
    def num_steps(self) -> int:
        """Steps that are run."""
        return self.num_inference_steps - self.first_step

    @property
    def num_samples(self) -> int:
        """Pictures that are computed."""
        return max(self.num_images, self.num_candidates or 0)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of those pictures: seed, seed + 1, …; a sweep and an animation have one for all."""
        if self.weight_sweep is not None or self.output.animation is not None:
            return (self.seed,) * self.num_samples
        return tuple(range(self.seed, self.seed + self.num_samples))
