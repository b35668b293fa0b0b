"""What `readout up` prints: one short line per event of a child, or its JSON lines as they are."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, TextIO

LogFormat = Literal["console", "json"]
_WELL_KNOWN = ("timestamp", "level", "event", "logger", "exception", "process")
_MAX_VALUE_CHARS = 80
_COLOURS = {"warning": "33", "error": "31", "critical": "31"}


class Console:
    """Writes to one terminal or pipe; `on_event` sees each child's JSON line as well."""

    def __init__(
        self,
        log_format: LogFormat = "console",
        stream: TextIO | None = None,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        self._format = log_format
        self._stream = stream or sys.stdout
        self._colour = log_format == "console" and self._stream.isatty()
        self._on_event = on_event

    def say(self, text: str, level: str = "info", **fields: object) -> None:
        """One line of the supervisor's own."""
        if self._format == "json":
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            fields = {"timestamp": stamp, "level": level, "process": "up", "event": text, **fields}
            self._print(json.dumps(fields, default=str))
        else:
            self._print(self._paint(text, _COLOURS.get(level, "1")))

    def child_line(self, name: str, line: str) -> None:
        """One line that a child wrote: JSON from our own processes, anything from others."""
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            if self._format == "console" and line.startswith((" ", "Traceback ")):
                return  # the log file has the whole traceback
            event = {"level": "info", "event": line}
        elif self._on_event is not None:
            self._on_event(name, event)
        if self._format == "json":
            self._print(json.dumps({"process": name, **event}, default=str))
        elif not _is_routine(event):
            self._print(self._short(name, event))

    def _short(self, name: str, event: dict[str, Any]) -> str:
        line = f"{self._paint(f'{name:<10}', '2')} {short(event)}"
        colour = _COLOURS.get(str(event.get("level", "")).lower())
        return self._paint(line, colour) if colour else line

    def _paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text

    def _print(self, text: str) -> None:
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (BrokenPipeError, ValueError):  # the terminal or pipe is gone; the logs remain
            pass


def _is_routine(event: dict[str, Any]) -> bool:
    """Whether a line is for the log file alone: debugging, and polls that were answered."""
    polled = event.get("event") == "request" and event.get("method") == "GET"
    return event.get("level") == "debug" or (polled and event.get("status", 500) < 400)


def short(event: dict[str, Any]) -> str:
    """A structured event in one line: what happened, then its fields."""
    parts = [str(event.get("event", ""))]
    for key, value in event.items():
        if key not in _WELL_KNOWN and value not in (None, "", [], {}):
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            if len(text) > _MAX_VALUE_CHARS:
                text = text[: _MAX_VALUE_CHARS - 1] + "…"
            parts.append(f"{key}={text}")
    if exception := event.get("exception"):
        parts.append(_last_words(exception))
    return " ".join(parts)


def _last_words(exception: object) -> str:
    """Type and message of a logged exception, as structlog's text or its dictionaries."""
    if isinstance(exception, list) and exception and isinstance(exception[0], dict):
        return f"{exception[0].get('exc_type')}: {exception[0].get('exc_value')}"
    return str(exception).strip().rpartition("\n")[2]
