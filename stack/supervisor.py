"""Start processes in order, keep them running, stop them all: single-threaded, whatever happens."""

from __future__ import annotations

import json
import math
import selectors
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from stack.console import Console, short
from stack.errors import ProcessDied
from stack.process import Child, Spec

FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 15.0
SETTLED_S = 20.0
"""A process that lived this long, was killed, or ended with 0 was well: it starts again quickly."""
MAX_QUICK_DEATHS = 6
"""Deaths of its own in a row, each before it settled, after which the stack gives up."""
LOST_GRACE_S = 5.0
"""How long the others may take to end once one of them was lost."""
WRONG_SETTINGS = 2
"""The exit code of our rooms that another start would not better."""
FULL_DISK_BYTES = 2**20
"""Less room than this and a server that ended is taken to have ended for want of it."""
_SAME_SIGNAL_S = 0.3
_TICK_S = 0.1


class StopRequested(Exception):
    """Ctrl-C or SIGTERM came while the stack was starting."""


class Supervisor:
    """Owns every child; leaving its `with` block, for whatever reason, leaves none of them."""

    def __init__(self, log_dir: Path, console: Console) -> None:
        self._log_dir = log_dir
        self._console = console
        self._children: list[Child] = []
        self._due: list[tuple[float, Spec]] = []
        self._deaths: dict[str, int] = {}
        self._stops = 0
        self._last_stop = 0.0
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Supervisor:
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._old_wakeup = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._stop_all(LOST_GRACE_S if kind is not None else math.inf)
        finally:
            signal.set_wakeup_fd(self._old_wakeup)
            for number, handler in self._previous.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            self._selector.close()
            self._wake.close()
            self._waker.close()

    def _on_signal(self, *_: object) -> None:
        now = time.monotonic()
        if now - self._last_stop > _SAME_SIGNAL_S:  # a parent may pass on the terminal's Ctrl-C
            self._stops += 1
        self._last_stop = now

    def start(self, spec: Spec) -> Child:
        """Start one process."""
        try:
            child = Child(spec, self._log_dir)
        except OSError as error:
            raise ProcessDied(f"{spec.name} cannot be started: {error}") from error
        self._children.append(child)
        self._selector.register(child.pipe, selectors.EVENT_READ, child)
        return child

    def pids(self) -> list[int]:
        """Process ids of the children that run, in the order of starting."""
        return [child.process.pid for child in self._children if child.alive]

    def wait_until(self, ready: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Serve the children until `ready`; `what` is waited for.

        Raises:
            ProcessDied: a process ended that must not, or the time is over.
            StopRequested: a stop was asked for meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            self._tick()
            if time.monotonic() > deadline:
                raise ProcessDied(
                    f"{what} is not ready after {timeout_s:.0f} s (logs: {self._log_dir})"
                )

    def run(self) -> None:
        """Keep everything running until a stop is asked for.

        Raises:
            ProcessDied: a process ended that must not, or one ends again and again.
        """
        try:
            while True:
                self._tick()
        except StopRequested:
            return

    def _tick(self) -> None:
        if self._stops:
            raise StopRequested
        self._pump(_TICK_S)
        for child in [child for child in self._children if not child.alive]:
            self._bury(child)
        now = time.monotonic()
        for due in [due for due in self._due if due[0] <= now]:
            self._due.remove(due)
            self.start(due[1])

    def _pump(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                self._wake.recv(4096)
            else:
                self._drain(key.data)

    def _drain(self, child: Child) -> None:
        for line in child.lines():
            if not child.spec.quiet:
                self._console.child_line(child.spec.name, line)

    def _forget(self, child: Child) -> None:
        self._drain(child)
        self._selector.unregister(child.pipe)
        self._children.remove(child)
        child.close()

    def _bury(self, child: Child) -> None:
        spec = child.spec
        self._forget(child)
        if not spec.restart or child.process.returncode == WRONG_SETTINGS:
            full = shutil.disk_usage(self._log_dir).free < FULL_DISK_BYTES
            why = f"; the disk of {self._log_dir} is full: make room and start again"
            raise ProcessDied(_obituary(child) + (why if full else ""))
        well = child.process.returncode <= 0  # killed, or a worker that recycles itself
        settled = child.age_s > SETTLED_S or well
        deaths = 1 if settled else self._deaths.get(spec.name, 0) + 1
        self._deaths[spec.name] = deaths
        if deaths >= MAX_QUICK_DEATHS:
            raise ProcessDied(f"gave up after {deaths} starts: {_obituary(child)}")
        pause = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (deaths - 1))
        self._console.say(f"{_obituary(child)}; starting it again in {pause:g} s", "warning")
        self._due.append((time.monotonic() + pause, spec))

    def _stop_all(self, grace_limit_s: float) -> None:
        """Stop in the reverse order of starting, what is started again (workers) at one time."""
        self._due.clear()
        patient_until = self._stops
        while self._children:
            last = self._children[-1]
            group = [last]
            if last.spec.restart:
                group = [child for child in self._children if child.spec.restart]
            self._stop(group, patient_until, grace_limit_s)

    def _stop(self, group: list[Child], patient_until: int, grace_limit_s: float) -> None:
        for child in group:
            child.signal(signal.SIGTERM)
        told = False
        start = time.monotonic()
        while running := [child for child in group if child.alive]:
            self._pump(_TICK_S)
            waited = time.monotonic() - start
            if self._stops > patient_until:
                break
            if waited > 2 and not told:
                names = ", ".join(child.spec.name for child in running)
                self._console.say(f"waiting for {names} to finish; Ctrl-C again stops at once")
                told = True
            for child in running:
                grace_s = min(child.spec.grace_s, grace_limit_s)
                if waited <= grace_s:
                    continue
                self._console.say(f"{child.spec.name} did not end in {grace_s:g} s: killed")
                child.signal(signal.SIGKILL)
                child.process.wait()
        for child in group:
            child.signal(signal.SIGKILL)
            child.process.wait()
            self._forget(child)


def _obituary(child: Child) -> str:
    """How it ended; when by itself, its last words and where the others are."""
    if child.process.returncode <= 0:
        return f"{child.spec.name} {child.outcome()}"
    words = [line for line in child.tail if any(letter.isalpha() for letter in line)]
    last = _readable(words[-1]) if words else "it said nothing"
    return f"{child.spec.name} {child.outcome()}: {last} (log: {child.log_path})"


def _readable(line: str) -> str:
    try:
        event = json.loads(line)
    except ValueError:
        return line
    return short(event) if isinstance(event, dict) else line
