"""The transport: an RQ queue that carries job ids, nothing else; the only import of rq here.

RQ's job is no record of ours: it may be lost, doubled or late, and the compare-and-set of
`RecordStore.start` decides whether it means anything. Its serializer is JSON on both sides.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import redis
import structlog
from rq import Queue
from rq.serializers import JSONSerializer

from jobs.connection import connect, redis_errors
from jobs.errors import QueueUnavailable
from jobs.record import JobRecord
from jobs.settings import CoreSettings

ENTRY_POINT = "worker.run.run"
"""What the worker calls with the job's id; a name, so that jobs/ imports no worker."""
_FAILURE_TTL_S = 60
_CHUNK = 500

log = structlog.get_logger("jobs.queue")


def queue_name(settings: CoreSettings) -> str:
    """The RQ queue of these settings; the prefix keeps deployments on one Redis apart."""
    return f"{settings.redis_prefix}:{settings.queue}"


def open_queue(settings: CoreSettings, client: redis.Redis | None = None) -> Queue:
    """The one queue, as gateway, reconciler and worker see it.

    Args:
        settings: name and place.
        client: one that returns bytes; None connects.
    """
    return Queue(
        queue_name(settings),
        connection=client or connect(settings, decode=False),
        serializer=JSONSerializer,
    )


class JobQueue:
    """Puts job ids into the queue and looks at what is in it."""

    def __init__(self, settings: CoreSettings) -> None:
        self._queue = open_queue(settings)

    def close(self) -> None:
        """Close the connections."""
        self._queue.connection.close()

    def enqueue(self, record: JobRecord) -> None:
        """Hand a queued record's id to the workers; harmless when it is there already.

        Raises:
            QueueUnavailable: Redis does not answer; the reconciler enqueues the record later.
        """
        self.enqueue_id(record.id)

    def enqueue_id(self, job_id: str) -> None:
        """As `enqueue`, for the reconciler, which knows ids.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with redis_errors(), self._queue.connection.pipeline() as pipeline:
            self._queue.enqueue_call(ENTRY_POINT, pipeline=pipeline, **_ticket(job_id))
            pipeline.execute()  # one round trip; by itself RQ takes three

    def enqueue_ids(self, job_ids: Sequence[str]) -> None:
        """As `enqueue_id`, for the jobs of a batch, in a few round trips.

        Raises:
            QueueUnavailable: Redis does not answer; the reconciler enqueues what is missing.
        """
        with redis_errors():
            for start in range(0, len(job_ids), _CHUNK):
                self._queue.enqueue_many(
                    [
                        Queue.prepare_data(ENTRY_POINT, **_ticket(job_id))
                        for job_id in job_ids[start : start + _CHUNK]
                    ]
                )

    def waiting(self) -> Sequence[str]:
        """The ids of the jobs that no worker has popped yet, next one first.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with redis_errors():
            return tuple(name.partition("-")[0] for name in self._queue.get_job_ids())

    def forget_popped(self, job_id: str) -> None:
        """Drop what a worker left of a job that it popped and then did not start.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with redis_errors():
            intermediate = self._queue.intermediate_queue
            for name in intermediate.get_job_ids():
                if name.partition("-")[0] == job_id:
                    intermediate.remove(name)


class TicketWriter:
    """Enqueues from a thread of its own: in one trip, all that has come in during the last one.

    What it has not written when its process dies, or when Redis is away, the reconciler does.
    """

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._waiting: SimpleQueue[str | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="tickets", daemon=True)
        self._starting = threading.Lock()

    def put(self, job_id: str) -> None:
        """Have a queued job enqueued; returns at once."""
        self._waiting.put(job_id)
        if self._thread.ident is None:
            with self._starting:
                if self._thread.ident is None:
                    self._thread.start()

    def close(self) -> None:
        """Write what waits, and end."""
        self._waiting.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _write(self) -> None:
        ended = False
        while not ended:
            found = [self._waiting.get()]
            with suppress(Empty):
                while len(found) < _CHUNK:
                    found.append(self._waiting.get_nowait())
            ended = None in found
            job_ids = [job_id for job_id in found if job_id is not None]
            try:
                self._queue.enqueue_ids(job_ids)
            except QueueUnavailable as error:
                log.warning("enqueue_deferred", jobs=len(job_ids), reason=str(error))
            except Exception:  # the reconciler writes these; the thread must write what follows
                log.exception("enqueue_failed", jobs=len(job_ids))


def _ticket(job_id: str) -> dict[str, Any]:
    """An RQ job that means that this job, or another one, waits."""
    return {
        "args": (job_id,),
        "job_id": f"{job_id}-{secrets.token_hex(4)}",
        "timeout": -1,
        "result_ttl": 0,
        "failure_ttl": _FAILURE_TTL_S,
        "description": job_id,
    }
