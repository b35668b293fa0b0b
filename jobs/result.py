"""What a job leaves behind: a small summary in its record, the full manifest in object storage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.controls import BoxPair
from jobs.request import Control, GenerationRequest, SpatialControl


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ControlDistance(_Frozen):
    """How well an image obeyed one control: the objective at the last step, in readout units."""

    head: str
    distance: float | None = Field(description="null: the control was never evaluated")
    unit: str = Field(
        "rms",
        description="rms: of readout - target, in readout units; cosine: of a relative control, "
        "1 - its similarity to the reference",
    )


class StoredReadout(_Frozen):
    """One head's readout of a finished image, as an image."""

    head: str
    key: str


class StoredFrame(_Frozen):
    """One step of an image's evolution: the predicted clean image and what the heads read."""

    step: int = Field(ge=0)
    key: str
    readouts: tuple[StoredReadout, ...] = ()


class Preview(StoredFrame):
    """A frame that is in storage while its job still runs."""

    index: int = Field(ge=0, description="of the picture, among all that are computed")


class StoredResult(_Frozen):
    """One finished image and everything that belongs to it."""

    index: int = Field(ge=0)
    seed: int
    key: str
    sha256: str
    width: int
    height: int
    distances: dict[str, ControlDistance] = Field(
        default_factory=dict, description="by the control's position in the request"
    )
    boxes: dict[str, tuple[BoxPair, ...]] = Field(
        default_factory=dict, description="faces that were compared, by the control's position"
    )
    readouts: tuple[StoredReadout, ...] = ()
    evolution: tuple[StoredFrame, ...] = ()
    score: float | None = Field(
        None, description="Σ weight · distance of the controls; null: there are none"
    )
    rank: int | None = Field(None, ge=0, description="by score, 0 is best; null: no score")


class StoredAnimation(_Frozen):
    """The frames of a drag as one file."""

    key: str
    format: str
    frames: int
    fps: float


class ResultSummary(_Frozen):
    """What the record keeps of a success: object keys, distances, timings; never pixels or URLs."""

    attempt: int = Field(ge=1)
    manifest_key: str
    images: tuple[StoredResult, ...]
    timings: dict[str, float] = Field(default_factory=dict, description="seconds per stage")
    reference_psnr_db: float | None = Field(
        None, description="of an inverted reference's reconstruction against the picture"
    )
    warnings: tuple[str, ...] = ()
    animation: StoredAnimation | None = None


class ResultManifest(_Frozen):
    """`manifest.json` beside the images: all that is needed to understand or repeat the result."""

    version: Literal[1] = 1
    job_id: str
    attempt: int = Field(ge=1)
    request: GenerationRequest
    images: tuple[StoredResult, ...]
    sha256: dict[str, str] = Field(description="of every object of the attempt, by file name")
    timings: dict[str, float]
    reference_psnr_db: float | None = None
    warnings: tuple[str, ...] = ()
    animation: StoredAnimation | None = None
    versions: dict[str, Any] = Field(description="packages, and the hashes of model and heads")
    device: str
    dtype: str


def distance_unit(control: Control) -> str:
    """Of a control's distance, see `ControlDistance`."""
    return "rms" if isinstance(control, SpatialControl) else "cosine"


def attempt_prefix(job_id: str, attempt: int) -> str:
    """The key prefix of everything that one attempt stores."""
    return f"{job_prefix(job_id)}{attempt}/"


def job_prefix(job_id: str) -> str:
    """The key prefix of everything that a job stores."""
    return f"jobs/{job_id}/"
