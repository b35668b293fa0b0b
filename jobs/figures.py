"""What this deployment has measured: seconds and memory of jobs like one that is asked about.

Jobs are alike when they agree in model, size, guidance form, controls (heads and spans), adapters
and, to a tenth, in the part of the schedule that an init image skips; seconds are kept per picture
and step, and of jobs that were computed alone and warm. The last 50 of each kind are kept for a
month. What was never measured is not guessed.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from typing import cast

import redis
from pydantic import BaseModel, ConfigDict, Field

from jobs.connection import redis_errors
from jobs.keys import figures_key
from jobs.request import GenerationRequest
from jobs.settings import CoreSettings

KEPT = 50
KEPT_S = 30 * 24 * 3600
NOT_COMPUTING = frozenset({"load"})
"""Stages that are over once the model is warm."""


class Figure(BaseModel):
    """One measured job."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    seconds_per_step: float = Field(ge=0, description="of one picture, all stages but loading")
    pictures: int = Field(ge=1)
    peak_bytes: int | None = None
    device: str


class Estimate(BaseModel):
    """What a job will probably need; null is unknown.

    Memory is the largest peak of jobs with as many pictures.
    """

    model_config = ConfigDict(frozen=True)
    measured_jobs: int
    seconds: float | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None
    memory_bytes: int | None = None
    device: str | None = None


class Figures:
    """Keeps figures and estimates by them."""

    def __init__(self, client: redis.Redis, settings: CoreSettings) -> None:
        self._redis = client
        self._settings = settings

    def keep(
        self,
        request: GenerationRequest,
        timings: Mapping[str, float],
        device: str,
        peak_bytes: int | None,
    ) -> None:
        """Remember what a job took that was computed alone.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        seconds = sum(value for stage, value in timings.items() if stage not in NOT_COMPUTING)
        figure = Figure(
            seconds_per_step=seconds / (request.num_samples * request.num_steps),
            pictures=request.num_samples,
            peak_bytes=peak_bytes,
            device=device,
        )
        key = figures_key(self._settings, kind(request))
        with redis_errors(), self._redis.pipeline() as pipeline:
            pipeline.lpush(key, figure.model_dump_json())
            pipeline.ltrim(key, 0, KEPT - 1)
            pipeline.expire(key, KEPT_S)
            pipeline.execute()

    def estimate(self, request: GenerationRequest) -> Estimate:
        """By the median of jobs alike, with the range of the middle 80 %.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with redis_errors():
            found = self._redis.lrange(figures_key(self._settings, kind(request)), 0, -1)
        figures = [Figure.model_validate_json(text) for text in cast("list[str]", found)]
        if not figures:
            return Estimate(measured_jobs=0)
        steps = request.num_samples * request.num_steps
        seconds = sorted(figure.seconds_per_step * steps for figure in figures)
        margin = len(seconds) // 10
        return Estimate(
            measured_jobs=len(figures),
            seconds=round(statistics.median(seconds), 3),
            seconds_low=round(seconds[margin], 3),
            seconds_high=round(seconds[-1 - margin], 3),
            memory_bytes=_memory(figures, request.num_samples),
            device=figures[0].device,
        )


def kind(request: GenerationRequest) -> str:
    """Requests of one kind take the same time for a picture and a step."""
    shared: dict[str, object] = request.model_dump(
        mode="json", include={"model", "height", "width", "form", "branch"}
    )
    shared["first"] = round(request.first_step / request.num_inference_steps, 1)
    shared["guidance"] = request.guidance_scale > 1
    shared["controls"] = sorted(f"{one.type} {one.head} {one.span}" for one in request.controls)
    if request.adapters:
        shared["adapters"] = sorted(f"{one.model} {one.span}" for one in request.adapters)
        shared["adapter_gradient"] = request.adapter_gradient
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]


def _memory(figures: list[Figure], pictures: int) -> int | None:
    """The largest peak of jobs with as many pictures; unknown where none had."""
    peaks = [f.peak_bytes for f in figures if f.peak_bytes is not None and f.pictures == pictures]
    return max(peaks, default=None)
