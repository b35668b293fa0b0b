"""A real worker with a real (tiny, random) model is killed in the middle of a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from jobs import reconciler
from jobs.connection import connect
from jobs.events import EventLog
from jobs.queue import JobQueue
from jobs.record import JobState, RecordStore
from jobs.settings import CoreSettings
from jobs.store import ObjectStore
from jobs.workers import WorkerBoard
from tests.jobs.samples import a_request
from tests.servers import environment_of

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
LEASE_S = 5.0


@contextmanager
def a_worker(settings: CoreSettings, log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = environment_of(settings, WARM_MODELS="tiny", DEVICE="cpu", NUM_THREADS=1)
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker"],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def a_reconciler(settings: CoreSettings) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=reconciler.run_forever, args=(settings, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=30)


def test_its_job_runs_again_elsewhere_and_succeeds_once(
    core_settings: CoreSettings,
    tiny_registry: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconciler, "INTERVAL_S", 0.3)
    settings = core_settings.model_copy(
        update={"lease_s": LEASE_S, "registry_dirs": (tiny_registry,)}
    )
    client, queue, store = connect(settings), JobQueue(settings), ObjectStore(settings)
    records, board = RecordStore(client, settings), WorkerBoard(client, settings)

    def wait_until(what: str, done: object, timeout_s: float = 600.0) -> None:
        end = time.monotonic() + timeout_s
        while not done():  # type: ignore[operator]
            logs = "\n".join(path.read_text() for path in tmp_path.glob("worker-*.log"))
            assert time.monotonic() < end, f"{what}\n{logs[-4000:]}"
            time.sleep(0.02)

    with ExitStack() as context:
        for connection in (client, queue, store):
            context.callback(connection.close)
        context.enter_context(a_reconciler(settings))
        for number in (1, 2):
            context.enter_context(a_worker(settings, tmp_path / f"worker-{number}.log"))
        wait_until("two workers are ready", lambda: len(board.alive()) == 2)
        record = records.create(a_request(num_inference_steps=150))
        queue.enqueue(record)
        job = record.id

        def steps_done() -> int:
            progress = records.get(job).progress
            return progress.step if progress else 0

        wait_until("some steps are done", lambda: steps_done() > 10)
        victim = records.get(job).worker
        pid = next(status.pid for status in board.alive() if status.name == victim)
        os.kill(pid, signal.SIGKILL)
        killed_at = time.monotonic()
        wait_until("another worker takes it", lambda: records.get(job).attempt == 2, 60)
        assert time.monotonic() - killed_at < 60
        wait_until("it succeeds", lambda: records.get(job).state is JobState.SUCCEEDED)

        done = records.get(job)
        assert done.worker != victim
        assert done.result is not None
        types = [event.type for event in EventLog(client, settings).read(job, limit=5000)]
        assert types.count("succeeded") == 1
        assert [kind for kind in types if kind != "progress"] == [
            *("queued", "started", "requeued", "started", "succeeded")
        ]
        keys = set(store.list_keys(f"jobs/{job}/"))
        assert keys == {done.result.manifest_key, done.result.images[0].key}
