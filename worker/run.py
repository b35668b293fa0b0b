"""One job's course: take it, compute, store, publish; or say why not. RQ calls `run` with its id.

What is stored becomes visible only through `RecordStore.succeed`, which the attempt that owns the
job alone can do; one that lost it deletes what it made.
"""

from __future__ import annotations

import errno
import hashlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import structlog
from PIL import Image, UnidentifiedImageError

from jobs.errors import (
    JobCanceled,
    JobNotFound,
    JobsError,
    ObjectNotFound,
    QueueUnavailable,
    StaleAttempt,
    StateConflict,
    StorageFull,
    StorageUnavailable,
)
from jobs.queue import JobQueue
from jobs.record import Failure, FailureCode, JobRecord, RecordStore
from jobs.request import GenerationRequest, OutputOptions, StoredImage
from jobs.result import attempt_prefix
from jobs.store import ObjectStore
from worker.failures import DeviceLost
from worker.lease import DeadlineExceeded, Drained, Interrupted, Lease
from worker.patience import patiently
from worker.publish import Publication, publish
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.execute import Execution

QUEUE_PATIENCE_S = 120.0

log = structlog.get_logger("worker.run")


class InvalidTarget(Exception):
    """A control image that cannot be used; the message says what to change."""


class Engine(Protocol):
    """What computes; worker/engine.py has the real one."""

    device: str
    dtype: str

    def loaded(self) -> tuple[str, ...]:
        """Names of the models in memory."""

    def execute(
        self,
        request: GenerationRequest,
        load_image: Callable[[StoredImage], Image.Image],
        on_step: Callable[[int, int], None],
    ) -> Execution:
        """Run a request."""

    def encode(
        self, image: Image.Image, output: OutputOptions, parameters: dict[str, Any] | None
    ) -> bytes:
        """An image as a file."""

    def failure_of(self, error: Exception) -> Failure | None:
        """An expected failure; None: a bug."""


@dataclass(frozen=True)
class Activity:
    """What the worker does now, for its sign of life."""

    job: str | None
    last_step_at: datetime | None
    jobs_done: int


