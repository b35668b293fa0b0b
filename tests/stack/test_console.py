from __future__ import annotations

import io
import json

from stack.console import Console


def lines(log_format: str, *written: str) -> list[str]:
    stream = io.StringIO()
    console = Console(log_format, stream)  # type: ignore[arg-type]
    for line in written:
        console.child_line("worker-1", line)
    return stream.getvalue().splitlines()


def test_json_lines_become_short_ones() -> None:
    event = {"event": "job.done", "level": "info", "timestamp": "t", "seconds": 1.5, "none": None}
    assert lines("console", json.dumps(event)) == ["worker-1   job.done seconds=1.5"]


def test_json_lines_stay_json_with_the_process_named() -> None:
    (line,) = lines("json", '{"event": "job.done"}')
    assert json.loads(line) == {"process": "worker-1", "event": "job.done"}


def test_text_is_json_too_when_json_is_asked_for() -> None:
    (line,) = lines("json", "segmentation fault")
    assert json.loads(line)["event"] == "segmentation fault"


def test_of_a_traceback_the_console_shows_the_last_line() -> None:
    traceback = ("Traceback (most recent call last):", '  File "x.py", line 1', "ValueError: no")
    assert lines("console", *traceback) == ["worker-1   ValueError: no"]


def test_of_a_logged_exception_too() -> None:
    exception = [{"exc_type": "ValueError", "exc_value": "no", "frames": [1, 2]}]
    (line,) = lines("console", json.dumps({"event": "failed", "exception": exception}))
    assert line == "worker-1   failed ValueError: no"


def test_debug_lines_and_long_values_are_cut() -> None:
    assert lines("console", '{"event": "x", "level": "debug"}') == []
    (line,) = lines("console", json.dumps({"event": "x", "long": "y" * 500}))
    assert len(line) < 120
