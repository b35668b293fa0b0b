"""Controls and reference as clients send them; the request's `unit` says what x and y are."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from jobs.request import MAX_SEED
from service.keypoints import OpenPoseKeypoints
from service.strict import Strict

MAX_WEIGHT = 10.0
MAX_SCALE = 10.0
MAX_POINTS = 64
MAX_BOXES = 16
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Controls other than tab and line breaks, and halves of surrogate pairs."""


def _printable(text: str) -> str:
    if found := _UNPRINTABLE.search(text):
        code = ord(found[0])
        raise ValueError(f"control character U+{code:04X} at position {found.start()}; remove it")
    return text


Text = Annotated[str, AfterValidator(_printable)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Span = Annotated[tuple[Fraction, Fraction], Field(strict=False)]
HeadName = Annotated[str, Field(min_length=1, max_length=129)]
Weight = Annotated[float, Field(ge=0, le=MAX_WEIGHT)]
Fit = Literal["cover", "contain", "stretch"]


class ImageSource(Strict):
    """A control image: an earlier upload, or a small one in the request itself."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["upload_id"]}, {"required": ["base64"]}]}
    )
    upload_id: str | None = Field(None, max_length=64, description="`id` of POST /v1/uploads")
    base64: str | None = Field(
        None,
        description="PNG, JPEG or WebP file in base64, or a data URL with it; becomes an upload",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.upload_id is None) == (self.base64 is None):
            raise ValueError("give exactly one of upload_id and base64")
        return self


class _Timed(Strict):
    """What every control has."""

    weight: Weight | None = Field(
        None, description="strength; 0 is off, 1 strong; null: the default"
    )
    span: Span | None = Field(
        None, description="[start, end) of the steps it acts on, as fractions; null: the default"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.span is not None and self.span[0] >= self.span[1]:
            raise ValueError(f"span must be [start, end] with start < end; got {list(self.span)}")
        return self


class SpatialControl(_Timed):
    """The picture should have this pose, depth or edge map: what `head` reads in the image."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["image"]}, {"required": ["keypoints"]}]}
    )
    type: Literal["spatial"]
    head: HeadName = Field(description="a head of GET /v1/heads: `pose` or `family/pose`")
    image: ImageSource | None = None
    keypoints: OpenPoseKeypoints | None = Field(
        None, description="instead of an image, for heads whose `accepts` lists keypoints"
    )
    fit: Fit = Field(
        "cover", description="how a control of another aspect ratio is fitted to the picture"
    )

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.image is None) == (self.keypoints is None):
            raise ValueError("give exactly one of image and keypoints")
        return self


class Point(Strict):
    """A place in the picture: x to the right, y down."""

    x: float
    y: float


class Drag(Strict):
    """What is at `from` in the reference should come to `to`."""

    model_config = ConfigDict(populate_by_name=True)
    source: Point = Field(alias="from")
    destination: Point = Field(alias="to")


class Box(Strict):
    """A part of the picture: x0 ≤ x < x1, y0 ≤ y < y1."""

    x0: float
    y0: float
    x1: float
    y1: float


class BoxPair(Strict):
    """A face in the reference, and where it is to be in the picture."""

    reference: Box
    picture: Box | None = Field(None, description="null: the same place")


class Region(Strict):
    """Boxes, or everything but them."""

    boxes: (
        Annotated[tuple[Box, ...], Field(strict=False, min_length=1, max_length=MAX_BOXES)] | None
    ) = Field(None, description="null: the faces in the picture that identity controls compare")
    outside: bool = Field(False, description="everything but the boxes")


Drags = Annotated[tuple[Drag, ...], Field(strict=False, min_length=1, max_length=MAX_POINTS)]
BoxPairs = Annotated[tuple[BoxPair, ...], Field(strict=False, min_length=1, max_length=MAX_BOXES)]
_HEAD = "of GET /v1/heads; null: the model's head of this kind"


class CorrespondenceControl(_Timed):
    """Content moves from points of the reference to other points: dragging."""

    type: Literal["correspondence"]
    head: HeadName | None = Field(None, description=_HEAD)
    points: Drags


class AppearanceControl(_Timed):
    """Colours, textures and who is there as in the reference, everywhere or in a region."""

    type: Literal["appearance"]
    head: HeadName | None = Field(None, description=_HEAD)
    towards: Literal["reference", "original"] = Field(
        "reference",
        description="original: the picture that seed and prompt would give without guidance",
    )
    region: Region | None = Field(None, description="null: the whole picture")


