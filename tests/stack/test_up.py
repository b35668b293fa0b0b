"""`readout up` with real servers and a real gateway; the worker is a stand-in that sleeps."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from stack.errors import MissingPiece
from stack.up import Options, up
from tests.stack.test_supervisor import is_running, wait_for

SLEEPER = [
    sys.executable,
    "-c",
    'print(\'{"event": "worker.ready"}\', flush=True); import time; time.sleep(600)',
]
PROGRAM = """
import sys
from pathlib import Path
from stack.errors import StackError
from stack.up import Options, up
try:
    up(Options(Path({data_dir!r}), port={port}, worker_command=tuple({worker!r})))
except StackError as error:
    sys.exit(f"readout: {{error}}")
"""


@dataclass
class Stack:
    process: subprocess.Popen[str]
    data_dir: Path
    url: str

    def children(self) -> dict[str, int]:
        """Process id by name, from the parents in /proc; without those that just begin. One that
        its leash starts has no command for a moment, also after it had been seen."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
                command = (path.parent / "cmdline").read_bytes().decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if command and int(fields[1]) == self.process.pid and fields[0] != "Z":
                names = ("valkey", "rclone", "reconciler", "gateway", "worker.ready")
                name = next((name for name in names if name in command), command)
                found[name] = int(path.parent.name)
        return found

    def read_until(self, text: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                return line
        raise AssertionError(f"the output ended without {text!r}")


def start(data_dir: Path, port: int = 0) -> subprocess.Popen[str]:
    code = PROGRAM.format(data_dir=str(data_dir), port=port, worker=SLEEPER)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("READOUT_", "REDIS_"))}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with start(tmp_path / "a path with a space") as process:
        running = Stack(process, tmp_path / "a path with a space", "")
        try:
            line = running.read_until("ready: ")
            running.url = line.split()[1]
            yield running
        finally:
            process.kill()


def test_from_start_to_stop(stack: Stack) -> None:
    assert httpx.get(f"{stack.url}/readyz", timeout=10).json()["status"] == "ready"
    assert httpx.get(f"{stack.url}/v1/generations", timeout=10).json()["items"] == []
    secrets = stack.data_dir / "secrets.json"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    first = stack.children()
    assert set(first) == {"valkey", "rclone", "reconciler", "gateway", "worker.ready"}
    commands = b" ".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in first.values())
    for secret in json.loads(secrets.read_text()).values():
        assert secret.encode() not in commands

    with start(stack.data_dir) as second:
        output, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"in use by another `readout up` (process {stack.process.pid})" in output
    assert "Traceback" not in output

    os.kill(first["worker.ready"], signal.SIGKILL)
    assert "worker-1 was killed by SIGKILL; starting it again" in stack.read_until("worker-1 was")
    wait_for(lambda: stack.children().get("worker.ready") not in (None, first["worker.ready"]))

    last = stack.children()
    stack.process.send_signal(signal.SIGINT)
    assert stack.process.wait(30) == 0
    assert stack.process.stdout is not None
    assert stack.process.stdout.read().splitlines()[-1] == "stopped"
    assert not any(is_running(pid) for pid in last.values())


def test_a_server_that_dies_stops_everything_and_is_named(stack: Stack) -> None:
    children = stack.children()
    os.kill(children["valkey"], signal.SIGKILL)
    assert stack.process.wait(60) == 1
    assert stack.process.stdout is not None
    assert "readout: valkey was killed by SIGKILL" in stack.process.stdout.read()
    assert not any(is_running(pid) for pid in children.values())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_nothing_stays_when_the_supervisor_is_killed(stack: Stack) -> None:
    children = stack.children()
    stack.process.kill()
    wait_for(lambda: not any(is_running(pid) for pid in children.values()))
    port = int(stack.url.rpartition(":")[2])

    def refuses() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) != 0

    wait_for(refuses)  # a process is a zombie a moment before its last thread closes the port


def readout(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        check=False,
    )


def test_a_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = readout("up", "--port", str(port), cwd=tmp_path)
        assert result.returncode == 2
        assert re.fullmatch(rf"readout: port {port} .* in use .*\n", result.stderr)
        result = readout("up", "--port", "0", "--redis-port", str(port), cwd=tmp_path)
    assert result.returncode == 2
    assert re.fullmatch(rf"readout: port {port} for Valkey \(--redis-port\) .*\n", result.stderr)


def test_a_data_directory_that_cannot_be_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = readout("up", "--port", "0", "--data-dir", "file/data", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("readout: cannot use the data directory")
    assert result.stderr.count("\n") == 1


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.up.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPiece, match=r"torch.*pip install '\.\[gateway,local,worker\]'"):
        up(Options(tmp_path))


def test_external_servers_are_used_instead(tmp_path: Path) -> None:
    """With nobody behind the URLs the gateway is never ready, and nothing embedded was started."""
    environment = {
        **os.environ,
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "READOUT_S3_ENDPOINT_URL": "http://127.0.0.1:1",
    }
    code = PROGRAM.format(data_dir=str(tmp_path), port=0, worker=SLEEPER)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        running = Stack(process, tmp_path, "")
        try:
            wanted = {"reconciler", "gateway", "worker.ready"}
            wait_for(lambda: set(running.children()) == wanted, 60)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
