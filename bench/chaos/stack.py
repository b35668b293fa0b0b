"""A whole stack whose every part can be killed and started again on its port, as its supervisor."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from jobs.connection import connect
from jobs.errors import JobsError
from jobs.record import RecordStore
from jobs.settings import CoreSettings
from jobs.store import ObjectStore
from jobs.workers import WorkerBoard
from stack.servers import Server, free_port, start_s3, start_valkey

ACCESS_KEY, SECRET_KEY = "chaos", secrets.token_hex(8)
START_S = 1800.0
ROOT = Path(__file__).parents[2]


class Stack:
    """Valkey (append-only, fsync always), S3, reconciler, gateway, workers; under one directory."""

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, object],
        workers: int,
        worker_command: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self._worker_command = list(worker_command)
        self.valkey: Server = start_valkey(directory / "valkey")
        self.s3: Server = start_s3(directory / "s3", ACCESS_KEY, SECRET_KEY)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._variables = self._settings_of(settings)
        values = {name.lower(): text for name, text in self._variables.items()}
        known = {name: text for name, text in values.items() if name in CoreSettings.model_fields}
        self.settings = CoreSettings.model_validate(known)
        self.redis, self.store = connect(self.settings), ObjectStore(self.settings)
        self.records = RecordStore(self.redis, self.settings)
        self.board = WorkerBoard(self.redis, self.settings)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.workers = [f"worker-{number}" for number in range(1, workers + 1)]
        for name in ("reconciler", "gateway", *self.workers):
            self.start(name)

    def _settings_of(self, settings: Mapping[str, object]) -> dict[str, str]:
        given = {name.upper(): str(value) for name, value in settings.items()}
        return {
            "REDIS_URL": self.valkey.url,
            "S3_ENDPOINT_URL": self.s3.url,
            "S3_ACCESS_KEY_ID": ACCESS_KEY,
            "S3_SECRET_ACCESS_KEY": SECRET_KEY,
            "AUTH": "none",
            **given,
        }

    def start(self, name: str) -> None:
        """Start a process, or start it again."""
        room = name.partition("-")[0]
        command = [sys.executable, "-m", "cli", room]
        if room == "worker" and self._worker_command:
            command = self._worker_command
        if room == "gateway":
            command += ["--host", "127.0.0.1", "--port", str(self.port)]
        ours = {f"READOUT_{key}": text for key, text in self._variables.items()}
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | ours, stdout=log, stderr=log
            )

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """End a process and wait for it; returns its exit status."""
        self.processes[name].send_signal(number)
        return self.processes[name].wait()

    def restart(self, name: str) -> None:
        """Kill -9 and start again."""
        self.kill(name)
        self.start(name)

    def revive(self) -> None:
        """What a supervisor does: start what has ended by itself."""
        for name, process in list(self.processes.items()):
            if process.poll() is not None:
                self.start(name)

    def restart_valkey(self) -> None:
        """Kill -9 the Redis server and start it on its data, at its port."""
        self.valkey.kill()
        self.valkey = start_valkey(self.directory / "valkey", self.valkey.port)

    def stop_s3(self) -> None:
        """Object storage is away."""
        self.s3.kill()

    def start_s3(self) -> None:
        """Object storage is back."""
        self.s3 = start_s3(self.directory / "s3", ACCESS_KEY, SECRET_KEY, self.s3.port)

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
        """Until `done`; a peer that is away is waited for too."""
        end = time.monotonic() + timeout_s
        while True:
            with suppress(JobsError, httpx.HTTPError):
                if done():
                    return
            if time.monotonic() > end:
                raise SystemExit(f"{what}: not in {timeout_s:g} s (logs: {self.directory})")
            time.sleep(0.05)

    def wait_until_ready(self) -> None:
        """The gateway answers and every worker is warm."""
        self.wait(lambda: httpx.get(f"{self.url}/readyz").status_code == 200, "the gateway")
        self.wait(lambda: len(self.board.alive()) >= len(self.workers), "the workers")

    def pid_of(self, name: str) -> int:
        """Of a process."""
        return self.processes[name].pid

    def close(self) -> None:
        """End everything."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        for connection in (self.redis, self.store):
            connection.close()
        self.valkey.kill()
        self.s3.kill()


@contextmanager
def a_stack(
    directory: Path,
    settings: Mapping[str, object],
    workers: int = 1,
    worker_command: Sequence[str] = (),
) -> Iterator[Stack]:
    """A stack that is ready; ended in the end, whatever happens.

    Args:
        directory: of its data and logs.
        settings: of all rooms, by their names without READOUT_.
        workers: how many.
        worker_command: instead of `readout worker`, for tests.
    """
    directory.mkdir(parents=True, exist_ok=True)
    stack = Stack(directory, settings, workers, worker_command)
    try:
        stack.wait_until_ready()
        yield stack
    finally:
        stack.close()


def patient(
    call: Callable[[], httpx.Response], timeout_s: float = START_S, accept: Sequence[int] = ()
) -> httpx.Response:
    """A client that comes back after 503 and broken connections, as the API asks for.

    Args:
        call: sends the request.
        timeout_s: how long to come back.
        accept: error statuses to return; others are raised.
    """
    end = time.monotonic() + timeout_s
    while True:
        try:
            response = call()
            if response.status_code != 503:
                if response.status_code not in accept:
                    response.raise_for_status()
                return response
        except httpx.TransportError:
            if time.monotonic() > end:
                raise
        if time.monotonic() > end:
            raise SystemExit(f"503 for {timeout_s:g} s")
        time.sleep(0.2)


def submit(client: httpx.Client, body: Mapping[str, Any]) -> str:
    """One generation, made once however often it is sent; its id."""
    headers = {"Idempotency-Key": secrets.token_hex(16)}
    answer = patient(lambda: client.post("/v1/generations", json=body, headers=headers))
    return str(answer.json()["id"])


def wait_for_all(
    stack: Stack, jobs: Sequence[str], timeout_s: float, tick: Callable[[], None]
) -> None:
    """Until every job has reached a terminal state; `tick` is called between looks."""
    end, waiting = time.monotonic() + timeout_s, list(jobs)
    while waiting:
        tick()
        with suppress(JobsError):
            waiting = [job for job in waiting if not stack.records.get(job).state.terminal]
        if time.monotonic() > end:
            states = [stack.records.get(job).state.value for job in waiting[:5]]
            raise SystemExit(f"{len(waiting)} jobs have not ended in {timeout_s:g} s: {states} …")
        time.sleep(0.1)