class IdentityControl(_Timed):
    """The person in boxes of the reference is to be the one in boxes of the picture."""

    type: Literal["identity"]
    head: HeadName | None = Field(None, description=_HEAD)
    boxes: BoxPairs | None = Field(
        None,
        description="null: the largest face of the reference, and of the picture that seed and "
        "prompt give without guidance; the result says which",
    )


Control = Annotated[
    SpatialControl | CorrespondenceControl | AppearanceControl | IdentityControl,
    Field(discriminator="type"),
]


class Adapter(Strict):
    """A ControlNet or a T2I-Adapter beside the controls: what it is shown, how strongly and when.

    Adapters add to what the model computes; controls then correct the picture (section 7).
    """

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["image"]}, {"required": ["keypoints"]}]}
    )
    type: Literal["controlnet", "t2i_adapter"] | None = Field(
        None, description="null: what the adapter is"
    )
    model: HeadName = Field(description="an adapter of GET /v1/adapters, or `family/name`")
    image: ImageSource | None = None
    keypoints: OpenPoseKeypoints | None = Field(
        None, description="instead of an image, for adapters whose `accepts` lists keypoints"
    )
    fit: Fit = Field(
        "cover", description="how an image of another aspect ratio is fitted to the picture"
    )
    scale: Annotated[float, Field(ge=0, le=MAX_SCALE)] | None = Field(
        None, description="strength; 0 is off, 1 as it was trained; null: the adapter's default"
    )
    span: Span | None = Field(
        None, description="[start, end) of the steps it acts on, as fractions; null: the default"
    )

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if (self.image is None) == (self.keypoints is None):
            raise ValueError("give exactly one of image and keypoints")
        return self

    @field_validator("span")
    @classmethod
    def _ordered(cls, span: tuple[float, float] | None) -> tuple[float, float] | None:
        if span is not None and span[0] >= span[1]:
            raise ValueError(f"span must be [start, end] with start < end; got {list(span)}")
        return span


_SOURCES = ("upload_id", "base64", "generation", "seed")
_ONE_SOURCE: list[Any] = [{"required": [source]} for source in (*_SOURCES[:3], "seed")]


class InitImage(Strict):
    """A picture to start from: an image or an earlier generation."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _ONE_SOURCE[:3]})
    upload_id: str | None = Field(None, max_length=64, description="`id` of POST /v1/uploads")
    base64: str | None = Field(None, description="an image file; becomes an upload")
    generation: str | None = Field(
        None, max_length=64, description="`id` of a generation that has succeeded"
    )
    index: int = Field(0, ge=0, le=63, description="which picture of that generation")
    fit: Fit = Field(
        "cover", description="how an image of another aspect ratio is fitted to the picture"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(getattr(self, name) is not None for name in _SOURCES[:3]) != 1:
            raise ValueError("give exactly one of upload_id, base64 and generation")
        if self.generation is None and self.index:
            raise ValueError("index goes with a generation alone")
        return self


class Reference(Strict):
    """What relative controls compare with: an image, an earlier generation, or prompt and seed."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _ONE_SOURCE})
    upload_id: str | None = Field(None, max_length=64, description="`id` of POST /v1/uploads")
    base64: str | None = Field(None, description="an image file; becomes an upload")
    generation: str | None = Field(
        None, max_length=64, description="`id` of a generation that has succeeded"
    )
    index: int = Field(0, ge=0, le=63, description="which picture of that generation")
    prompt: Text | None = Field(
        None, description="of the seed; or what the image shows (null: the request's prompt)"
    )
    negative_prompt: Text | None = Field(None, description="null: the request's")
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    guidance_scale: float | None = Field(
        None, ge=1, le=50, description="the reference's own, with a seed; null: the model's"
    )
    eta: Fraction | None = Field(None, description="the reference's own, with a seed; null: 0")
    fit: Fit = Field(
        "cover", description="how an image of another aspect ratio is fitted to the picture"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of upload_id, base64, generation, and prompt with seed"
            )
        if self.seed is not None and self.prompt is None:
            raise ValueError("a seed needs the prompt that goes with it")
        for name in ("guidance_scale", "eta"):
            if self.seed is None and getattr(self, name) is not None:
                raise ValueError(f"{name} goes with prompt and seed alone")
        if self.generation is None and self.index:
            raise ValueError("index goes with a generation alone")
        return self
