"""The course of jobs: take them, compute, store, publish; or say why not. RQ calls `run`.

RQ's job is a ticket and means that something waits; which job it is, `RecordStore.take` says, and
jobs that fit together are taken and computed together. What is stored becomes visible only through
`RecordStore.succeed`, which the attempt that owns the job alone can do; one that lost it deletes
what it made.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import structlog
from PIL import Image

from jobs.errors import (
    JobCanceled,
    JobNotFound,
    JobsError,
    QueueUnavailable,
    StaleAttempt,
    StorageUnavailable,
)
from jobs.figures import Figures
from jobs.queue import JobQueue
from jobs.record import Failure, FailureCode, JobRecord, RecordStore
from jobs.request import GenerationRequest, OutputOptions, StoredImage
from jobs.result import attempt_prefix
from jobs.store import ObjectStore
from worker.failures import BatchTooLarge, DeviceLost, InvalidTarget, failure_of
from worker.lease import Company, Drained, Interrupted, Lease
from worker.patience import patiently
from worker.previews import Onlookers, Previews
from worker.publish import Publication, publish
from worker.ranking import keep_best
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.execute import Execution
    from worker.watch import Audience

QUEUE_PATIENCE_S = 120.0

log = structlog.get_logger("worker.run")


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
        audience: Audience | None = None,
    ) -> Execution:
        """Run a request."""

    def execute_together(
        self,
        requests: Sequence[GenerationRequest],
        load_image: Callable[[StoredImage], Image.Image],
        on_step: Callable[[int, int], None],
        audience: Audience | None = None,
    ) -> Sequence[Execution]:
        """Run requests of one group (jobs/schedule.py) in one batch."""

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


@dataclass(frozen=True)
class _Held:
    """A job that this worker has taken, its hold on it, and what is shown of it."""

    record: JobRecord
    lease: Lease
    previews: Previews
    start: float = field(default_factory=time.perf_counter)


class Runner:
    """Runs jobs, one batch after the other, with what stays loaded between them."""

    def __init__(
        self,
        settings: WorkerSettings,
        name: str,
        records: RecordStore,
        store: ObjectStore,
        engine: Engine,
        queue: JobQueue | None = None,
        figures: Figures | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            settings: patience, deadline and wear.
            name: of this worker, for the records.
            records: the truth.
            store: where results go.
            engine: what computes.
            queue: where jobs that are given back go; None leaves that to the reconciler.
            figures: where what jobs took is kept, for estimates; None keeps it nowhere.
        """
        self.name = name
        self.engine = engine
        self._settings = settings
        self._records = records
        self._store = store
        self._queue = queue
        self._figures = figures
        self._leases: Sequence[Lease] = ()
        self._previews = ThreadPoolExecutor(1, "previews")
        self._batch_pixels = settings.batch_pixels
        self._jobs_done = 0
        self._drains = False
        self._device_lost = False

    @property
    def activity(self) -> Activity:
        """What it does now."""
        leases = self._leases
        if not leases:
            return Activity(None, None, self._jobs_done)
        last_step_at = max(lease.last_step_at for lease in leases)
        return Activity(leases[0].job_id, last_step_at, self._jobs_done)

    def interrupt(self) -> None:
        """Stop what runs, at its next step."""
        for lease in self._leases:
            lease.interrupt()

    def drain(self) -> None:
        """The worker stops: what runs has `drain_grace_s`, then it is given back."""
        self._drains = True
        for lease in self._leases:
            lease.drain(self._settings.drain_grace_s)

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

    def run(self, ticket: str) -> None:
        """Run what is next in line, whatever comes of it; expected outcomes raise nothing.

        Args:
            ticket: the id of a job that was waiting when it was written; another may be next.
        """
        most = self._settings.batch_images
        try:
            records = self._records.take(self.name, most, self._batch_pixels)
        except QueueUnavailable as error:
            log.warning("job.not_started", ticket=ticket, reason=str(error))
            return
        held = [self._hold(record) for record in records]
        with ExitStack() as leases:
            self._leases = tuple(leases.enter_context(one.lease) for one in held)
            if self._drains:
                self.drain()
            try:
                self._together(held)
            except (SystemExit, KeyboardInterrupt):
                for one in held:
                    self._give_back(one.lease)
                raise
            finally:
                self._leases = ()
                self._jobs_done += len(held)

    def _hold(self, record: JobRecord) -> _Held:
        lease = Lease(self._records, self._settings, record.id, record.attempt)
        parts = self._records, self.engine.encode, self._store.put_bytes, self._previews
        return _Held(record, lease, Previews(lease, record.request, *parts))

    def _together(self, held: Sequence[_Held]) -> None:
        """Compute in one batch; where that fails, in halves or alone, so that each fails alone."""
        executions: Sequence[Execution | None] = [None] * len(held)
        if len(held) > 1:
            try:
                executions = self._compute([one.record for one in held], held)
            except BatchTooLarge as error:
                pixels = sum(_pixels(one.record.request) for one in held)
                self._batch_pixels = pixels // 2
                log.warning("batch.halved", jobs=len(held), reason=str(error))
                middle = len(held) // 2
                self._together(held[:middle])
                self._together(held[middle:])
                return
            except DeviceLost as error:
                log.error("device.lost", reason=str(error))
                self._device_lost = True
                return
            except Exception as error:
                log.info("batch.one_by_one", jobs=len(held), reason=type(error).__name__)
        for one, execution in zip(held, executions, strict=True):
            if not self._device_lost:
                self._one(one, execution)

    def _compute(self, records: Sequence[JobRecord], held: Sequence[_Held]) -> Sequence[Execution]:
        leases = [one.lease for one in held]
        company = Company(leases)
        load_image = self._image_loader(leases[0])
        requests = [record.request for record in records]
        for lease in leases:
            lease.resume()
        try:
            return self.engine.execute_together(
                requests, load_image, company.on_step, _onlookers(held)
            )
        finally:
            for lease in leases:
                lease.rest()

    def _one(self, one: _Held, execution: Execution | None) -> None:
        """The end of one job: computed alone where that was not done together; the wide event."""
        record = one.record
        one.lease.resume()
        bound = {"job_id": record.id, "request_id": record.request_id, "attempt": record.attempt}
        with structlog.contextvars.bound_contextvars(**bound):
            event = _facts(record) | {"together": len(self._leases)}
            event |= self._attempt(one, execution)
            one.lease.rest()  # until its neighbours are done too
            event["seconds"] = round(time.perf_counter() - one.start, 3)
            log.info("job.finished", **event)

    def _attempt(self, one: _Held, execution: Execution | None) -> dict[str, Any]:
        """Compute and publish; returns what the wide event says of it."""
        lease = one.lease
        try:
            with closing(one.previews):  # before anything that the attempt stored is deleted
                return self._generate(one, execution)
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
        except Exception as error:
            return self._fail(lease, error)

    def _give_back(self, lease: Lease) -> None:
        """The job goes to another worker, at once where that can be; an ended one stays so."""
        try:
            self._records.release(lease.job_id, lease.attempt)
            if self._queue is not None:
                self._queue.enqueue_id(lease.job_id)
        except JobsError as error:  # then its lease runs out, or the reconciler enqueues it
            log.warning("job.not_given_back", reason=str(error))
        log.info("job.released")

    def _generate(self, one: _Held, execution: Execution | None) -> dict[str, Any]:
        request, lease = one.record.request, one.lease
        if execution is None:
            load_image = self._image_loader(lease)
            execution = self.engine.execute(request, load_image, lease.on_step, _onlookers([one]))
        lease.report_stage("storing", request.num_steps)
        start = time.perf_counter()
        execution = keep_best(request, execution)
        one.previews.finish()
        seen = one.previews.frames, one.previews.sha256
        publication = Publication(lease.job_id, lease.attempt, request, execution, *seen)

        def put(key: str, data: bytes, media_type: str) -> None:
            lease.check()
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
        if self._figures is not None and len(self._leases) == 1:
            with suppress(QueueUnavailable):
                self._figures.keep(request, timings, execution.device, execution.peak_bytes)
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
        failure = failure_of(error, self.engine.failure_of)
        if failure.code is FailureCode.INTERNAL:
            log.exception("job.bug", exc_info=error)
        self._tell(lambda: self._records.fail(lease.job_id, lease.attempt, failure))
        self._discard(lease)
        return {"outcome": "failed", "code": failure.code.value, "reason": failure.message}

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


def _onlookers(held: Sequence[_Held]) -> Onlookers:
    return Onlookers([(one.record.request, one.lease, one.previews) for one in held])


def _pixels(request: GenerationRequest) -> int:
    return request.num_samples * request.height * request.width


def _facts(record: JobRecord) -> dict[str, Any]:
    """What the wide event says of the request."""
    request, waited_s = record.request, None
    if record.started_at is not None:
        waited_s = round((record.started_at - record.created_at).total_seconds(), 3)
    return {
        "task": request.task,
        "model": request.model,
        "heads": [control.head for control in request.controls],
        "adapters": [adapter.model for adapter in request.adapters],
        "steps": request.num_steps,
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


def run(ticket: str) -> None:
    """What the queue calls."""
    if _runner is None:
        raise RuntimeError("this process serves no jobs: start it with `readout worker`")
    _runner.run(ticket)
