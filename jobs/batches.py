"""Batches: many jobs that were made together, counted together, and listed in one manifest.

A batch is a hash with the number of its jobs in each state, kept by the transitions of the jobs
themselves (jobs/scripts.py), and the list of its jobs by position. When its last job has ended, the
reconciler writes `batches/{id}/results.jsonl`, one line a job. Trying failed ones again puts new
jobs in their places. Errors are those of jobs/errors.py.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, cast

import redis
from pydantic import BaseModel, ConfigDict, Field

from jobs.connection import redis_errors
from jobs.errors import JobExpired, JobNotFound, QueueFull, StateConflict
from jobs.idempotency import IdempotencyKey
from jobs.idempotency import refuse as refuse_key
from jobs.keys import batch_items_key, batch_key, batch_tombstone_key
from jobs.listing import Listing
from jobs.record import new_job_id
from jobs.request import GenerationRequest
from jobs.schedule import BatchPlace, Priority, slot
from jobs.settings import CoreSettings
from jobs.state import JobRecord, JobState
from jobs.transitions import Transitions

CHUNK = 200
"""Records that are read at a time."""


class BatchState(StrEnum):
    """Where a batch is; the last four are final, until failed jobs are tried again.

    One that has ended is ``canceled`` when any of its jobs is, whoever canceled it.
    """

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PARTIALLY_FAILED = "partially_failed"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def terminal(self) -> bool:
        """Whether nothing follows."""
        return self not in (BatchState.QUEUED, BatchState.RUNNING)


@dataclass(frozen=True)
class BatchItem:
    """One job to be: what to do, and the client's own name of it."""

    request: GenerationRequest
    custom_id: str = ""


class BatchRecord(BaseModel):
    """A batch at one moment."""

    model_config = ConfigDict(frozen=True)
    id: str
    owner: str
    request_id: str = ""
    created_at: datetime
    finished_at: datetime | None = None
    total: int
    counts: dict[JobState, int] = Field(description="jobs by state; they add up to `total`")
    manifest_key: str | None = Field(None, description="once it has ended and been written")

    @property
    def state(self) -> BatchState:
        """What the counts say."""
        counts = self.counts
        if counts[JobState.QUEUED] == self.total:
            return BatchState.QUEUED
        if counts[JobState.QUEUED] + counts[JobState.RUNNING]:
            return BatchState.RUNNING
        if counts[JobState.CANCELED]:
            return BatchState.CANCELED
        for state in (BatchState.SUCCEEDED, BatchState.FAILED):
            if counts[JobState(state.value)] == self.total:
                return state
        return BatchState.PARTIALLY_FAILED


