"""What the gateway answers; views.py makes it from records and manifests."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from jobs.record import FailureCode, JobState
from service.controls import Box
from service.schemas import GenerationParameters
from service.strict import Strict


class UploadView(Strict):
    """A control image as it is kept."""

    id: str
    width: int = Field(description="px, after EXIF rotation and scaling down")
    height: int
    sha256: str = Field(description="of the stored PNG")
    size_bytes: int = Field(description="of the stored PNG")
    original_width: int = Field(description="px, by the file's header")
    original_height: int


class FailureView(Strict):
    """Why a generation failed."""

    code: FailureCode
    message: str


class ControlDistanceView(Strict):
    """How well a picture obeys one control: smaller is better."""

    control: int = Field(description="position in `request.controls`")
    head: str
    distance: float | None = Field(description="at the last step; null: not evaluated")
    unit: str = Field(
        description="rms: of readout - target, in readout units; cosine: of a control that "
        "compares with a reference, 1 - similarity"
    )


class ReadoutView(Strict):
    """What a head reads, as an image."""

    head: str
    url: str


class EvolutionFrameView(Strict):
    """The predicted clean picture at one step."""

    step: int
    url: str
    readouts: list[ReadoutView]


class PreviewView(EvolutionFrameView):
    """A frame that can be seen already; URLs are presigned, and end with the attempt."""

    index: int = Field(description="of the picture, among all that are computed")


class CurrentDistanceView(ControlDistanceView):
    """How far the pictures were from obeying a control when guidance last looked."""

    distance: float = Field(description="mean over the pictures")
    step: int = Field(description="at which it was measured")


class ProgressView(Strict):
    """How far the running attempt is."""

    step: int
    total_steps: int
    stage: str
    distances: list[CurrentDistanceView] = Field(
        description="of controls that have acted, by position in the request"
    )
    previews: list[PreviewView] = Field(description="frames of `output.evolution_steps` so far")


class FaceView(Strict):
    """A face that an identity control compared, in fractions of the picture."""

    control: int = Field(description="position in `request.controls`")
    reference: Box
    picture: Box


class ImageView(Strict):
    """One finished picture; URLs are presigned and expire."""

    index: int
    seed: int
    url: str
    sha256: str
    width: int
    height: int
    distances: list[ControlDistanceView]
    score: float | None = Field(description="Σ weight · distance of the controls; null: none")
    rank: int | None = Field(description="by score, 0 is best; null: no score")
    boxes: list[FaceView] = Field(description="of identity controls, given or found")
    readouts: list[ReadoutView]
    evolution: list[EvolutionFrameView]


class AnimationView(Strict):
    """The frames of a drag as one file; the URL is presigned and expires."""

    url: str
    format: str
    frames: int
    fps: float


class ResultView(Strict):
    """What a generation that succeeded has made."""

    images: list[ImageView]
    animation: AnimationView | None = Field(description="where `output.animation` asked for one")
    manifest_url: str = Field(description="JSON: versions, hashes, device and timings")
    timings: dict[str, float] = Field(
        description="seconds per stage; reference_forwards: the model's passes for the reference, "
        "0 when it was known already"
    )
    reference_psnr_db: float | None = Field(
        description="how well an inverted reference is reconstructed"
    )
    warnings: list[str] = Field(description="what to know of the result")
    urls_expire_in_s: int


class GenerationSummary(Strict):
    """A generation in a list."""

    id: str
    state: JobState
    attempt: int = Field(description="0 before the first one starts")
    model: str
    prompt: str
    num_images: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    failure: FailureView | None


class GenerationView(Strict):
    """A generation."""

    id: str
    state: JobState
    attempt: int = Field(description="0 before the first one starts")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: ProgressView | None = Field(description="while running")
    failure: FailureView | None = Field(description="when failed")
    result: ResultView | None = Field(description="when succeeded")
    request: GenerationParameters = Field(description="with every default filled in")


class GenerationList(Strict):
    """One page, newest first."""

    items: list[GenerationSummary]
    next_cursor: str | None = Field(description="`cursor` of the next page; null: the last one")


class ParameterView(Strict):
    """What one request field may be for a model; what does not apply is null."""

    default: Any = Field(None, description="null: no default, or drawn")
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None
    max_length: int | None = Field(None, description="characters of a text, items of a list")
    choices: list[str] | None = None
    description: str | None = None


class HeadView(Strict):
    """A readout head."""

    id: str = Field(description="`family/name`; the bare name works for any model of the family")
    name: str
    title: str
    description: str
    kind: str
    signal: str
    family: str
    models: list[str] = Field(description="installed models it fits")
    accepts: list[Literal["image", "keypoints"]]
    defaults: dict[str, Any] = Field(description="`weight` and `span`; null: the model's")
    metrics: dict[str, Any]
    licence: str
    source: str


class HeadList(Strict):
    """Heads by id."""

    items: list[HeadView]


class AdapterView(Strict):
    """A ControlNet or a T2I-Adapter."""

    id: str = Field(description="`family/name`; the bare name works for any model of the family")
    name: str
    title: str
    description: str
    type: Literal["controlnet", "t2i_adapter"]
    conditioning: str = Field(description="what its image shows")
    family: str
    models: list[str] = Field(description="installed models it fits")
    accepts: list[Literal["image", "keypoints"]]
    defaults: dict[str, Any] = Field(description="`scale` and `span`")
    max_scale: float = Field(description="largest `scale` of a request")
    size_multiple: int = Field(description="height and width must be multiples of it, px")
    metrics: dict[str, Any]
    licence: str


class AdapterList(Strict):
    """Adapters by id."""

    items: list[AdapterView]


class ModelView(Strict):
    """A base model with the defaults and ranges of every request field."""

    name: str
    title: str
    description: str
    family: str
    pipeline: str
    is_default: bool
    heads: list[str] = Field(description="ids of the heads that fit")
    adapters: list[str] = Field(description="ids of the adapters that fit")
    parameters: dict[str, ParameterView] = Field(
        description="by request field; `controls[].weight` is the weight of a control"
    )
    metrics: dict[str, Any]
    licence: str


class ModelList(Strict):
    """Models by name."""

    items: list[ModelView]


class Liveness(Strict):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Readiness(Strict):
    """Every peer answers."""

    status: Literal["ready"] = "ready"
    checks: dict[str, str]
