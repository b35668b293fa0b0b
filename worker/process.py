"""The worker process as RQ sees it: one queue, jobs in this process, heartbeats while they run.

Deviations from rq.SimpleWorker, each with its reason:
    heartbeat thread   SimpleWorker sends none while a job runs; others would take it for dead
    no death penalty   SIGALRM waits for the running C call and is swallowed; worker/lease.py has
                       the deadline
    kill_horse         RQ's stop command does nothing in a SimpleWorker; here the job ends at its
                       next step
    request_stop       RQ's talks to Redis inside the signal handler, in the middle of a job
    execute_job        a process that is worn out, by settings or by its device, ends between jobs
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import redis
import structlog
from rq import SimpleWorker
from rq.exceptions import StopRequested
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty
from rq.utils import now
from rq.worker import WorkerStatus as RqStatus

from jobs.connection import connect
from jobs.errors import JobsError, StorageUnavailable
from jobs.figures import Figures
from jobs.queue import JobQueue, open_queue
from jobs.record import RecordStore
from jobs.store import ObjectStore
from jobs.workers import WorkerBoard, WorkerStatus
from worker.run import Engine, Runner, serve_with
from worker.settings import WorkerSettings

PULSE_S = 5.0
KEY_TTL_S = 20
WORKER_TTL_S = 35
"""RQ blocks for 15 s less than this when it waits for a job."""
MAINTENANCE_INTERVAL_S = 30
_RECONNECT_PAUSE_S = 1.0

log = structlog.get_logger("worker.process")


class NoDeathPenalty(BaseDeathPenalty):
    """RQ's time limit, switched off."""

    def setup_death_penalty(self) -> None:
        """Nothing to set up."""

    def cancel_death_penalty(self) -> None:
        """Nothing to cancel."""


class ReadoutWorker(SimpleWorker):
    """Runs jobs in this process; see the top of the file."""

    death_penalty_class = NoDeathPenalty
    max_connection_wait_time = 5.0
    log_result_lifespan = False

    def __init__(self, *args: Any, runner: Runner, stop: threading.Event, **kwargs: Any) -> None:
        """As `SimpleWorker`: jobs are `runner`'s, the first signal sets `stop`."""
        super().__init__(*args, **kwargs)
        self._stop_asked = stop
        self._runner = runner

    def get_heartbeat_ttl(self, job: Any, working_time: float = 0.0) -> int:
        """The same for every job: the pulse renews it."""
        return KEY_TTL_S

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """RQ's, with our time to live."""
        super().heartbeat(KEY_TTL_S, pipeline)

    def pulse(self) -> None:
        """A sign of life to RQ, from another thread, also while a job runs."""
        running = list(self.executions.values())
        if running and running[0]._job is not None:
            self.maintain_heartbeats(running[0]._job, running[0])
        else:
            self.heartbeat()

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """RQ's stop command: the job ends at its next step."""
        self._runner.interrupt()

    def execute_job(self, job: Any, queue: Any) -> None:
        """RQ's; then the end, where the process is worn out: who supervises it starts another."""
        super().execute_job(job, queue)
        if reason := self._runner.worn_out:
            log.warning("worker.recycles", reason=reason)
            self._stop_asked.set()
            self._stop_requested = True

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """The first SIGTERM or SIGINT: finish the job, or give it back in time, then end."""
        self._stop_asked.set()
        self._runner.drain()
        self._shutdown_requested_date = now()
        signal.signal(signal.SIGINT, self.request_force_stop)
        signal.signal(signal.SIGTERM, self.request_force_stop)
        if self.get_state() == RqStatus.BUSY:
            self._stop_requested = True
        else:
            raise StopRequested


