"""Pages of records, newest first; jobs created meanwhile do not shift later pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import redis

from jobs.connection import redis_errors
from jobs.keys import index_key, record_key
from jobs.settings import CoreSettings
from jobs.state import JobRecord, JobState, Page, parse_record


class Listing:
    """Reads the indices that the Lua transitions keep."""

    def __init__(self, client: redis.Redis, settings: CoreSettings) -> None:
        self._redis = client
        self._settings = settings

    def page(
        self,
        cursor: str | None = None,
        limit: int = 20,
        state: JobState | None = None,
        owner: str | None = None,
    ) -> Page:
        """A page of everyone's records, or of one owner's.

        Raises:
            ValueError: the cursor is not one that a page gave.
            QueueUnavailable: Redis does not answer.
        """
        index = index_key(self._settings, state or "all", owner)
        below = "+inf" if cursor is None else f"({_sequence_number(cursor)}"
        records: Sequence[JobRecord] = ()
        while True:
            wanted = limit + 1 - len(records)
            found = self._range(index, below, wanted)
            records = (*records, *self.fetch(job_id for job_id, _ in found))
            if len(found) < wanted or len(records) > limit:
                break
            below = f"({int(found[-1][1])}"
        if len(records) <= limit:
            return Page(records=tuple(records))
        last = self._sequence_of(records[limit - 1].id)
        return Page(records=tuple(records[:limit]), next_cursor=last)

    def _range(self, index: str, below: str, limit: int) -> Sequence[tuple[str, float]]:
        with redis_errors():
            found = self._redis.zrevrangebyscore(
                index, below, "-inf", start=0, num=limit, withscores=True
            )
        return cast("Sequence[tuple[str, float]]", found)

    def fetch(self, job_ids: Iterable[str]) -> Sequence[JobRecord]:
        """The records that still exist."""
        with redis_errors(), self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hgetall(record_key(self._settings, job_id))
            return [parse_record(fields) for fields in pipeline.execute() if fields]

    def _sequence_of(self, job_id: str) -> str | None:
        with redis_errors():
            return cast("str | None", self._redis.hget(record_key(self._settings, job_id), "seq"))


def _sequence_number(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 16:
        raise ValueError("the cursor is not one that a page gave")
    return int(cursor)
