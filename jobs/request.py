"""The effective generation request: what a worker runs, with every default resolved and echoed.

The gateway builds it from the public request (service/schemas.py); it is frozen, JSON, and refuses
unknown fields, so that nothing is silently ignored on either side.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Span = tuple[Fraction, Fraction]
MAX_SEED = 2**53 - 1
"""Largest seed: what survives a round trip through JavaScript's numbers."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredImage(_Frozen):
    """A validated control image in object storage: decoded once by the gateway, saved as PNG."""

    upload_id: str
    key: str = Field(description="object key")
    sha256: str = Field(description="of the stored bytes; the worker checks it")
    width: int = Field(gt=0)
    height: int = Field(gt=0)


class Keypoint(_Frozen):
    """A key point in normalised image coordinates: (0, 0) top left, (1, 1) bottom right."""

    x: float = Field(allow_inf_nan=False)
    y: float = Field(allow_inf_nan=False)
    confidence: Fraction = 1.0


class Pose(_Frozen):
    """Key points of people, 18 each in OpenPose's COCO order; null where a point is not known."""

    people: tuple[Annotated[tuple[Keypoint | None, ...], Field(min_length=18, max_length=18)], ...]
    aspect_ratio: float = Field(
        gt=0, allow_inf_nan=False, description="width ÷ height of the canvas the points lie on"
    )


class SpatialControl(_Frozen):
    """A spatially aligned control, section 4.2: a head's readout should look like this image."""

    type: Literal["spatial"] = "spatial"
    head: str = Field(description="head id, family/name")
    image: StoredImage | None = None
    pose: Pose | None = None
    fit: Literal["cover", "contain", "stretch"] = Field(
        "cover", description="how a control of another aspect is fitted to the picture"
    )
    weight: float = Field(ge=0, le=10, allow_inf_nan=False)
    span: Span

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.image is None) == (self.pose is None):
            raise ValueError("exactly one of image and pose must be given")
        return self


class OutputOptions(_Frozen):
    """What to store beside the images."""

    format: Literal["png", "webp", "jpeg"] = "png"
    embed_parameters: bool = Field(True, description="JSON of the parameters inside the PNG")
    readouts: bool = Field(True, description="the heads' readouts at the last step, as images")
    evolution_steps: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), max_length=20, description="steps whose predicted clean image and readouts are stored"
    )


class GenerationRequest(_Frozen):
    """One generation, complete: `num_images` independent images with seeds seed, seed + 1, …"""

    task: Literal["text_to_image", "spatial"]
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
    controls: tuple[SpatialControl, ...] = ()
    output: OutputOptions = OutputOptions()

    @property
    def num_samples(self) -> int:
        """Pictures that are computed, with seeds seed, seed + 1, …"""
        return max(self.num_images, self.num_candidates or 0)
