"""Server-sent events out of lines of text, as far as the service's streams need it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """One event; `id` is None for those that are no part of the record, such as `position`."""

    type: str
    data: dict[str, Any]
    id: str | None = None


def events(lines: Iterable[str]) -> Iterator[Event]:
    """Every whole event; comments, and one that was cut off, are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif not line:
            if "data" in fields and "event" in fields:
                yield Event(fields["event"], json.loads(fields["data"]), fields.get("id"))
            fields = {}
