"""What a job is at any moment: its record, its states, and the only ways from one state to another.

    queued → running → succeeded | failed | canceled
       ↑________|  lease expired, or released by a worker that stops

Redis holds the record, and its transitions are Lua compare-and-sets (jobs/scripts.py) on the state
and the *attempt*, a number that rises with each start and fences off attempts that were given up.
Errors are those of jobs/errors.py:

    JobsError
    ├── JobNotFound          no record of that id (never was, or expired)
    ├── QueueFull            as many jobs wait or run as the service admits
    ├── StateConflict        the job's state does not allow what was asked
    ├── StaleAttempt         the attempt no longer owns the job
    │   └── JobCanceled      …because a client canceled it
    ├── QueueUnavailable     Redis does not answer
    └── StorageError         (jobs/store.py) StorageUnavailable, ObjectNotFound
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import cast

import redis
from pydantic import BaseModel

from jobs.connection import redis_errors
from jobs.errors import (
    JobCanceled,
    JobNotFound,
    JobsError,
    QueueFull,
    QueueUnavailable,
    StaleAttempt,
    StateConflict,
)
from jobs.keys import record_key
from jobs.request import GenerationRequest
from jobs.result import ResultSummary
from jobs.settings import CoreSettings
from jobs.state import Failure, FailureCode, JobRecord, JobState, Page, Progress, parse_record
from jobs.transitions import Transitions, refuse

__all__ = [
    "Failure",
    "FailureCode",
    "JobCanceled",
    "JobNotFound",
    "JobRecord",
    "JobState",
    "JobsError",
    "Page",
    "Progress",
    "QueueFull",
    "QueueUnavailable",
    "RecordStore",
    "StaleAttempt",
    "StateConflict",
]


class RecordStore:
    """Every job's record; the one owner of the keys under the settings' prefix."""

    def __init__(self, client: redis.Redis, settings: CoreSettings) -> None:
        """Prepare the scripts; talks to Redis only when a method is called.

        Args:
            client: from `jobs.connection.connect`.
            settings: limits, lease and key prefix.
        """
        self._redis = client
        self._settings = settings
        self._prefix = f"{settings.redis_prefix}:"
        self._lease_ms = int(settings.lease_s * 1000)
        self._transitions = Transitions(client, settings)

    def create(self, request: GenerationRequest, request_id: str = "") -> JobRecord:
        """Admit a job, or refuse it because the service is full; one atomic step.

        Raises:
            QueueFull: `max_queued` jobs wait or run.
            QueueUnavailable: Redis does not answer; the job may or may not have been admitted.
        """
        job_id = new_job_id()
        limit = self._settings.max_queued
        reply = self._transitions.run(
            "CREATE", job_id, limit, request.model_dump_json(), request_id
        )
        if reply[0] == "full":
            raise QueueFull(f"{reply[1]} jobs wait or run; the limit is {limit}; try again later")
        return self.get(job_id)

    def get(self, job_id: str) -> JobRecord:
        """The record as it is now.

        Raises:
            JobNotFound: there is none.
        """
        with redis_errors():
            fields = cast("dict[str, str]", self._redis.hgetall(self._key(job_id)))
        if not fields:
            raise JobNotFound(f"no job {job_id!r}: the id is unknown, or its record has expired")
        return parse_record(fields)

    def list(
        self, cursor: str | None = None, limit: int = 20, state: JobState | None = None
    ) -> Page:
        """A page of records, newest first; jobs created meanwhile do not shift later pages.

        Raises:
            ValueError: the cursor is not one that a page gave.
        """
        below = "+inf" if cursor is None else f"({_sequence_number(cursor)}"
        records: Sequence[JobRecord] = ()
        while True:
            wanted = limit + 1 - len(records)
            found = self._range(below, wanted, state)
            records = (*records, *self._fetch(job_id for job_id, _ in found))
            if len(found) < wanted or len(records) > limit:
                break
            below = f"({int(found[-1][1])}"
        if len(records) <= limit:
            return Page(records=tuple(records))
        last = self._sequence_of(records[limit - 1].id)
        return Page(records=tuple(records[:limit]), next_cursor=last)

    def start(self, job_id: str, worker: str) -> int:
        """Take the job: queued (or running with an expired lease) → running.

        Returns:
            The attempt: the token that every later transition needs.

        Raises:
            JobNotFound: no such job.
            StateConflict: it has ended, another attempt runs it, or its attempts are used up.
        """
        nonce = secrets.token_hex(8)
        reply = self._transitions.run(
            "START", job_id, worker, nonce, self._lease_ms, self._settings.max_attempts
        )
        if reply[0] == "exhausted":
            raise StateConflict(f"job {job_id} has no attempts left", reply[1])
        return int(reply[1])

    def heartbeat(self, job_id: str, attempt: int) -> None:
        """Renew the attempt's lease.

        Raises:
            StaleAttempt, JobCanceled: the attempt must stop; see jobs/errors.py.
        """
        self._transitions.run("HEARTBEAT", job_id, attempt, self._lease_ms)

    def progress(self, job_id: str, attempt: int, progress: Progress) -> None:
        """Say how far the attempt is.

        Raises:
            StaleAttempt, JobCanceled: the attempt must stop; see jobs/errors.py.
        """
        self._transitions.run("PROGRESS", job_id, attempt, progress.model_dump_json())

    def check(self, job_id: str, attempt: int) -> None:
        """Whether the attempt should go on: one read, for every step.

        Raises:
            StaleAttempt, JobCanceled: the attempt must stop; see jobs/errors.py.
        """
        with redis_errors():
            found = self._redis.hmget(self._key(job_id), ["state", "attempt"])
        state, owner = cast("Sequence[str | None]", found)
        if state is None:
            raise JobNotFound(f"no job {job_id!r}")
        if owner != str(attempt) or state != JobState.RUNNING:
            canceled = state == JobState.CANCELED and owner == str(attempt)
            refuse(["canceled"] if canceled else ["stale", state, str(owner)], job_id)

    def succeed(self, job_id: str, attempt: int, result: ResultSummary) -> None:
        """Publish the attempt's result: running → succeeded.

        Raises:
            StaleAttempt, JobCanceled: not published, and it must not be.
        """
        self._finish(job_id, attempt, JobState.SUCCEEDED, "result", result)

    def fail(self, job_id: str, attempt: int, failure: Failure) -> None:
        """End the job for good: running → failed.

        Raises:
            StaleAttempt, JobCanceled: the attempt is not the one to decide.
        """
        self._finish(job_id, attempt, JobState.FAILED, "failure", failure)

    def release(self, job_id: str, attempt: int) -> None:
        """Give the job back for another worker: running → queued; the attempt still counts.

        Raises:
            StaleAttempt, JobCanceled: there is nothing to give back.
        """
        self._transitions.run("RELEASE", job_id, attempt, self._lease_ms)

    def request_cancel(self, job_id: str) -> JobRecord:
        """Cancel: queued or running → canceled at once; a running attempt stops at its next step.

        Raises:
            JobNotFound: no such job.
            StateConflict: it has ended already.
        """
        self._transitions.run("CANCEL", job_id, self._settings.record_ttl_s, self._lease_ms)
        return self.get(job_id)

    def acknowledge_cancel(self, job_id: str, attempt: int) -> None:
        """Say that the canceled attempt computes no more."""
        self._transitions.run("ACKNOWLEDGE_CANCEL", job_id, attempt)

    def cancel_requested(self, job_id: str) -> bool:
        """Whether a client canceled the job."""
        with redis_errors():
            return self._redis.hget(self._key(job_id), "cancel_requested") == "1"

    def expire_lease(self, job_id: str, failure: Failure) -> JobState | None:
        """Take a running job from an attempt whose lease ran out (the reconciler's right).

        Returns:
            QUEUED: to be enqueued again. FAILED: with `failure`, no attempts are left.
            None: nothing was done, the attempt is alive or has ended.
        """
        reply = self._transitions.run(
            "EXPIRE_LEASE",
            job_id,
            self._settings.max_attempts,
            failure.model_dump_json(),
            self._settings.record_ttl_s,
            self._lease_ms,
        )
        return {"requeued": JobState.QUEUED, "failed": JobState.FAILED}.get(reply[0])

    def counts(self) -> dict[JobState, int]:
        """How many records are in each state."""
        with redis_errors(), self._redis.pipeline(transaction=False) as pipeline:
            for state in JobState:
                pipeline.zcard(self._index(state))
            return dict(zip(JobState, pipeline.execute(), strict=True))

    def active(self, state: JobState) -> Sequence[str]:
        """The ids of all queued or running jobs, oldest first."""
        with redis_errors():
            return cast("Sequence[str]", self._redis.zrange(self._index(state), 0, -1))

    def _finish(
        self, job_id: str, attempt: int, state: JobState, field: str, value: BaseModel
    ) -> None:
        ttl, sweep_ms = self._settings.record_ttl_s, self._lease_ms * 2
        self._transitions.run(
            "FINISH", job_id, attempt, state, field, value.model_dump_json(), ttl, sweep_ms
        )

    def _range(self, below: str, limit: int, state: JobState | None) -> Sequence[tuple[str, float]]:
        index = self._index(state or "all")
        with redis_errors():
            found = self._redis.zrevrangebyscore(
                index, below, "-inf", start=0, num=limit, withscores=True
            )
        return cast("Sequence[tuple[str, float]]", found)

    def _fetch(self, job_ids: Iterable[str]) -> Sequence[JobRecord]:
        """The records that still exist."""
        with redis_errors(), self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hgetall(self._key(job_id))
            return [parse_record(fields) for fields in pipeline.execute() if fields]

    def _sequence_of(self, job_id: str) -> str | None:
        with redis_errors():
            return cast("str | None", self._redis.hget(self._key(job_id), "seq"))

    def _key(self, job_id: str) -> str:
        return record_key(self._settings, job_id)

    def _index(self, name: str) -> str:
        return f"{self._prefix}index:{name}"


def new_job_id() -> str:
    """An id that nobody can guess, fit for paths and for RQ: ``gen_`` and 24 hex digits."""
    return f"gen_{secrets.token_hex(12)}"


def _sequence_number(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 16:
        raise ValueError("the cursor is not one that a page gave")
    return int(cursor)
