"""A job's events: an append-only Redis Stream that the transitions write and clients may replay.

Types: queued, started, progress, preview, requeued, succeeded, failed, canceled; the last three end
it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import redis
import redis.asyncio
from pydantic import BaseModel, ConfigDict

from jobs.connection import redis_errors
from jobs.keys import events_key
from jobs.settings import CoreSettings

_BATCH = 100
TERMINAL_TYPES = frozenset({"succeeded", "failed", "canceled"})


class JobEvent(BaseModel):
    """One thing that happened to a job."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    type: str
    data: dict[str, Any]

    @property
    def terminal(self) -> bool:
        """Whether nothing follows."""
        return self.type in TERMINAL_TYPES


class EventLog:
    """Reads the streams that the Lua transitions append to."""

    def __init__(self, client: redis.Redis, settings: CoreSettings) -> None:
        self._redis = client
        self._settings = settings

    def read(
        self, job_id: str, after: str = "0", limit: int = 100, wait_s: float = 0.0
    ) -> Sequence[JobEvent]:
        """Events that came after one (by its id), oldest first; empty when there are none.

        Args:
            job_id: whose.
            after: an event's id; "0" starts at the beginning.
            limit: most events to return.
            wait_s: how long to wait for the first; keep it below the client's socket timeout.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        key = events_key(self._settings, job_id)
        block = int(wait_s * 1000) if wait_s > 0 else None
        with redis_errors():
            return _events(self._redis.xread({key: after}, count=limit, block=block))


class EventFeed:
    """The same streams without blocking a thread, for one event loop."""

    def __init__(self, client: redis.asyncio.Redis, settings: CoreSettings) -> None:
        self._redis = client
        self._settings = settings

    async def read(self, job_id: str, after: str, wait_s: float) -> Sequence[JobEvent]:
        """Events that came after one, oldest first; waits for the first at most `wait_s` seconds.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        key, block = events_key(self._settings, job_id), max(1, int(wait_s * 1000))
        with redis_errors():
            return _events(await self._redis.xread({key: after}, count=_BATCH, block=block))

    async def last(self, job_id: str) -> JobEvent | None:
        """The newest event; None: the job has none, or they have expired.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with redis_errors():
            found: Any = await self._redis.xrevrange(events_key(self._settings, job_id), count=1)
        return next((_event(*entry) for entry in found), None)


def later(one: str, other: str) -> bool:
    """Whether an event's id comes after another's."""
    return _order(one) > _order(other)


def possible(event_id: str) -> bool:
    """Whether Redis could have given an event this id, of two numbers: both are of 64 bits."""
    return max(_order(event_id)) < 2**64


def _order(event_id: str) -> tuple[int, ...]:
    return tuple(int(part) for part in event_id.split("-"))


def _events(found: Any) -> Sequence[JobEvent]:
    """What XREAD replies, in RESP2 and RESP3."""
    streams = found.items() if isinstance(found, dict) else (found or ())
    return tuple(_event(*entry) for _, batch in streams for entry in _flat(batch))


def _event(event_id: str, fields: dict[str, str]) -> JobEvent:
    return JobEvent(id=event_id, type=fields["type"], data=json.loads(fields["data"]))


def _flat(batch: Any) -> Any:
    """Entries of one stream; RESP3 wraps them once more than RESP2."""
    return batch[0] if batch and isinstance(batch[0], list) else batch
