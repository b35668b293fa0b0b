"""Which workers are alive and what they do: a sign of life per worker that expires by itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import redis
from pydantic import BaseModel, ConfigDict, Field

from jobs.connection import redis_errors
from jobs.keys import worker_key, workers_key
from jobs.settings import CoreSettings

SIGN_OF_LIFE_TTL_S = 20


class WorkerStatus(BaseModel):
    """What a worker says of itself every few seconds."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    name: str
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    device: str
    dtype: str
    models: tuple[str, ...] = Field((), description="loaded now")
    job: str | None = Field(None, description="id of the job that runs")
    last_step_at: datetime | None = Field(None, description="of the job that runs")
    jobs_done: int = 0


class WorkerBoard:
    """Where workers write their status and the gateway reads it."""

    def __init__(self, client: redis.Redis, settings: CoreSettings) -> None:
        self._redis = client
        self._settings = settings

    def post(self, status: WorkerStatus) -> None:
        """Say that the worker lives, for the next 20 seconds.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        key = worker_key(self._settings, status.name)
        with redis_errors(), self._redis.pipeline() as pipeline:
            pipeline.set(key, status.model_dump_json(), ex=SIGN_OF_LIFE_TTL_S)
            pipeline.sadd(workers_key(self._settings), status.name)
            pipeline.execute()

    def remove(self, name: str) -> None:
        """Say that the worker has gone.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with redis_errors(), self._redis.pipeline() as pipeline:
            pipeline.delete(worker_key(self._settings, name))
            pipeline.srem(workers_key(self._settings), name)
            pipeline.execute()

    def alive(self) -> Sequence[WorkerStatus]:
        """Every worker that gave a sign of life in the last 20 seconds, by name.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with redis_errors():
            members = cast("set[str]", self._redis.smembers(workers_key(self._settings)))
            names = sorted(members)
            if not names:
                return ()
            found: Any = self._redis.mget([worker_key(self._settings, name) for name in names])
            gone = [name for name, text in zip(names, found, strict=True) if text is None]
            if gone:
                self._redis.srem(workers_key(self._settings), *gone)
        return tuple(WorkerStatus.model_validate_json(text) for text in found if text is not None)
