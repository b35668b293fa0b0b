"""The whole stack for the length of a block: `readout up` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stack.leash import leashed

STOP_TIMEOUT_S = 120.0
_OURS_ALONE = ("REDIS_", "READOUT_REDIS_", "READOUT_S3_")


class StackFailed(Exception):
    """The stack did not start or did not stop cleanly."""


@contextmanager
def running_stack(data_dir: Path, log_path: Path) -> Iterator[str]:
    """Start the stack on free ports; the service's URL.

    Raises:
        StackFailed: it did not start, or did not stop cleanly; the message names its log.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_OURS_ALONE)}
    command = [sys.executable, "-P", "-m", "cli", "up", "--port", "0", "--log-format", "json"]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            leashed([*command, "--data-dir", str(data_dir)]),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        yield _wait_for_url(process, log_path)
        process.send_signal(signal.SIGINT)
        if (code := process.wait(STOP_TIMEOUT_S)) != 0:
            raise StackFailed(f"the stack ended with code {code}; see {log_path}")
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_url(process: subprocess.Popen[bytes], log_path: Path) -> str:
    """The ready line's URL; `readout up` itself gives up on what never gets ready."""
    while True:
        ended = process.poll() is not None
        lines = log_path.read_text(errors="replace").splitlines()
        for line in lines:
            if '"url"' in line and (event := json.loads(line)).get("process") == "up":
                return str(event["url"])
        if ended:
            last = lines[-1] if lines else "it said nothing"
            raise StackFailed(f"the stack did not start: {last} (see {log_path})")
        time.sleep(0.1)