class BatchStore:
    """Makes batches, looks at them, cancels them, tries their failed jobs again."""

    def __init__(self, client: redis.Redis, settings: CoreSettings) -> None:
        self._redis = client
        self._settings = settings
        self._transitions = Transitions(client, settings)
        self._listing = Listing(client, settings)

    def create(
        self,
        items: Sequence[BatchItem],
        request_id: str,
        owner: str,
        idempotency: IdempotencyKey | None = None,
    ) -> BatchRecord:
        """Admit all jobs or none, in one atomic step.

        Raises:
            QueueFull: there is no room for all of them.
            AlreadyMade, KeyReused: the idempotency key has made a batch already.
            QueueUnavailable: Redis does not answer; the batch may or may not have been admitted.
        """
        batch = new_batch_id()
        arguments: list[str | int] = [
            self._settings.max_queued,
            request_id,
            owner,
            idempotency.fingerprint if idempotency else "",
            self._settings.idempotency_ttl_s,
        ]
        for position, item in enumerate(items):
            place = BatchPlace(batch, position, item.custom_id)
            text = item.request.model_dump_json()
            arguments += [new_job_id(), text, slot(item.request, Priority.BATCH, place)]
        entry = [idempotency.name(self._settings)] if idempotency else []
        reply = self._transitions.run("CREATE_BATCH", batch, *arguments, more_keys=entry)
        refuse_key(reply)
        self._refuse_when_full(reply, len(items))
        return self.get(batch)

    def get(self, batch: str, owner: str | None = None) -> BatchRecord:
        """The batch as it is now.

        Raises:
            JobNotFound: there is none, or it is not the owner's.
            JobExpired: there was one.
        """
        with redis_errors():
            fields = cast("dict[str, str]", self._redis.hgetall(batch_key(self._settings, batch)))
            was = None
            if not fields:
                was = self._redis.get(batch_tombstone_key(self._settings, batch))
        if fields and owner in (None, fields["owner"]):
            return _parse(fields)
        if was is not None and owner in (None, was):
            raise JobExpired(f"batch {batch} has ended and its record has expired")
        raise JobNotFound(f"no batch {batch!r}")

    def job_ids(self, batch: str, start: int = 0, count: int | None = None) -> Sequence[str]:
        """The jobs from a position on; None: all of them."""
        last = -1 if count is None else start + count - 1
        with redis_errors():
            found = self._redis.lrange(batch_items_key(self._settings, batch), start, last)
        return cast("Sequence[str]", found)

    def jobs(self, batch: str, start: int = 0, count: int = CHUNK) -> Sequence[JobRecord]:
        """The records from a position on; those that have expired are missing."""
        return self._listing.fetch(self.job_ids(batch, start, count))

    def cancel(self, batch: str) -> BatchRecord:
        """Cancel every job that waits or runs; what has succeeded stays.

        Raises:
            JobNotFound: no such batch.
            StateConflict: it has ended otherwise, maybe just now.
        """
        record = self.get(batch)
        if not record.state.terminal:
            lease_ms = int(self._settings.lease_s * 1000)
            self._transitions.run_each(
                "CANCEL", self.job_ids(batch), self._settings.record_ttl_s, lease_ms
            )
            record = self.get(batch)
        if record.state.terminal and record.state is not BatchState.CANCELED:
            raise StateConflict(f"batch {batch} is {record.state}", record.state)
        return record

    def retry(self, batch: str, request_id: str) -> Sequence[str]:
        """New jobs in the places of the failed ones; returns their ids.

        Raises:
            JobNotFound: no such batch.
            StateConflict: none of its jobs has failed.
            QueueFull: there is no room for all of them.
        """
        record = self.get(batch)
        arguments: list[str | int] = [self._settings.max_queued, request_id]
        new: list[str] = []
        for start in range(0, record.total, CHUNK):
            for job in self.jobs(batch, start):
                if job.state is not JobState.FAILED or job.place is None:
                    continue
                new.append(new_job_id())
                place = slot(job.request, Priority.BATCH, job.place)
                text = job.request.model_dump_json()
                arguments += [job.place.position, job.id, new[-1], text, place]
        if not new:
            raise StateConflict(f"no job of batch {batch} has failed", record.state)
        reply = self._transitions.run("RETRY_BATCH", batch, *arguments)
        self._refuse_when_full(reply, len(new))
        return new

    def manifest(self, record: BatchRecord) -> bytes:
        """The results as JSON lines, by position; expired jobs are missing."""
        lines = []
        for start in range(0, record.total, CHUNK):
            lines += [_line(job) for job in self.jobs(record.id, start)]
        return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode()

    def _refuse_when_full(self, reply: Sequence[str], count: int) -> None:
        if reply[0] == "full":
            limit = self._settings.max_queued
            raise QueueFull(
                f"{reply[1]} jobs wait or run and the limit is {limit}: no room for {count} more; "
                "try again later"
            )


def new_batch_id() -> str:
    """An id that nobody can guess: ``batch_`` and 24 hex digits."""
    return f"batch_{secrets.token_hex(12)}"


def batch_prefix(batch: str) -> str:
    """The key prefix of what a batch itself stores; its jobs have their own."""
    return f"batches/{batch}/"


def _parse(fields: dict[str, str]) -> BatchRecord:
    counts = {state: int(fields.get(state.value, 0)) for state in JobState}
    finished_at = fields.get("finished_at")
    written = finished_at is not None and fields.get("manifest_of") == finished_at
    return BatchRecord(
        id=fields["id"],
        owner=fields["owner"],
        request_id=fields.get("request_id", ""),
        created_at=_time(fields["created_at"]),
        finished_at=_time(finished_at) if finished_at else None,
        total=int(fields["total"]),
        counts=counts,
        manifest_key=fields["manifest_key"] if written else None,
    )


def _time(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def _line(job: JobRecord) -> dict[str, Any]:
    """What the manifest says of a job."""
    place = job.place
    return {
        "index": place.position if place else None,
        "custom_id": place.custom_id or None if place else None,
        "generation_id": job.id,
        "state": job.state.value,
        "attempt": job.attempt,
        "failure": job.failure.model_dump(mode="json") if job.failure else None,
        "result": job.result.model_dump(mode="json") if job.result else None,
    }
