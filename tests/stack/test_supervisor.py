from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stack import supervisor as supervisor_module
from stack.console import Console
from stack.errors import ProcessDied
from stack.process import Spec
from stack.supervisor import Supervisor

STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); {}"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def spec(name: str, code: str, **options: object) -> Spec:
    return Spec(name, python(code), dict(os.environ), **options)  # type: ignore[arg-type]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def supervise(tmp_path: Path, output: io.StringIO) -> Callable[[], Supervisor]:
    return lambda: Supervisor(tmp_path, Console(stream=output))


def test_output_goes_to_the_log_file_and_short_to_the_console(
    supervise: Callable[[], Supervisor], output: io.StringIO, tmp_path: Path
) -> None:
    line = '{"event": "job.done", "level": "info", "timestamp": "now", "job": "j1", "empty": null}'
    with supervise() as supervisor:
        supervisor.start(spec("room", f"print('{line}', flush=True); import time; time.sleep(60)"))
        supervisor.wait_until(lambda: "job.done" in output.getvalue(), "the line", 10)
    assert "room       job.done job=j1\n" in output.getvalue()
    assert (tmp_path / "room.log").read_text() == line + "\n"


def test_what_is_to_run_again_does_after_a_kill(
    supervise: Callable[[], Supervisor], output: io.StringIO
) -> None:
    with supervise() as supervisor:
        first = supervisor.start(spec("worker", "import time; time.sleep(60)", restart=True))
        first.signal(signal.SIGKILL)
        supervisor.wait_until(lambda: "starting it again" in output.getvalue(), "the line", 10)
        supervisor.wait_until(lambda: len(supervisor.pids()) == 1, "the worker", 10)
        assert supervisor.pids() != [first.process.pid]
    assert "worker was killed by SIGKILL; starting it again in 0.5 s" in output.getvalue()


def test_it_gives_up_on_what_never_starts(
    supervise: Callable[[], Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "FIRST_BACKOFF_S", 0.01)
    with supervise() as supervisor:
        supervisor.start(spec("bad", "print('broken'); raise SystemExit(3)", restart=True))
        with pytest.raises(ProcessDied, match="gave up after 6 starts: bad ended with code 3: bro"):
            supervisor.run()


def test_the_end_of_a_server_ends_everything(supervise: Callable[[], Supervisor]) -> None:
    with supervise() as supervisor:
        other = supervisor.start(spec("other", "import time; time.sleep(60)", restart=True))
        supervisor.start(spec("server", "print('no space left'); raise SystemExit(1)"))
        with pytest.raises(ProcessDied, match="server ended with code 1: no space left"):
            supervisor.run()
    assert not is_running(other.process.pid)


def test_what_ignores_sigterm_is_killed_after_its_grace(
    supervise: Callable[[], Supervisor], output: io.StringIO
) -> None:
    with supervise() as supervisor:
        child = supervisor.start(
            spec("stubborn", STUBBORN.format("time.sleep(60)"), restart=True, grace_s=0.3)
        )
        supervisor.wait_until(lambda: "up" in output.getvalue(), "it", 10)
    assert "stubborn did not end in 0.3 s: killed" in output.getvalue()
    assert not is_running(child.process.pid)


def test_grandchildren_do_not_stay(supervise: Callable[[], Supervisor], tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(pid_file)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    with supervise() as supervisor:
        supervisor.start(spec("parent", code))
        supervisor.wait_until(
            lambda: pid_file.exists() and pid_file.read_text() != "", "the grandchild", 10
        )
    wait_for(lambda: not is_running(int(pid_file.read_text())))


def supervising_process(tmp_path: Path, code: str, grace_s: float) -> subprocess.Popen[str]:
    """A process that supervises one child; its first line is the child's process id."""
    program = f"""
import sys
from pathlib import Path
from stack.console import Console
from stack.process import Spec
from stack.supervisor import Supervisor
with Supervisor(Path({str(tmp_path)!r}), Console()) as supervisor:
    command = [sys.executable, "-c", {code!r}]
    child = supervisor.start(Spec("child", command, {{}}, restart=True, grace_s={grace_s}))
    print(child.process.pid, flush=True)
    supervisor.run()
"""
    return subprocess.Popen(python(program), stdout=subprocess.PIPE, text=True)


def test_a_second_ctrl_c_is_immediate(tmp_path: Path) -> None:
    with supervising_process(tmp_path, STUBBORN.format("time.sleep(60)"), 60) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert "up" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert "waiting for child" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
    assert not is_running(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_nothing_is_left_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    with supervising_process(tmp_path, "import time; time.sleep(60)", 60) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        wait_for(lambda: is_running(pid))
        process.kill()
    wait_for(lambda: not is_running(pid))
