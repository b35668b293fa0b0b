"""What a job is at any moment: its record, its states, and the only ways from one state to another.

    queued → running → succeeded | failed | canceled
       ↑________|  lease expired, or released by a worker that stops

Redis holds the record, and its transitions are Lua compare-and-sets (jobs/scripts.py) on the state
and the *attempt*, a number that rises with each start and fences off attempts that were given up.
Errors are those of jobs/errors.py:

    JobsError
    ├── JobNotFound          no record of that id
    │   └── JobExpired       …any more
    ├── IdempotencyConflict  (jobs/idempotency.py)
    ├── QueueFull            as many jobs wait or run as the service admits
    ├── StateConflict        the job's state does not allow what was asked
    ├── StaleAttempt         the attempt no longer owns the job
    │   └── JobCanceled      …because a client canceled it
    ├── QueueUnavailable     Redis does not answer
    └── StorageError         (jobs/store.py) StorageUnavailable, ObjectNotFound
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from typing import cast

import redis
from pydantic import BaseModel

from jobs.connection import redis_errors
from jobs.errors import (
    JobCanceled,
    JobExpired,
    JobNotFound,
    JobsError,
    QueueFull,
    QueueUnavailable,
    StaleAttempt,
    StateConflict,
)
from jobs.idempotency import IdempotencyKey
from jobs.idempotency import refuse as refuse_key
from jobs.keys import index_key, line_key, record_key, tombstone_key
from jobs.listing import Listing
from jobs.request import GenerationRequest
from jobs.result import Preview, ResultSummary
from jobs.schedule import Priority, slot
from jobs.settings import CoreSettings
from jobs.state import (
    LOCAL_OWNER,
    Failure,
    FailureCode,
    JobRecord,
    JobState,
    Page,
    Progress,
    parse_record,
)
from jobs.transitions import Transitions, refuse

__all__ = [
    "Failure",
    "FailureCode",
    "JobCanceled",
    "JobExpired",
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
        self._lease_ms = int(settings.lease_s * 1000)
        self._transitions = Transitions(client, settings)
        self._listing = Listing(client, settings)

    def create(
        self,
        request: GenerationRequest,
        request_id: str = "",
        owner: str = LOCAL_OWNER,
        idempotency: IdempotencyKey | None = None,
        priority: Priority = Priority.INTERACTIVE,
        webhook_url: str | None = None,
    ) -> JobRecord:
        """Admit a job, or refuse it because the service is full; one atomic step.

        Args:
            request: what to do, complete.
            request_id: of the HTTP request, for logs.
            owner: whose job it will be.
            idempotency: the client's key; its entry is written in the same step.
            priority: its place in the line, see jobs/schedule.py.
            webhook_url: where to tell of the job's end, beside the owner's endpoints.

        Raises:
            QueueFull: `max_queued` jobs wait or run.
            AlreadyMade, KeyReused: the idempotency key has made a job already.
            QueueUnavailable: Redis does not answer; the job may or may not have been admitted.
        """
        job_id = new_job_id()
        limit = self._settings.max_queued
        text = request.model_dump_json()
        fingerprint = idempotency.fingerprint if idempotency else ""
        entry = [idempotency.name(self._settings)] if idempotency else []
        reply = self._transitions.run(
            "CREATE",
            job_id,
            limit,
            text,
            request_id,
            owner,
            fingerprint,
            self._settings.idempotency_ttl_s,
            slot(request, priority),
            webhook_url or "",
            more_keys=entry,
        )
        refuse_key(reply)
        if reply[0] == "full":
            raise QueueFull(f"{reply[1]} jobs wait or run; the limit is {limit}; try again later")
        fields = {"id": job_id, "state": "queued", "attempt": "0", "request": text}
        if webhook_url:
            fields["webhook_url"] = webhook_url
        return parse_record(
            fields | {"request_id": request_id, "owner": owner, "created_at": reply[1]}
        )

    def get(self, job_id: str, owner: str | None = None) -> JobRecord:
        """The record as it is now.

        Args:
            job_id: whose.
            owner: who asks; what is another's does not exist. None asks for the service itself.

        Raises:
            JobNotFound: there is none, or it is not the owner's.
            JobExpired: there was one.
        """
        if not is_job_id(job_id):
            raise JobNotFound(f"no job {job_id!r}")
        with redis_errors():
            fields = cast("dict[str, str]", self._redis.hgetall(self._key(job_id)))
        record = parse_record(fields) if fields else None
        if record is not None and owner in (None, record.owner):
            return record
        was = self._tombstone(job_id) if record is None else None
        if was is not None and owner in (None, was):
            raise JobExpired(f"job {job_id} has ended and its record has expired")
        raise JobNotFound(f"no job {job_id!r}")

    def list(
        self,
        cursor: str | None = None,
        limit: int = 20,
        state: JobState | None = None,
        owner: str | None = None,
    ) -> Page:
        """A page of everyone's records or of one owner's, newest first.

        Jobs created meanwhile do not shift later pages.

        Raises:
            ValueError: the cursor is not one that a page gave.
        """
        return self._listing.page(cursor, limit, state, owner)

    def fetch(self, job_ids: Sequence[str]) -> Sequence[JobRecord]:
        """The records of these jobs that still exist."""
        return self._listing.fetch(job_ids)

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

    def take(self, worker: str, most_images: int = 1, most_pixels: int = 0) -> Sequence[JobRecord]:
        """Take the job that is next in line, and jobs that may be computed together with it.

        Args:
            worker: who takes them.
            most_images: of all jobs taken; the first is taken whatever it has.
            most_pixels: of all images of all jobs, the same.

        Returns:
            The jobs as they are now, running; none when nobody waits. `attempt` is the token
            that every later transition needs.
        """
        nonce = secrets.token_hex(8)
        reply = self._transitions.run(
            "TAKE", "", worker, nonce, self._lease_ms, most_images, most_pixels
        )
        taken = dict(zip(reply[1::2], map(int, reply[2::2]), strict=True))
        found = self._listing.fetch(taken)
        return [record.model_copy(update={"attempt": taken[record.id]}) for record in found]

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

    def preview(
        self, job_id: str, attempt: int, fresh: Sequence[Preview], so_far: Sequence[Preview]
    ) -> None:
        """Tell of frames that have just been stored.

        Args:
            job_id: whose.
            attempt: that made them.
            fresh: those of one step; the event has them.
            so_far: all of the attempt; the record has them.

        Raises:
            StaleAttempt, JobCanceled: the attempt must stop; see jobs/errors.py.
        """
        images = [frame.model_dump(mode="json", exclude={"step"}) for frame in fresh]
        event = {"attempt": attempt, "step": fresh[0].step, "images": images}
        record = [frame.model_dump(mode="json") for frame in so_far]
        self._transitions.run("PREVIEW", job_id, attempt, json.dumps(event), json.dumps(record))

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
        """Give the job back for another worker: running → queued.

        The attempt does not count towards `max_attempts`: a deployment that stops its workers
        four times must not use up a job.

        Raises:
            StaleAttempt, JobCanceled: there is nothing to give back.
        """
        self._transitions.run("RELEASE", job_id, attempt, self._lease_ms)

    def request_cancel(self, job_id: str, owner: str | None = None) -> JobRecord:
        """Cancel: queued or running → canceled at once; a running attempt stops at its next step.

        Raises:
            JobNotFound: no such job, or it is not the owner's.
            StateConflict: it has ended already.
        """
        if owner is not None:
            self.get(job_id, owner)
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

    def position(self, job_id: str) -> int | None:
        """How many jobs are before this one in the line; None: it is not queued."""
        with redis_errors():
            return cast("int | None", self._redis.zrank(line_key(self._settings), job_id))

    def counts(self) -> dict[JobState, int]:
        """How many records are in each state."""
        with redis_errors(), self._redis.pipeline(transaction=False) as pipeline:
            for state in JobState:
                pipeline.zcard(index_key(self._settings, state))
            return dict(zip(JobState, pipeline.execute(), strict=True))

    def active(self, state: JobState) -> Sequence[str]:
        """The ids of all queued or running jobs, oldest first."""
        with redis_errors():
            return cast(
                "Sequence[str]", self._redis.zrange(index_key(self._settings, state), 0, -1)
            )

    def _finish(
        self, job_id: str, attempt: int, state: JobState, field: str, value: BaseModel
    ) -> None:
        ttl, sweep_ms = self._settings.record_ttl_s, self._lease_ms * 2
        self._transitions.run(
            "FINISH", job_id, attempt, state, field, value.model_dump_json(), ttl, sweep_ms
        )

    def _key(self, job_id: str) -> str:
        return record_key(self._settings, job_id)

    def _tombstone(self, job_id: str) -> str | None:
        with redis_errors():
            return cast("str | None", self._redis.get(tombstone_key(self._settings, job_id)))


def new_job_id() -> str:
    """An id that nobody can guess, fit for paths and for RQ: ``gen_`` and 24 hex digits."""
    return f"gen_{secrets.token_hex(12)}"


def is_job_id(text: str) -> bool:
    """Whether a text has the form of `new_job_id`; no other goes into a key."""
    return re.fullmatch(r"gen_[0-9a-f]{24}", text) is not None
