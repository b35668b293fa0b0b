"""What a picture is to follow, resolved: typed controls, and the reference that some compare with.

Coordinates are fractions of the picture: (0, 0) top left, (1, 1) bottom right.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Span = tuple[Fraction, Fraction]
MAX_SEED = 2**53 - 1
"""Largest seed: what survives a round trip through JavaScript's numbers."""


class Frozen(BaseModel):
    """Immutable, and refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredImage(Frozen):
    """A validated image in object storage: decoded once by the gateway, saved as PNG."""

    upload_id: str
    key: str = Field(description="object key")
    sha256: str = Field(description="of the stored bytes; the worker checks it")
    width: int = Field(gt=0)
    height: int = Field(gt=0)


class Keypoint(Frozen):
    """A key point in normalised image coordinates: (0, 0) top left, (1, 1) bottom right."""

    x: float = Field(allow_inf_nan=False)
    y: float = Field(allow_inf_nan=False)
    confidence: Fraction = 1.0


class Pose(Frozen):
    """Key points of people, 18 each in OpenPose's COCO order; null where a point is not known."""

    people: tuple[Annotated[tuple[Keypoint | None, ...], Field(min_length=18, max_length=18)], ...]
    aspect_ratio: float = Field(
        gt=0, allow_inf_nan=False, description="width ÷ height of the canvas the points lie on"
    )


class SpatialControl(Frozen):
    """A spatially aligned control, section 4.2: a head's readout should look like this image."""

    type: Literal["spatial"] = "spatial"
    head: str = Field(description="head id, family/name")
    image: StoredImage | None = None
    pose: Pose | None = None
    fit: Literal["cover", "contain", "stretch"] = Field(
        "cover", description="how a control of another aspect is fitted to the picture"
    )
    weight: Weight
    span: Span

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.image is None) == (self.pose is None):
            raise ValueError("exactly one of image and pose must be given")
        return self


class Point(Frozen):
    """A place in the picture."""

    x: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
    y: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class Drag(Frozen):
    """What is at `source` in the reference should come to `destination`."""

    source: Point
    destination: Point


class Box(Frozen):
    """A part of the picture: x0 ≤ x < x1, y0 ≤ y < y1."""

    x0: Fraction
    y0: Fraction
    x1: Fraction
    y1: Fraction

    @model_validator(mode="after")
    def _has_area(self) -> Self:
        if self.x0 >= self.x1 or self.y0 >= self.y1:
            raise ValueError("a box needs x0 < x1 and y0 < y1")
        return self


class BoxPair(Frozen):
    """A face in the reference, and where it is to be in the picture."""

    reference: Box
    picture: Box


class Region(Frozen):
    """Boxes, or everything but them."""

    boxes: Annotated[tuple[Box, ...], Field(min_length=1)] | None = Field(
        description="null: the faces in the picture that the identity controls compare"
    )
    outside: bool = False


class CorrespondenceControl(Frozen):
    """Section 4.3, dragging: content moves from points of the reference to others."""

    type: Literal["correspondence"] = "correspondence"
    head: str
    points: Annotated[tuple[Drag, ...], Field(min_length=1)]
    weight: Weight
    span: Span


class AppearanceControl(Frozen):
    """Section 4.3: the picture's appearance is that of the reference, everywhere or in a region."""

    type: Literal["appearance"] = "appearance"
    head: str
    towards: Literal["reference", "original"] = Field(
        "reference", description="original: the same seed and prompt without guidance (section 9.1)"
    )
    region: Region | None = None
    weight: Weight
    span: Span


class IdentityControl(Frozen):
    """Section 9.1: who is in the picture's boxes is who is in the reference's."""

    type: Literal["identity"] = "identity"
    head: str
    boxes: Annotated[tuple[BoxPair, ...], Field(min_length=1)] | None = Field(
        description="null: the largest face of the reference and of the picture, to be found"
    )
    weight: Weight
    span: Span


def _type_of(control: Any) -> str:
    """The tag of a control; one that names none is spatial, as all were once."""
    if isinstance(control, dict):
        return str(control.get("type", "spatial"))
    return str(getattr(control, "type", ""))


Control = Annotated[
    Annotated[SpatialControl, Tag("spatial")]
    | Annotated[CorrespondenceControl, Tag("correspondence")]
    | Annotated[AppearanceControl, Tag("appearance")]
    | Annotated[IdentityControl, Tag("identity")],
    Discriminator(_type_of),
]


class Adapter(Frozen):
    """A ControlNet or T2I-Adapter that sees an image (section 7)."""

    type: Literal["controlnet", "t2i_adapter"]
    model: str = Field(description="adapter id, family/name")
    image: StoredImage | None = None
    pose: Pose | None = None
    fit: Literal["cover", "contain", "stretch"] = "cover"
    scale: float = Field(ge=0, le=10, allow_inf_nan=False)
    span: Span

    @model_validator(mode="after")
    def _one_image(self) -> Self:
        if (self.image is None) == (self.pose is None):
            raise ValueError("exactly one of image and pose must be given")
        return self


class Origin(Frozen):
    """The picture of an earlier generation that a reference is."""

    generation: str
    index: int = Field(ge=0)


class SampledReference(Frozen):
    """A reference that is sampled without controls from a prompt and a seed."""

    type: Literal["sampled"] = "sampled"
    prompt: str
    negative_prompt: str
    seed: int = Field(ge=0, le=MAX_SEED)
    guidance_scale: float = Field(ge=1, le=50, allow_inf_nan=False)
    eta: Fraction
    origin: Origin | None = None


class InvertedReference(Frozen):
    """A picture whose first noise is found by DDIM inversion, sampled again without guidance."""

    type: Literal["inverted"] = "inverted"
    image: StoredImage
    prompt: str = Field(description="what the picture shows; may be empty")
    negative_prompt: str
    fit: Literal["cover", "contain", "stretch"] = "cover"
    origin: Origin | None = None


def first_step(strength: float, num_inference_steps: int) -> int:
    """The first step that is run with an init image, counted as diffusers does; all: none is."""
    return num_inference_steps - min(int(num_inference_steps * strength), num_inference_steps)


class InitImage(Frozen):
    """A picture that sampling starts from (SDEdit); with the request's mask, where that is white.

    diffusers' image-to-image and four-channel inpainting pipelines: the picture is noised to the
    timestep of `strength`, and the noisier steps are not run.
    """

    image: StoredImage
    fit: Literal["cover", "contain", "stretch"] = "cover"
    strength: float = Field(gt=0, le=1, allow_inf_nan=False, description="1: from noise, all steps")
    origin: Origin | None = None


Reference = Annotated[SampledReference | InvertedReference, Field(discriminator="type")]
