"""Runs the Lua transitions (jobs/admission.py, jobs/scripts.py) and raises what they reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import redis

from jobs import admission, scripts
from jobs.connection import redis_errors
from jobs.errors import JobCanceled, JobNotFound, StaleAttempt, StateConflict
from jobs.keys import events_key, record_key
from jobs.settings import CoreSettings


class Transitions:
    """The scripts, registered with one client."""

    def __init__(self, client: redis.Redis, settings: CoreSettings) -> None:
        self._redis = client
        self._settings = settings
        self._scripts = {
            name: client.register_script(source)
            for name, source in (vars(admission) | vars(scripts)).items()
            if name.isupper() and not name.startswith("_")
        }

    def run(
        self, name: str, job_id: str, *arguments: str | int, more_keys: Sequence[str] = ()
    ) -> Sequence[str]:
        """Run one; returns its reply when that is not a refusal.

        Raises:
            JobNotFound, StateConflict, StaleAttempt, JobCanceled: the refusals.
            QueueUnavailable: Redis does not answer; the transition may have happened.
        """
        prefix = f"{self._settings.redis_prefix}:"
        record, events = record_key(self._settings, job_id), events_key(self._settings, job_id)
        keys = [record, events, prefix, *more_keys]
        values = [job_id, *arguments, self._settings.tombstone_ttl_s]
        with redis_errors():
            reply = cast("Sequence[str]", self._scripts[name](keys=keys, args=values))
        if reply[0] in ("missing", "conflict", "canceled", "stale"):
            refuse(reply, job_id)
        return reply

    def run_each(self, name: str, job_ids: Sequence[str], *arguments: str | int) -> None:
        """Run one for many jobs in one round trip; refusals are not told.

        Raises:
            QueueUnavailable: Redis does not answer; some transitions may have happened.
        """
        values = [*arguments, self._settings.tombstone_ttl_s]
        script, prefix = self._scripts[name], f"{self._settings.redis_prefix}:"
        with redis_errors(), self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                record, events = (
                    record_key(self._settings, job_id),
                    events_key(self._settings, job_id),
                )
                script(keys=[record, events, prefix], args=[job_id, *values], client=pipeline)
            pipeline.execute()


def refuse(reply: Sequence[str], job_id: str) -> None:
    """Raise what a refusing reply means."""
    match reply[0]:
        case "missing":
            raise JobNotFound(f"no job {job_id!r}: the id is unknown, or its record has expired")
        case "conflict":
            raise StateConflict(f"job {job_id} is {reply[1]}", reply[1])
        case "canceled":
            raise JobCanceled(f"job {job_id} was canceled")
        case _:
            raise StaleAttempt(f"job {job_id} is {reply[1]}, at attempt {reply[2]}")
