"""What clients send; what is optional here is resolved in resolve.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from jobs.request import MAX_SEED, Task
from service.controls import (
    MAX_WEIGHT,
    Adapter,
    AppearanceControl,
    BoxPairs,
    Control,
    CorrespondenceControl,
    Drags,
    Fraction,
    IdentityControl,
    ImageSource,
    InitImage,
    Reference,
    Region,
    SpatialControl,
    Text,
    Weight,
)
from service.strict import Strict

__all__ = [
    "MAX_ADAPTERS",
    "MAX_CONTROLS",
    "MAX_EVOLUTION_STEPS",
    "MAX_STEPS",
    "MAX_WEIGHT",
    "Adapter",
    "Animation",
    "AppearanceControl",
    "CorrespondenceControl",
    "GenerationParameters",
    "IdentityControl",
    "ImageSource",
    "InitImage",
    "OutputOptions",
    "Reference",
    "Region",
    "SpatialControl",
    "Text",
]

MAX_CONTROLS = 8
MAX_ADAPTERS = 4
MAX_STEPS = 1000
MAX_EVOLUTION_STEPS = 20
MAX_SWEEP = 64


class Animation(Strict):
    """A drag on its way: frame k of n has its points moved by k / (n - 1), all of one noise."""

    frames: int = Field(8, ge=2, le=MAX_SWEEP, description="at most the model's `num_images`")
    format: Literal["webp", "gif", "mp4"] = Field(
        "webp", description="mp4 needs the worker's `video` extra"
    )
    fps: float = Field(8.0, ge=1, le=50, description="frames a second")
    keep_frames: bool = Field(
        True, description="the frames are the generation's images; else the last one alone is"
    )


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
    animation: Animation | None = Field(None, description="`drag`: frames as one file")


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
    {
        "task": "drag",
        "prompt": "a person in a red shirt, on grass",
        "reference": {"upload_id": "upl_0123456789abcdef0123456789abcdef"},
        "points": [{"from": {"x": 0.3, "y": 0.4}, "to": {"x": 0.3, "y": 0.2}}],
    },
    {
        "task": "appearance",
        "prompt": "a person in a red shirt, on grass",
        "reference": {"prompt": "a person in a red shirt, on grass", "seed": 7},
        "seed": 8,
        "weight_sweep": [0.0, 0.5, 1.0],
    },
    {
        "prompt": "a person in a red shirt, on grass",
        "adapters": [
            {
                "type": "controlnet",
                "model": "pose-controlnet",
                "image": {"upload_id": "upl_0123456789abcdef0123456789abcdef"},
                "scale": 1.0,
            }
        ],
        "seed": 7,
    },
]


class GenerationParameters(Strict):
    """A generation. Left out or null: the default, by request > head > task > model.

    The answer echoes it with every field filled in; sent again, the echo gives the same pictures.
    """

    model_config = ConfigDict(json_schema_extra={"examples": _EXAMPLES})
    prompt: Text = Field(description="what to draw; may be empty only when something else says it")
    negative_prompt: Text | None = Field(None, description="what to keep away from")
    model: str | None = Field(None, max_length=64, description="a model of GET /v1/models")
    task: Task | None = Field(
        None,
        description="preset of defaults and controls, table 1 of the paper; null: by what is given",
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
    controls: Annotated[tuple[Control, ...], Field(strict=False, max_length=MAX_CONTROLS)] = Field(
        (), description="what the picture should follow, beside the prompt"
    )
    adapters: Annotated[tuple[Adapter, ...], Field(strict=False, max_length=MAX_ADAPTERS)] = Field(
        (), description="ControlNets and T2I-Adapters, which act beside the controls"
    )
    adapter_gradient: Literal["constant", "full"] | None = Field(
        None,
        description="whether the readout gradient goes through ControlNets, which takes longer",
    )
    reference: Reference | None = Field(
        None, description="what correspondence, appearance and identity controls compare with"
    )
    start: Literal["seed", "reference"] | None = Field(
        None, description="whose noise the picture begins with; null: the reference's for `drag`"
    )
    init_image: InitImage | None = Field(
        None, description="image to image: what is noised to begin with, in the place of noise"
    )
    strength: float | None = Field(
        None,
        gt=0,
        le=1,
        description="of `init_image`: the part of the steps that is run, the last ones; 1 keeps "
        "least; null: 0.8, or 1 with a mask",
    )
    mask: ImageSource | None = Field(
        None,
        description="of `init_image`, or else of `reference`, of its size: white is repainted, "
        "black keeps its pixels, grey mixes both; null: everything is repainted",
    )
    points: Drags | None = Field(None, description="`drag`: a correspondence control of these")
    boxes: BoxPairs | None = Field(
        None, description="`identity`: faces to compare; null: they are found"
    )
    region: Region | None = Field(
        None, description="`drag`, `appearance`: where the reference's appearance is kept"
    )
    unit: Literal["fraction", "px"] = Field(
        "fraction", description="of every x and y of the request: 0 … 1, or pixels of the picture"
    )
    weight_sweep: (
        Annotated[tuple[Weight, ...], Field(strict=False, min_length=1, max_length=MAX_SWEEP)]
        | None
    ) = Field(
        None,
        description="one picture each, all of one seed: factors of the weights of the controls "
        "that compare with a reference",
    )
    output: OutputOptions = OutputOptions()
    webhook_url: str | None = Field(
        None, max_length=2000, description="https URL to POST to when it is over, see docs/api.md"
    )
