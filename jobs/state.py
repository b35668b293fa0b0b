"""What a job is at one moment: states, failure codes, progress, and the record that clients see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from jobs.request import GenerationRequest
from jobs.result import Preview, ResultSummary
from jobs.schedule import BatchPlace

LOCAL_OWNER = "local"
"""Who calls where no API key is asked for, and whose every record without an owner is."""


class JobState(StrEnum):
    """Where a job is; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def terminal(self) -> bool:
        """Whether nothing follows."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class FailureCode(StrEnum):
    """Why a job failed, for programs."""

    INVALID_TARGET = "invalid_target"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_HEAD = "unknown_head"
    INCOMPATIBLE_HEAD = "incompatible_head"
    UNSUPPORTED_FORMAT = "unsupported_format"
    UNKNOWN_ADAPTER = "unknown_adapter"
    INCOMPATIBLE_ADAPTER = "incompatible_adapter"
    NO_FACE_FOUND = "no_face_found"
    NO_FACE_DETECTOR = "no_face_detector"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    WORKER_LOST = "worker_lost"
    INTERNAL = "internal"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Failure(_Frozen):
    """Why a job failed: a code for programs, and a message that says what to change."""

    code: FailureCode
    message: str


class CurrentDistance(_Frozen):
    """How far the pictures were from obeying a control when guidance last looked."""

    control: int = Field(ge=0, description="position in the request")
    head: str
    distance: float = Field(description="mean over the pictures, in the result's unit")
    unit: str
    step: int = Field(ge=0, description="at which it was measured")


class Progress(_Frozen):
    """How far the running attempt is."""

    step: int = Field(ge=0)
    total_steps: int = Field(ge=0)
    stage: str = "sampling"
    distances: tuple[CurrentDistance, ...] = ()


class JobRecord(_Frozen):
    """A job as it is in Redis; times are UTC."""

    id: str
    state: JobState
    attempt: int = Field(ge=0, description="0 before the first start")
    request: GenerationRequest
    created_at: datetime
    started_at: datetime | None = Field(None, description="of the latest attempt")
    finished_at: datetime | None = None
    cancel_requested: bool = False
    progress: Progress | None = None
    previews: tuple[Preview, ...] = Field((), description="of the running attempt")
    failure: Failure | None = None
    result: ResultSummary | None = None
    request_id: str = ""
    owner: str = Field(LOCAL_OWNER, description="whose it is; nobody else is told of it")
    webhook_url: str | None = Field(None, repr=False, description="where to tell of its end")
    worker: str | None = None
    place: BatchPlace | None = Field(None, description="in a batch")

    def as_created(self) -> JobRecord:
        """The record as it was when it was queued: what never changes, and nothing else."""
        never_changes = {"id", "request", "created_at", "request_id", "owner", "webhook_url"}
        fields = {name: getattr(self, name) for name in never_changes}
        return JobRecord(state=JobState.QUEUED, attempt=0, **fields)


class Page(_Frozen):
    """Some records, newest first, and where the next page starts (None: this was the last)."""

    records: tuple[JobRecord, ...]
    next_cursor: str | None = None


def parse_record(fields: Mapping[str, str]) -> JobRecord:
    """A record from the fields of its hash in Redis, where times are milliseconds."""
    values: dict[str, Any] = {
        name: fields[name]
        for name in ("id", "state", "attempt", "request_id", "owner", "webhook_url")
        if name in fields
    }
    values["worker"] = fields.get("worker")
    values["cancel_requested"] = fields.get("cancel_requested") == "1"
    for name in ("created_at", "started_at", "finished_at"):
        if name in fields:
            values[name] = datetime.fromtimestamp(int(fields[name]) / 1000, UTC)
    for name in ("request", "progress", "previews", "failure", "result"):
        if name in fields:
            values[name] = json.loads(fields[name])
    if "batch" in fields:
        place = {"position": fields["position"], "custom_id": fields["custom_id"]}
        values["place"] = {"batch": fields["batch"], **place}
    return JobRecord.model_validate(values)