class Runner:
    """Runs jobs one after the other with what stays loaded between them."""

    def __init__(
        self,
        settings: WorkerSettings,
        name: str,
        records: RecordStore,
        store: ObjectStore,
        engine: Engine,
        queue: JobQueue | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            settings: patience, deadline and wear.
            name: of this worker, for the records.
            records: the truth.
            store: where results go.
            engine: what computes.
            queue: where jobs that are given back go; None leaves that to the reconciler.
        """
        self.name = name
        self.engine = engine
        self._settings = settings
        self._records = records
        self._store = store
        self._queue = queue
        self._lease: Lease | None = None
        self._jobs_done = 0
        self._drains = False
        self._device_lost = False

    @property
    def activity(self) -> Activity:
        """What it does now."""
        lease = self._lease
        job, step = (lease.job_id, lease.last_step_at) if lease else (None, None)
        return Activity(job, step, self._jobs_done)

    def interrupt(self) -> None:
        """Stop the job that runs, at its next step."""
        if self._lease is not None:
            self._lease.interrupt()

    def drain(self) -> None:
        """The worker stops: the job that runs has `drain_grace_s`, then it is given back."""
        self._drains = True
        if self._lease is not None:
            self._lease.drain(self._settings.drain_grace_s)

    @property
    def worn_out(self) -> str | None:
        """Why this process should end now, between two jobs; None: it need not."""
        settings = self._settings
        if self._device_lost:
            return "the device takes no more work"
        if settings.recycle_jobs and self._jobs_done >= settings.recycle_jobs:
            return f"it has run {self._jobs_done} jobs"
        if settings.recycle_rss_bytes:
            resident = psutil.Process().memory_info().rss
            if resident > settings.recycle_rss_bytes:
                return f"it holds {resident} bytes of memory"
        return None

    def run(self, job_id: str) -> None:
        """One attempt of a job, whatever comes of it; expected outcomes raise nothing."""
        try:
            attempt = self._records.start(job_id, self.name)
            record = self._records.get(job_id)
        except (JobNotFound, StateConflict) as reason:
            log.info("job.not_started", job_id=job_id, reason=str(reason))
            return
        except QueueUnavailable as error:
            log.warning("job.not_started", job_id=job_id, reason=str(error))
            return
        event = _facts(record)
        bound = {"job_id": job_id, "request_id": record.request_id, "attempt": attempt}
        with structlog.contextvars.bound_contextvars(**bound):
            start = time.perf_counter()
            with Lease(self._records, self._settings, job_id, attempt) as lease:
                self._lease = lease
                if self._drains:
                    lease.drain(self._settings.drain_grace_s)
                try:
                    event |= self._attempt(record, lease)
                finally:
                    self._lease = None
                    self._jobs_done += 1
            event["seconds"] = round(time.perf_counter() - start, 3)
            log.info("job.finished", **event)

    def _attempt(self, record: JobRecord, lease: Lease) -> dict[str, Any]:
        """Compute and publish; returns what the wide event says of it."""
        try:
            return self._generate(record, lease)
        except JobCanceled:
            self._discard(lease)
            self._tell(lambda: self._records.acknowledge_cancel(lease.job_id, lease.attempt))
            return {"outcome": "canceled"}
        except (StaleAttempt, JobNotFound) as error:
            self._discard(lease)
            return {"outcome": "lost", "reason": str(error)}
        except QueueUnavailable as error:
            return {"outcome": "lost", "reason": str(error)}
        except Interrupted:
            self._discard(lease)
            self._tell(lambda: self._records.request_cancel(lease.job_id))
            self._tell(lambda: self._records.acknowledge_cancel(lease.job_id, lease.attempt))
            return {"outcome": "canceled", "reason": "stopped by the queue"}
        except Drained:
            self._give_back(lease)
            return {"outcome": "released"}
        except DeviceLost as error:  # the lease runs out, and the attempt counts
            self._device_lost = True
            return {"outcome": "lost", "reason": str(error)}
        except (SystemExit, KeyboardInterrupt):
            self._give_back(lease)
            raise
        except Exception as error:
            return self._fail(lease, error)

    def _give_back(self, lease: Lease) -> None:
        """The job goes to another worker, at once where that can be."""
        try:
            self._records.release(lease.job_id, lease.attempt)
            if self._queue is not None:
                self._queue.enqueue_id(lease.job_id)
        except JobsError as error:  # then its lease runs out, or the reconciler enqueues it
            log.warning("job.not_given_back", reason=str(error))
        log.info("job.released")

    def _generate(self, record: JobRecord, lease: Lease) -> dict[str, Any]:
        request = record.request
        execution = self.engine.execute(request, self._image_loader(lease), lease.on_step)
        lease.report_stage("storing", request.num_inference_steps)
        start = time.perf_counter()
        publication = Publication(lease.job_id, lease.attempt, request, execution)

        def put(key: str, data: bytes, media_type: str) -> None:
            self._with_storage(lambda: self._store.put_bytes(key, data, media_type), lease)

        result = publish(publication, self.engine.encode, put)
        lease.raise_if_over()
        timings = execution.timings | {"store": round(time.perf_counter() - start, 4)}
        result = result.model_copy(update={"timings": timings})
        patiently(
            lambda: self._records.succeed(lease.job_id, lease.attempt, result),
            QueueUnavailable,
            QUEUE_PATIENCE_S,
        )
        return {
            "outcome": "succeeded",
            "timings": timings,
            "distances": execution.distances,
            "device": execution.device,
            "dtype": execution.dtype,
            "peak_bytes": execution.peak_bytes,
        }

    def _image_loader(self, lease: Lease) -> Callable[[StoredImage], Image.Image]:
        def load(stored: StoredImage) -> Image.Image:
            data = self._with_storage(lambda: self._store.get_bytes(stored.key), lease)
            if hashlib.sha256(data).hexdigest() != stored.sha256:
                raise InvalidTarget(
                    f"the control image {stored.upload_id} was changed after its upload; upload "
                    "it again"
                )
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return image

        return load

    def _with_storage(self, call: Callable[[], Any], lease: Lease) -> Any:
        patience_s = self._settings.storage_patience_s
        return patiently(call, StorageUnavailable, patience_s, lease.raise_if_over)

    def _fail(self, lease: Lease, error: Exception) -> dict[str, Any]:
        failure = self._failure_of(error)
        if failure.code is FailureCode.INTERNAL:
            log.exception("job.bug", exc_info=error)
        self._tell(lambda: self._records.fail(lease.job_id, lease.attempt, failure))
        self._discard(lease)
        return {"outcome": "failed", "code": failure.code.value, "reason": failure.message}

    def _failure_of(self, error: Exception) -> Failure:
        match error:
            case DeadlineExceeded():
                return Failure(code=FailureCode.TIMED_OUT, message=str(error))
            case StorageFull():
                message = "object storage is full; the operator must make room; then try again"
                return Failure(code=FailureCode.STORAGE_UNAVAILABLE, message=message)
            case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
                message = "the worker's disk is full; the operator must make room; then try again"
                return Failure(code=FailureCode.STORAGE_UNAVAILABLE, message=message)
            case StorageUnavailable():
                message = "object storage did not answer; the operator must see to it; try later"
                return Failure(code=FailureCode.STORAGE_UNAVAILABLE, message=message)
            case ObjectNotFound():
                message = "a control image is no longer in storage; upload it again"
                return Failure(code=FailureCode.INVALID_TARGET, message=message)
            case InvalidTarget():
                return Failure(code=FailureCode.INVALID_TARGET, message=str(error))
            case UnidentifiedImageError():
                message = "a control image cannot be decoded; upload it again"
                return Failure(code=FailureCode.INVALID_TARGET, message=message)
        return self.engine.failure_of(error) or Failure(
            code=FailureCode.INTERNAL,
            message="a fault of the service; please report it with the job's id",
        )

    def _tell(self, call: Callable[[], object]) -> None:
        """Make a final transition; one that Redis cannot take now is the reconciler's to make."""
        try:
            patiently(call, QueueUnavailable, QUEUE_PATIENCE_S)
        except JobsError as error:
            log.warning("job.transition_not_made", reason=str(error))

    def _discard(self, lease: Lease) -> None:
        """Delete what the attempt stored; the reconciler does it where storage is away."""
        try:
            self._store.delete_prefix(attempt_prefix(lease.job_id, lease.attempt))
        except JobsError as error:
            log.warning("job.not_discarded", reason=str(error))


def _facts(record: JobRecord) -> dict[str, Any]:
    """What the wide event says of the request."""
    request, waited_s = record.request, None
    if record.started_at is not None:
        waited_s = round((record.started_at - record.created_at).total_seconds(), 3)
    return {
        "task": request.task,
        "model": request.model,
        "heads": [control.head for control in request.controls],
        "steps": request.num_inference_steps,
        "num_images": request.num_images,
        "size": [request.width, request.height],
        "queue_wait_s": waited_s,
        "taken_at": datetime.now(UTC).isoformat(),
    }


_runner: Runner | None = None


def serve_with(runner: Runner) -> None:
    """Name the runner of this process's jobs."""
    global _runner
    _runner = runner


def run(job_id: str) -> None:
    """What the queue calls."""
    if _runner is None:
        raise RuntimeError("this process serves no jobs: start it with `readout worker`")
    _runner.run(job_id)