class Pulse:
    """A thread that says every few seconds that this worker lives, and what it does."""

    def __init__(self, settings: WorkerSettings, runner: Runner) -> None:
        self._runner = runner
        self._client = connect(settings)
        self._board = WorkerBoard(self._client, settings)
        self._started_at = datetime.now(UTC)
        self._worker: ReadoutWorker | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="pulse", daemon=True)

    def start(self) -> None:
        """Post now, then every few seconds."""
        self._post()
        self._thread.start()

    def follow(self, worker: ReadoutWorker | None) -> None:
        """Name the RQ worker whose heartbeats to send."""
        self._worker = worker

    def stop(self) -> None:
        """Take the worker off the board."""
        self._ended.set()
        self._thread.join(timeout=PULSE_S)
        with suppress(JobsError):
            self._board.remove(self._runner.name)
        self._client.close()

    def _keep(self) -> None:
        while not self._ended.wait(PULSE_S):
            self._post()
            with suppress(redis.RedisError):
                if self._worker is not None:
                    self._worker.pulse()

    def _post(self) -> None:
        activity, engine = self._runner.activity, self._runner.engine
        status = WorkerStatus(
            name=self._runner.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=self._started_at,
            device=engine.device,
            dtype=engine.dtype,
            models=engine.loaded(),
            job=activity.job,
            last_step_at=activity.last_step_at,
            jobs_done=activity.jobs_done,
        )
        try:
            self._board.post(status)
        except JobsError as error:
            log.warning("worker.pulse_not_sent", reason=str(error))


def worker_name() -> str:
    """Unique, and tells an operator where to look."""
    host = socket.gethostname().partition(".")[0] or "worker"
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"


def run_worker(settings: WorkerSettings, engine: Engine) -> None:
    """Serve with a loaded engine until SIGTERM or SIGINT; logs ``worker.ready`` when it does."""
    name = worker_name()
    client, store = connect(settings), ObjectStore(settings)
    try:
        store.ensure_bucket()
    except StorageUnavailable as error:
        log.warning("worker.storage_unavailable", reason=str(error))
    queue = JobQueue(settings)
    records, figures = RecordStore(client, settings), Figures(client, settings)
    runner = Runner(settings, name, records, store, engine, queue, figures)
    serve_with(runner)

    def on_ready() -> None:
        facts = {"device": engine.device, "dtype": engine.dtype, "models": engine.loaded()}
        log.info("worker.ready", worker=name, pid=os.getpid(), **facts)

    serve(settings, runner, on_ready)
    for connection in (client, store, queue):
        connection.close()
    log.info("worker.stopped", worker=name, jobs_done=runner.activity.jobs_done)


def serve(settings: WorkerSettings, runner: Runner, on_ready: Callable[[], None]) -> None:
    """Run jobs until SIGTERM or SIGINT; outlives outages of Redis with everything still loaded.

    Args:
        settings: names the queue.
        runner: already named to worker/run.py with `serve_with`.
        on_ready: called once, when the worker waits for its first job.
    """
    pulse = Pulse(settings, runner)
    pulse.start()
    stop = threading.Event()
    ready = False
    try:
        while not stop.is_set():
            try:
                worker = _rq_worker(settings, runner, stop)
                if not ready:
                    on_ready()
                    ready = True
                pulse.follow(worker)
                worker.work(logging_level="WARNING")
            except redis.RedisError as error:
                log.warning("worker.reconnects", reason=type(error).__name__)
            except StopRequested:
                return
            finally:
                pulse.follow(None)
            with suppress(StopRequested):  # the handler of the worker that has just ended
                stop.wait(_RECONNECT_PAUSE_S)
    finally:
        pulse.stop()


def _rq_worker(settings: WorkerSettings, runner: Runner, stop: threading.Event) -> ReadoutWorker:
    client = connect(settings, decode=False)
    return ReadoutWorker(
        [open_queue(settings, client)],
        name=f"{runner.name}-{secrets.token_hex(2)}",
        connection=client,
        serializer=JSONSerializer,
        worker_ttl=WORKER_TTL_S,
        maintenance_interval=MAINTENANCE_INTERVAL_S,
        default_result_ttl=0,
        log_job_description=False,
        runner=runner,
        stop=stop,
    )
