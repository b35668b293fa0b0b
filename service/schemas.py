"""What clients send; what is optional here is resolved in resolve.py."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from jobs.request import MAX_SEED
from service.keypoints import OpenPoseKeypoints
from service.strict import Strict

MAX_CONTROLS = 8
MAX_WEIGHT = 10.0
MAX_STEPS = 1000
MAX_EVOLUTION_STEPS = 20
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


class SpatialControl(Strict):
    """The picture should have this pose, depth or edge map: what `head` reads in the image."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["image"]}, {"required": ["keypoints"]}]}
    )
    type: Literal["spatial"]
    head: str = Field(
        min_length=1, max_length=129, description="a head of GET /v1/heads: `pose` or `family/pose`"
    )
    image: ImageSource | None = None
    keypoints: OpenPoseKeypoints | None = Field(
        None, description="instead of an image, for heads whose `accepts` lists keypoints"
    )
    fit: Literal["cover", "contain", "stretch"] = Field(
        "cover", description="how a control of another aspect ratio is fitted to the picture"
    )
    weight: float | None = Field(
        None, ge=0, le=MAX_WEIGHT, description="strength; 0 is off, 1 strong; null: the default"
    )
    span: Span | None = Field(
        None, description="[start, end) of the steps it acts on, as fractions; null: the default"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.image is None) == (self.keypoints is None):
            raise ValueError("give exactly one of image and keypoints")
        if self.span is not None and self.span[0] >= self.span[1]:
            raise ValueError(f"span must be [start, end] with start < end; got {list(self.span)}")
        return self


class OutputOptions(Strict):
    """What to store beside the images."""

    format: Literal["png", "webp", "jpeg"] = "png"
    embed_parameters: bool = Field(True, description="the parameters as JSON inside a PNG")
    readouts: bool = Field(
        True, description="what the heads read in the finished picture, as images"
    )
    evolution_steps: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=MAX_STEPS)], ...],
        Field(strict=False, max_length=MAX_EVOLUTION_STEPS),
    ] = Field((), description="steps whose predicted clean picture and readouts are stored")


_EXAMPLES: list[Any] = [
    {"prompt": "a person in a red shirt, on grass"},
    {
        "prompt": "a person in a red shirt, on grass",
        "controls": [
            {
                "type": "spatial",
                "head": "pose",
                "image": {"upload_id": "upl_0123456789abcdef0123456789abcdef"},
                "weight": 0.5,
                "span": [0.0, 0.5],
            }
        ],
        "num_images": 4,
        "seed": 7,
    },
]


class GenerationParameters(Strict):
    """A generation. Left out or null: the default, by request > task > head > model.

    The answer echoes it with every field filled in; sent again, the echo gives the same pictures.
    """

    model_config = ConfigDict(json_schema_extra={"examples": _EXAMPLES})
    prompt: Text = Field(description="what to draw; may be empty only when there is a control")
    negative_prompt: Text | None = Field(None, description="what to keep away from")
    model: str | None = Field(None, max_length=64, description="a model of GET /v1/models")
    task: Literal["text_to_image", "spatial"] | None = Field(
        None, description="preset of defaults; null: `spatial` when there are controls"
    )
    num_images: int = Field(1, ge=1, le=64, description="the k-th has seed `seed` + k")
    num_candidates: int | None = Field(
        None,
        ge=1,
        le=64,
        description="pictures that are computed and ranked by Σ weight · distance of their "
        "controls; null: `num_images`",
    )
    keep: Literal["best", "all"] = Field(
        "best", description="of more candidates: the `num_images` best, or all, with their ranks"
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="null: drawn, and echoed")
    height: int | None = Field(None, ge=8, le=8192, description="px")
    width: int | None = Field(None, ge=8, le=8192, description="px")
    num_inference_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(
        None, ge=1, le=50, description="classifier-free guidance; 1 is off"
    )
    eta: Fraction | None = Field(None, description="DDIM stochasticity; 1 for spatial control")
    form: Literal["one_pass", "two_pass"] | None = Field(
        None, description="gradient in the noise prediction, or latents updated before it"
    )
    branch: Literal["unconditional", "conditional", "both"] | None = Field(
        None, description="the U-Net pass whose features the heads read"
    )
    update_rule: Literal["elementwise", "rms", "unnormalized", "timestep_rescaled"] | None = Field(
        None, description="how the gradient is scaled, section 8.2"
    )
    controls: Annotated[
        tuple[SpatialControl, ...], Field(strict=False, max_length=MAX_CONTROLS)
    ] = Field((), description="what the picture should follow, beside the prompt")
    output: OutputOptions = OutputOptions()
    webhook_url: str | None = Field(
        None, max_length=2000, description="https URL to POST to when it is over, see docs/api.md"
    )
