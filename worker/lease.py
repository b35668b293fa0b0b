"""An attempt's hold on its job: a lease kept alive by a thread; at each step, whether to go on.

Errors that end an attempt, beside `StaleAttempt` and `JobCanceled` of jobs/:

    AttemptStopped
    ├── DeadlineExceeded   the attempt ran longer than `job_deadline_s`
    ├── Drained            the worker stops; another one is to run the job
    ├── AllOver            of jobs that run together, none is wanted any more
    └── Interrupted        the queue told this worker to stop the job
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Self

import structlog

from jobs.errors import JobNotFound, JobsError, QueueUnavailable, StaleAttempt
from jobs.record import Failure, FailureCode, Progress, RecordStore
from jobs.state import CurrentDistance
from worker.settings import WorkerSettings

PROGRESS_INTERVAL_S = 0.25
"""Progress is written this often at most; between, a step costs one read."""
HANG_EXIT_STATUS = 70
_FIRST_PAUSE_S, _LAST_PAUSE_S = 1.0, 15.0

log = structlog.get_logger("worker.lease")


class AttemptStopped(Exception):
    """Base of what ends an attempt from inside the worker."""


class DeadlineExceeded(AttemptStopped):
    """The attempt ran longer than its deadline."""


class Drained(AttemptStopped):
    """The worker stops and its grace is over; another one is to run the job."""


class AllOver(AttemptStopped):
    """Of jobs that run together, none is wanted any more."""


class Interrupted(AttemptStopped):
    """The queue told this worker to stop the job."""


class Lease:
    """Holds one attempt; `on_step` goes into the sampler's loop.

    A thread renews the lease every quarter of it. While Redis is away the attempt computes on: if
    nobody took the job over meanwhile, it is still its own. The same thread is the watchdog of a
    device that hangs: it ends the process, since nothing else ends a CUDA call.

        no step for `stall_s`                  the lease runs out and the job runs elsewhere
        past the deadline and `hang_grace_s`   the job has timed out
    """

    def __init__(
        self,
        records: RecordStore,
        settings: WorkerSettings,
        job_id: str,
        attempt: int,
        on_hang: Callable[[], None] = lambda: os._exit(HANG_EXIT_STATUS),
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.last_step_at = datetime.now(UTC)
        self.distances: tuple[CurrentDistance, ...] = ()
        self._records = records
        self._interval_s = settings.lease_s / 4
        self._deadline_s = settings.job_deadline_s
        self._deadline = time.monotonic() + settings.job_deadline_s
        self._hang_grace_s = settings.hang_grace_s
        self._stall_s = settings.stall_s
        self._watched_since: float | None = None
        self._drain_at: float | None = None
        self._on_hang = on_hang
        self._lost: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {job_id}", daemon=True)
        self._next_progress = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._quiet_until = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=self._interval_s)

    def interrupt(self) -> None:
        """Stop at the next step, as the queue's stop command asks for."""
        self._lost = Interrupted("the queue told this worker to stop the job")

    def lose(self, error: Exception) -> None:
        """Remember why the attempt is over, for `raise_if_over`; the first reason stays."""
        self._lost = self._lost or error

    def rest(self) -> None:
        """The job waits for its neighbours of a batch: its time stands still, nobody watches."""
        self._watched_since, self._deadline = None, math.inf

    def resume(self) -> None:
        """It is the job's turn, with the whole of its time before it."""
        self._deadline = time.monotonic() + self._deadline_s

    def drain(self, grace_s: float) -> None:
        """The worker stops: if the job is not done in `grace_s`, give it back at its next step."""
        self._drain_at = time.monotonic() + grace_s

    def on_step(self, step_index: int, num_steps: int) -> None:
        """Called before each step; costs one round trip to Redis at most.

        Raises:
            StaleAttempt, JobCanceled, DeadlineExceeded, Drained, Interrupted: stop computing.
        """
        self.last_step_at = datetime.now(UTC)
        self._watched_since = now = time.monotonic()
        self.raise_if_over()
        if now < self._quiet_until:
            return
        try:
            if now >= self._next_progress:
                self._next_progress = now + PROGRESS_INTERVAL_S
                self._report(
                    Progress(step=step_index, total_steps=num_steps, distances=self.distances)
                )
            else:
                self._records.check(self.job_id, self.attempt)
            self._pause_s = _FIRST_PAUSE_S
        except QueueUnavailable:
            self._quiet_until = time.monotonic() + self._pause_s
            self._pause_s = min(self._pause_s * 2, _LAST_PAUSE_S)

    def report_stage(self, stage: str, num_steps: int) -> None:
        """Say that all steps are done and what follows.

        Raises:
            StaleAttempt, JobCanceled, DeadlineExceeded, Drained, Interrupted: stop.
        """
        self._watched_since = None
        self.raise_if_over()
        with suppress(QueueUnavailable):
            self._report(
                Progress(
                    step=num_steps, total_steps=num_steps, stage=stage, distances=self.distances
                )
            )

    def check(self) -> None:
        """Ask whether the attempt should go on, between two things that take their time.

        Raises:
            StaleAttempt, JobCanceled, DeadlineExceeded, Drained, Interrupted: stop.
        """
        self.raise_if_over()
        with suppress(QueueUnavailable):
            self._records.check(self.job_id, self.attempt)

    @property
    def is_over(self) -> bool:
        """Whether the attempt has lost its job."""
        return self._lost is not None

    def raise_if_over(self) -> None:
        """Raise what ended the attempt, if something did; asks nobody.

        Raises:
            StaleAttempt, JobCanceled, DeadlineExceeded, Drained, Interrupted: stop.
        """
        if self._lost is not None:
            raise self._lost
        now = time.monotonic()
        if self._drain_at is not None and now > self._drain_at:
            raise Drained("the worker stops")
        if now > self._deadline:
            raise DeadlineExceeded(
                f"the job ran longer than {self._deadline_s:g} s; ask for fewer images, fewer "
                "steps or a smaller size"
            )

    def _report(self, progress: Progress) -> None:
        self._records.progress(self.job_id, self.attempt, progress)

    def _keep(self) -> None:
        while not self._ended.wait(self._interval_s):
            try:
                self._records.heartbeat(self.job_id, self.attempt)
            except (StaleAttempt, JobNotFound) as error:
                self.lose(error)
            except JobsError as error:
                log.warning("lease.not_renewed", job_id=self.job_id, reason=str(error))
            now, since = time.monotonic(), self._watched_since
            if now > self._deadline + self._hang_grace_s:
                self._time_out()
            elif since is None or now <= since + self._stall_s:
                continue
            log.error("job.hangs", job_id=self.job_id, last_step_at=self.last_step_at.isoformat())
            self._on_hang()
            return

    def _time_out(self) -> None:
        failure = Failure(
            code=FailureCode.TIMED_OUT,
            message=f"the job hung past its deadline of {self._deadline_s:g} s",
        )
        with suppress(JobsError):
            self._records.fail(self.job_id, self.attempt, failure)


class Company:
    """The leases of jobs that run in one batch: its `on_step` goes on while any job is wanted."""

    def __init__(self, leases: Sequence[Lease]) -> None:
        self._wanted = list(leases)

    def on_step(self, step_index: int, num_steps: int) -> None:
        """Before each step: who was canceled or lost leaves, and the others go on.

        Raises:
            DeadlineExceeded, Drained, Interrupted: it ends for all.
            AllOver: nobody is left.
        """
        for lease in tuple(self._wanted):
            try:
                lease.on_step(step_index, num_steps)
            except (StaleAttempt, JobNotFound) as error:
                lease.lose(error)
                self._wanted.remove(lease)
        if not self._wanted:
            raise AllOver("no job of the batch is wanted any more")
