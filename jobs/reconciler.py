"""The reconciler: finds jobs that were lost on the way and puts them right; a CPU process.

What it looks for, every few seconds:
    a running record whose lease ran out     → queued again, or failed as worker_lost
    a queued record that is in no list       → enqueued again
    a canceled record whose worker is silent → no longer waited for
    objects of attempts that did not win     → deleted, now and once more later (a worker may hang)
    records that have expired                → their objects and index entries removed
    batches whose last job has ended         → their results listed in one manifest
    uploads older than `upload_ttl_s`        → deleted, unless a job that waits or runs needs them
    shared references too old or too many    → deleted, the oldest first

Any number may run; a lock in Redis lets one work. All of it is safe to repeat.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any, cast

import redis
import structlog

from jobs.batches import BatchRecord, BatchStore, batch_prefix
from jobs.connection import connect, redis_errors
from jobs.errors import JobNotFound, QueueUnavailable, StateConflict, StorageUnavailable
from jobs.keys import (
    batch_key,
    batches_key,
    canceling_key,
    ended_batches_key,
    expiring_key,
    index_key,
    reconciler_key,
    record_key,
    sweep_key,
    tombstone_key,
)
from jobs.queue import JobQueue
from jobs.record import Failure, FailureCode, JobState, RecordStore
from jobs.references import expire_references
from jobs.result import attempt_prefix, job_prefix
from jobs.settings import CoreSettings
from jobs.store import ObjectStore

INTERVAL_S = 5.0
LAST_SWEEP_DELAY_S = 600.0
CLEANING_S = 3.0
"""Longest that one kind of cleaning goes on in a pass; the next pass goes on with it."""
UPLOADS_INTERVAL_S = 600.0
"""Between two looks at the age of uploads and references, which list all of them."""
UPLOADS = "uploads/"
_UPLOAD = re.compile(rf"{UPLOADS}upl_[0-9a-f]{{32}}")
_BATCH = 100
_LOCK_S = 12
_WORKER_LOST = Failure(
    code=FailureCode.WORKER_LOST,
    message="every worker that ran this job was lost; it may need more memory than there is: try "
    "a smaller size or fewer images",
)

log = structlog.get_logger("jobs.reconciler")


class Reconciler:
    """One pass is `reconcile_once`; what it remembers between passes is only about patience."""

    def __init__(
        self, settings: CoreSettings, client: redis.Redis, queue: JobQueue, store: ObjectStore
    ) -> None:
        self._settings = settings
        self._redis = client
        self._queue = queue
        self._store = store
        self._records = RecordStore(client, settings)
        self._batches = BatchStore(client, settings)
        self._missing: set[str] = set()
        self._uploads_due = 0.0
        self._token = secrets.token_hex(8)
        self._take_lock = client.register_script(_TAKE_LOCK)
        self._manifest_written = client.register_script(_MANIFEST_WRITTEN)

    def reconcile_once(self, *, expire_leases: bool = True) -> None:
        """One pass over everything that is active or due.

        Args:
            expire_leases: False just after Redis came back, when workers could not renew theirs.

        Raises:
            QueueUnavailable: Redis does not answer; the next pass does what this one did not.
        """
        if not self._has_lock():
            self._missing.clear()
            return
        if expire_leases:
            self._expire_leases()
        self._enqueue_missing()
        self._forget_silent_cancels()
        for clean in (self._write_manifests, self._sweep, self._trim, self._trim_batches):
            self._unless_storage_fails(clean)
        if time.monotonic() >= self._uploads_due:
            self._uploads_due = time.monotonic() + UPLOADS_INTERVAL_S
            # Of the first to start, the bucket may be missing still.
            for clean in (self._store.ensure_bucket, self._expire_uploads, self._expire_references):
                self._unless_storage_fails(clean)

    def give_way(self) -> None:
        """Let another reconciler work at once, not only when the lock has expired."""
        with suppress(QueueUnavailable), redis_errors():
            if self._redis.get(reconciler_key(self._settings)) == self._token:
                self._redis.delete(reconciler_key(self._settings))

    def _has_lock(self) -> bool:
        with redis_errors():
            keys = [reconciler_key(self._settings)]
            return bool(self._take_lock(keys=keys, args=[self._token, _LOCK_S]))

    def _expire_leases(self) -> None:
        for job_id in self._records.active(JobState.RUNNING):
            try:
                outcome = self._records.expire_lease(job_id, _WORKER_LOST)
            except (JobNotFound, StateConflict):
                continue  # it ended meanwhile
            if outcome is None:
                continue
            log.warning("job.worker_lost", job_id=job_id, now=str(outcome))
            if outcome is JobState.QUEUED:
                self._queue.enqueue_id(job_id)

    def _enqueue_missing(self) -> None:
        """Write tickets where fewer wait than jobs do, two passes running; one may just be moving.

        Which job a ticket names does not matter: a worker takes what is next in line.
        """
        queued, tickets = self._records.active(JobState.QUEUED), self._queue.waiting()
        missing = set(queued) - set(tickets)
        short = max(0, len(queued) - len(tickets))
        for job_id in sorted(missing & self._missing)[:short]:
            log.warning("job.enqueued_again", job_id=job_id)
            self._queue.forget_popped(job_id)
            self._queue.enqueue_id(job_id)
        self._missing = missing - self._missing

    def _forget_silent_cancels(self) -> None:
        key, now_ms = canceling_key(self._settings), self._now_ms()
        with redis_errors():
            for job_id in cast("list[str]", self._redis.zrangebyscore(key, "-inf", now_ms)):
                if self._redis.zrem(key, job_id):
                    log.warning("job.cancel_unacknowledged", job_id=job_id)

    def _sweep(self) -> None:
        """Delete the objects of attempts that did not win, unless one did win after all."""
        key, now_ms = sweep_key(self._settings), self._now_ms()
        for member in self._due(key, now_ms):
            job_id, attempt, round_number = member.split("/")
            if not self._owns_objects(job_id, attempt):
                deleted = self._store.delete_prefix(attempt_prefix(job_id, int(attempt)))
                if deleted:
                    log.info("job.swept", job_id=job_id, attempt=int(attempt), objects=deleted)
            with redis_errors(), self._redis.pipeline() as pipeline:
                pipeline.zrem(key, member)
                if round_number == "1":
                    again = now_ms + int(LAST_SWEEP_DELAY_S * 1000)
                    pipeline.zadd(key, {f"{job_id}/{attempt}/2": again})
                pipeline.execute()

    def _owns_objects(self, job_id: str, attempt: str) -> bool:
        with redis_errors():
            found = self._redis.hmget(record_key(self._settings, job_id), ["state", "attempt"])
        return found in ([JobState.SUCCEEDED, attempt], [JobState.RUNNING, attempt])

    def _trim(self) -> None:
        """Remove the objects and index entries of records that have expired."""
        key = expiring_key(self._settings)
        for job_id in self._due(key, self._now_ms()):
            with redis_errors():
                if self._redis.exists(record_key(self._settings, job_id)):
                    continue  # it has a moment left
            self._store.delete_prefix(job_prefix(job_id))
            with redis_errors(), self._redis.pipeline() as pipeline:
                owner = cast("str", self._redis.get(tombstone_key(self._settings, job_id)) or "")
                for name in ("all", *JobState):
                    pipeline.zrem(index_key(self._settings, name), job_id)
                    pipeline.zrem(index_key(self._settings, name, owner), job_id)
                pipeline.zrem(key, job_id)
                pipeline.execute()

    def _due(self, key: str, now_ms: int) -> Iterator[str]:
        """What is due in a set by time, oldest first, for as long as a pass may take."""
        end, start = time.monotonic() + CLEANING_S, "-inf"
        while True:
            with redis_errors():
                found: Any = self._redis.zrangebyscore(
                    key, start, now_ms, start=0, num=_BATCH, withscores=True
                )
            for member, _ in found:
                if time.monotonic() > end:
                    return
                yield member
            if len(found) < _BATCH:
                return
            start = f"({found[-1][1]:.0f}"

    def _write_manifests(self) -> None:
        """The results of batches whose last job has ended; again, when some were tried again."""
        ended = ended_batches_key(self._settings)
        with redis_errors():
            batches = cast("set[str]", self._redis.smembers(ended))
        for batch in batches:
            try:
                record = self._batches.get(batch)
            except JobNotFound:
                with redis_errors():
                    self._redis.srem(ended, batch)
                continue
            if record.finished_at is not None:
                self._write_manifest(record, record.finished_at)

    def _write_manifest(self, record: BatchRecord, finished_at: datetime) -> None:
        """Write it, and only then forget that it is to be written; not if it ended anew since."""
        key = f"{batch_prefix(record.id)}results.jsonl"
        self._store.put_bytes(key, self._batches.manifest(record), "application/jsonl")
        of = str(round(finished_at.timestamp() * 1000))
        keys = [ended_batches_key(self._settings), batch_key(self._settings, record.id)]
        with redis_errors():
            self._manifest_written(keys=keys, args=[record.id, of, key])
        log.info("batch.ended", batch=record.id, state=record.state.value, jobs=record.total)

    def _trim_batches(self) -> None:
        """Remove the oldest batches whose records have expired, with their manifests."""
        key = batches_key(self._settings)
        with redis_errors():
            oldest = cast("list[str]", self._redis.zrange(key, 0, _BATCH - 1))
            for batch in oldest:
                if not self._redis.exists(batch_key(self._settings, batch)):
                    self._store.delete_prefix(batch_prefix(batch))
                    self._redis.zrem(key, batch)

    def _expire_uploads(self) -> None:
        old = self._store.list_older(UPLOADS, self._settings.upload_ttl_s)
        needed: set[str] = set()
        if old:
            for state in (JobState.QUEUED, JobState.RUNNING):
                for record in self._records.fetch(self._records.active(state)):
                    needed.update(_UPLOAD.findall(record.request.model_dump_json()))
        expired = [key for key in old if key.rpartition(".")[0] not in needed]
        for key in expired:
            self._store.delete(key)
        if expired:
            log.info("uploads.expired", objects=len(expired))

    def _expire_references(self) -> None:
        if deleted := expire_references(self._store, self._settings):
            log.info("references.expired", objects=deleted)

    def _unless_storage_fails(self, clean: Callable[[], None]) -> None:
        try:
            clean()
        except StorageUnavailable as error:
            log.warning("reconciler.storage_unavailable", reason=str(error))

    def _now_ms(self) -> int:
        with redis_errors():
            seconds, microseconds = self._redis.time()
        return seconds * 1000 + microseconds // 1000


def run_forever(settings: CoreSettings, stop_event: threading.Event) -> None:
    """Reconcile every few seconds until `stop_event` is set; outlives outages of Redis and S3."""
    client, queue, store = connect(settings), JobQueue(settings), ObjectStore(settings)
    reconciler = Reconciler(settings, client, queue, store)
    connected_since: float | None = None
    log.info("reconciler.ready")
    while not stop_event.is_set():
        try:
            connected_since = connected_since or time.monotonic()
            # Workers renew their leases every quarter; after an outage, let them do so first.
            settled = time.monotonic() - connected_since >= settings.lease_s / 2
            reconciler.reconcile_once(expire_leases=settled)
        except QueueUnavailable as error:
            connected_since = None
            log.warning("reconciler.queue_unavailable", reason=str(error))
        except Exception:
            log.exception("reconciler.failed")
        stop_event.wait(INTERVAL_S)
    reconciler.give_way()
    for connection in (client, queue, store):
        connection.close()
    log.info("reconciler.stopped")


_MANIFEST_WRITTEN = """
if redis.call('HGET', KEYS[2], 'finished_at') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[2], 'manifest_of', ARGV[2], 'manifest_key', ARGV[3])
redis.call('SREM', KEYS[1], ARGV[1])
return 1
"""

_TAKE_LOCK = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""
