"""Settings of a worker: what every room needs, and the device; from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from jobs.settings import CoreSettings


class WorkerSettings(CoreSettings):
    """Where the peers are, and what this worker computes on."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    cache_bytes: int = Field(
        16 * 2**30, gt=0, description="budget of loaded models and heads; the model in use stays"
    )
    warm_models: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None,
        description="models to load before serving, separated by commas; null: the installed one, "
        "where there is just one",
    )
    reference_cache_bytes: int = Field(
        2 * 2**30, ge=0, description="memory for reference trajectories and their readouts"
    )
    reference_dir: Path | None = Field(
        None, description="where references that leave memory are kept; null: nowhere"
    )
    reference_disk_bytes: int = Field(
        8 * 2**30, ge=0, description="what `reference_dir` may hold; the longest unused goes"
    )
    num_threads: int = Field(0, ge=0, description="of the CPU; 0 leaves it to torch")
    batch_images: int = Field(
        16, ge=1, description="most images of jobs that are computed together; 1: each job alone"
    )
    batch_pixels: int = Field(
        4 * 512 * 512,
        ge=1,
        description="most pixels of them; halved by itself where they do not fit into memory",
    )
    storage_patience_s: float = Field(
        60.0, ge=0, description="how long a job waits for object storage that does not answer"
    )
    hang_grace_s: float = Field(
        60.0, gt=0, description="past its deadline, after which a hanging step ends the process"
    )
    stall_s: float = Field(
        300.0, gt=0, description="longest step; a longer one ends the process, the job runs again"
    )
    drain_grace_s: float = Field(
        25.0,
        ge=0,
        description="how long a running job may go on after SIGTERM before it is given back; less "
        "than the grace period of who sends it (Kubernetes: 30 s)",
    )
    recycle_jobs: int = Field(0, ge=0, description="jobs after which the worker ends; 0: never")
    recycle_rss_bytes: int = Field(
        0, ge=0, description="resident memory beyond which the worker ends after its job; 0: never"
    )

    @field_validator("warm_models", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value
