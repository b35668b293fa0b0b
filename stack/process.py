"""One supervised child: its own process group, its log file, and no life after its supervisor's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stack.leash import leashed

_TAIL_LINES = 12
_MAX_LOG_BYTES = 20 * 2**20


@dataclass(frozen=True)
class Spec:
    """What to run, and what its end means."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path | None = None
    restart: bool = False
    """Start it again when it ends; otherwise its end is the end of the stack."""
    grace_s: float = 10.0
    """How long it may take to end after SIGTERM."""
    quiet: bool = False
    """Its lines go to the log file alone."""


class Child:
    """A running process of a `Spec`; its standard output and error are read by the supervisor."""

    def __init__(self, spec: Spec, log_dir: Path) -> None:
        self.spec = spec
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.started = time.monotonic()
        self.log_path = log_dir / f"{spec.name}.log"
        _put_aside(self.log_path)
        self._log = self.log_path.open("ab", buffering=0)
        self._rest = b""
        try:
            self.process = subprocess.Popen(
                leashed(list(spec.command)),
                env=dict(spec.environment),
                cwd=spec.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError:
            self._log.close()
            raise
        assert self.process.stdout is not None
        self.pipe = self.process.stdout
        os.set_blocking(self.pipe.fileno(), False)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    @property
    def age_s(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self.started

    def lines(self) -> Iterator[str]:
        """Whole lines written since the last call; they are in the log file already."""
        while chunk := self._read():
            self._log.write(chunk)
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            for raw in whole:
                line = raw.decode(errors="replace").rstrip().rpartition("\r")[2]
                if line:
                    self.tail.append(line)
                    yield line

    def _read(self) -> bytes:
        try:
            return os.read(self.pipe.fileno(), 65_536)
        except BlockingIOError:
            return b""

    def signal(self, number: signal.Signals) -> None:
        """Signal the child's whole process group; a group that is gone is no error."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter: macOS' zombies
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        """Release pipe and log after the end, having killed what the child left behind."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.pipe.close()
        self._log.close()

    def outcome(self) -> str:
        """How it ended, for people."""
        code = self.process.poll()
        if code is None:
            return "still runs"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with code {code}"


def _put_aside(log_path: Path) -> None:
    """Keep one earlier log file once it has grown large; checked at each start."""
    if log_path.exists() and log_path.stat().st_size > _MAX_LOG_BYTES:
        log_path.replace(log_path.with_suffix(".log.1"))
