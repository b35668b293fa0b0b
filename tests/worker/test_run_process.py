"""The worker as a process: RQ, signals, SIGKILL; everything real but the engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs import reconciler
from jobs.record import JobState
from jobs.workers import WorkerBoard
from tests.jobs.samples import a_request
from tests.servers import environment_of
from tests.worker.conftest import Stack

ROOT = Path(__file__).parents[2]


class Worker:
    """A worker process and what it logs."""

    def __init__(self, stack: Stack, step_s: float = 0.0, **variables: object) -> None:
        environment = environment_of(stack.settings, **variables) | {"FAKE_STEP_S": str(step_s)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.worker.fakes"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.decode())
            if '"worker.ready"' in self.lines[-1]:
                self._ready.set()

    def wait_until_ready(self) -> None:
        assert self._ready.wait(60), "".join(self.lines)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(timeout=5)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def events(self) -> list[dict[str, Any]]:
        """All it has logged; it must have ended."""
        self._reader.join(timeout=60)
        return [json.loads(line) for line in self.lines]


@contextmanager
def a_worker(stack: Stack, step_s: float = 0.0, **variables: object) -> Iterator[Worker]:
    """A worker that is ready; killed in the end."""
    worker = Worker(stack, step_s, **variables)
    try:
        worker.wait_until_ready()
        yield worker
    finally:
        worker.end()


def wait_for(stack: Stack, job: str, *states: JobState, timeout_s: float = 60.0) -> float:
    """Seconds until the job is in one of the states."""
    start = time.monotonic()
    while stack.records.get(job).state not in states:
        assert time.monotonic() - start < timeout_s, stack.records.get(job)
        time.sleep(0.005)
    return time.monotonic() - start


@contextmanager
def reconciling(stack: Stack) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=reconciler.run_forever, args=(stack.settings, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=30)


def start_latency_s(stack: Stack) -> float:
    """From the record's creation to its start by an idle worker."""
    record = stack.records.create(a_request(num_inference_steps=1), "req-42")
    stack.queue.enqueue(record)
    wait_for(stack, record.id, JobState.SUCCEEDED)
    done = stack.records.get(record.id)
    assert done.started_at is not None
    return (done.started_at - done.created_at).total_seconds()


def test_jobs_start_at_once_and_sigterm_lets_the_running_one_finish(stack: Stack) -> None:
    # Where others hold the cores, a process waits for its turn and not for the queue.
    busy = os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)
    limit_s = 1.0 if busy else 0.1
    with a_worker(stack, step_s=0.05) as worker:
        time.sleep(0.3)
        assert any(start_latency_s(stack) < limit_s for _ in range(20))
        (status,) = WorkerBoard(stack.client, stack.settings).alive()
        assert (status.pid, status.models) == (worker.process.pid, ("tiny",))

        running = stack.records.create(a_request(num_inference_steps=20))
        waiting = stack.records.create(a_request())
        stack.queue.enqueue(running)
        stack.queue.enqueue(waiting)
        wait_for(stack, running.id, JobState.RUNNING)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(timeout=30) == 0
        assert stack.records.get(running.id).state is JobState.SUCCEEDED
        assert stack.records.get(waiting.id).state is JobState.QUEUED
        assert WorkerBoard(stack.client, stack.settings).alive() == ()
        events = worker.events()
    assert [events[0]["event"], events[-1]["event"]] == ["worker.ready", "worker.stopped"]
    wide = next(event for event in events if event["event"] == "job.finished")
    assert (wide["request_id"], wide["attempt"], wide["outcome"]) == ("req-42", 1, "succeeded")


def test_sigterm_ends_an_idle_worker(stack: Stack) -> None:
    with a_worker(stack) as worker:
        time.sleep(0.3)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(timeout=30) == 0


def test_the_job_of_a_killed_worker_runs_again_and_succeeds_once(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "INTERVAL_S", 0.2)
    stack = Stack(
        stack.settings.model_copy(update={"lease_s": 1.5}),
        stack.client,
        stack.records,
        stack.queue,
        stack.store,
    )
    record = stack.records.create(a_request(num_inference_steps=20))
    with a_worker(stack, step_s=1.0) as worker:
        stack.queue.enqueue(record)
        wait_for(stack, record.id, JobState.RUNNING)
        time.sleep(0.7)
        worker.process.kill()
        worker.process.wait()
    with reconciling(stack), a_worker(stack):
        wait_for(stack, record.id, JobState.SUCCEEDED, timeout_s=60)
    done = stack.records.get(record.id)
    assert done.attempt == 2
    assert done.result is not None
    keys = set(stack.store.list_keys(f"jobs/{record.id}/"))
    assert keys == {done.result.manifest_key, done.result.images[0].key}


def test_sigterm_gives_a_long_job_back_in_time_and_it_does_not_count(stack: Stack) -> None:
    record = stack.records.create(a_request(num_inference_steps=60))
    with a_worker(stack, step_s=1.0, DRAIN_GRACE_S=0.5, MAX_ATTEMPTS=1) as worker:
        stack.queue.enqueue(record)
        wait_for(stack, record.id, JobState.RUNNING)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(timeout=30) == 0
        assert stack.records.get(record.id).state is JobState.QUEUED
        assert list(stack.queue.waiting()) == [record.id]
        outcomes = [event.get("outcome") for event in worker.events()]
        assert "released" in outcomes
    with a_worker(stack, MAX_ATTEMPTS=1):
        wait_for(stack, record.id, JobState.SUCCEEDED)
    assert stack.records.get(record.id).attempt == 2


def test_a_worker_recycles_itself_between_two_jobs(stack: Stack) -> None:
    records = [stack.records.create(a_request()) for _ in range(3)]
    with a_worker(stack, RECYCLE_JOBS=2, BATCH_IMAGES=1) as worker:
        for record in records:
            stack.queue.enqueue(record)
        assert worker.process.wait(timeout=30) == 0
        (event,) = [event for event in worker.events() if event["event"] == "worker.recycles"]
        assert event["reason"] == "it has run 2 jobs"
    states = [stack.records.get(record.id).state for record in records]
    assert states == [JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.QUEUED]
