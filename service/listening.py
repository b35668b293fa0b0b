"""Waiting for a job's events without holding a thread: `Prefer: wait`, and server-sent events.

A stream carries what the job's Redis Stream has, with the stream's ids, so that `Last-Event-ID`
resumes after any of them; and, while the job is queued, `position` events, which have no id, since
they are a look at the queue and no part of what happened.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import anyio.to_thread
import structlog
from fastapi import Depends, Header
from starlette.responses import StreamingResponse

from jobs.connection import LONGEST_BLOCK_S
from jobs.errors import QueueUnavailable
from jobs.events import EventFeed, later, possible
from jobs.record import JobRecord, JobState, RecordStore
from service.errors import FieldError, InvalidRequest

COMMENT_INTERVAL_S = 15.0
POSITION_INTERVAL_S = 2.0
RECONNECT_MS = 1000
LONGEST_WAIT_S = 60
_EVENT_ID = re.compile(r"\d{1,20}-\d{1,20}")
_log = structlog.get_logger("gateway")


class EventStreamResponse(StreamingResponse):
    """Server-sent events; proxies must not collect them."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncIterator[bytes], status_code: int = 200) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(frames, status_code, headers)


class Listeners:
    """How many clients may wait at a time: each holds a connection to Redis."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0

    @property
    def full(self) -> bool:
        """Whether as many wait as may."""
        return self._count >= self._limit

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count one while the block lasts; for one event loop."""
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


async def _wait_s(
    prefer: Annotated[
        list[str] | None,
        Header(
            description=f"`wait=N` (RFC 7240): answer when the generation is over, or after N "
            f"seconds, {LONGEST_WAIT_S} at most; `Preference-Applied` says for how long it was done"
        ),
    ] = None,
) -> int:
    for preference in ",".join(prefer or ()).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            seconds = value.strip().strip('"')
            if seconds.isascii() and seconds.isdigit():
                return int(seconds) if len(seconds) < 4 and int(seconds) < LONGEST_WAIT_S else 60
            return 0
    return 0


WaitDep = Annotated[int, Depends(_wait_s)]
"""Seconds to wait; 0: the client does not prefer to, or not in a way that can be understood."""


async def _last_event_id(
    last_event_id: Annotated[
        str | None, Header(description="`id` of the last event that was seen: only later ones come")
    ] = None,
) -> str:
    if last_event_id and not (_EVENT_ID.fullmatch(last_event_id) and possible(last_event_id)):
        detail = "not an event's id; send the `id` of the last event, or nothing"
        wrong = FieldError(parameter="Last-Event-ID", detail=detail)
        raise InvalidRequest(f"Last-Event-ID: {detail}", errors=[wrong])
    return last_event_id or "0-0"


LastEventIdDep = Annotated[str, Depends(_last_event_id)]


async def wait_until_over(feed: EventFeed, job_id: str, seconds: float) -> None:
    """Return when the job is over, at the latest after `seconds`, or when Redis goes away."""
    after, deadline = "0-0", time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            events = await feed.read(job_id, after, wait_s=min(left, LONGEST_BLOCK_S))
        except QueueUnavailable:
            return
        if any(event.terminal for event in events):
            return
        after = events[-1].id if events else after


class EventStream:
    """One client's view of one job; iterate over `frames`."""

    def __init__(
        self,
        feed: EventFeed,
        records: RecordStore,
        record: JobRecord,
        after: str,
        show: Callable[[str], Mapping[str, Any]],
        show_preview: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        """Prepare.

        Args:
            feed: where the events come from.
            records: asked for the job's place in the queue.
            record: of the job, as it is.
            after: id of the last event that the client has seen.
            show: the job as the API shows it, for the terminal event; may block.
            show_preview: the data of a preview event as the API shows it; may block.
        """
        self._feed = feed
        self._records = records
        self._id = record.id
        self._queued = record.state is JobState.QUEUED
        self._after = after
        self._show = show
        self._show_preview = show_preview
        self._position: int | None = None
        self._last_sent = time.monotonic()

    async def is_over(self) -> bool:
        """Whether the client has seen all there will ever be; an id of the future is forgotten.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        last = await self._feed.last(self._id)
        if last is None:
            return True
        if not later(last.id, self._after):
            self._after = last.id
            return last.terminal
        return False

    async def frames(self) -> AsyncIterator[bytes]:
        """Events as they come, a comment when nothing does; ends after the terminal event.

        When Redis goes away the stream just ends: the client comes again and resumes.
        """
        yield f"retry: {RECONNECT_MS}\n\n".encode()
        try:
            while True:
                events = await self._feed.read(self._id, self._after, wait_s=self._patience_s())
                for event in events:
                    yield await self._frame(event.type, event.data, event.id)
                    if event.terminal:
                        return
                    self._after = event.id
                    self._queued = event.type in ("queued", "requeued")
                if self._queued and (position := await self._new_position()) is not None:
                    yield await self._frame("position", {"position": position})
                elif time.monotonic() - self._last_sent >= COMMENT_INTERVAL_S:
                    self._last_sent = time.monotonic()
                    yield b": nothing new\n\n"
        except QueueUnavailable as error:
            _log.warning("event_stream_ended", job_id=self._id, reason=str(error))

    def _patience_s(self) -> float:
        """How long to wait for the next event: until something else is due."""
        silence = COMMENT_INTERVAL_S - (time.monotonic() - self._last_sent)
        longest = POSITION_INTERVAL_S if self._queued else LONGEST_BLOCK_S
        if self._queued and self._position is None:
            longest = 0.01
        return max(0.01, min(silence, longest))

    async def _new_position(self) -> int | None:
        """Jobs ahead, if that has changed."""
        position = await anyio.to_thread.run_sync(self._records.position, self._id)
        if position == self._position:
            return None
        self._position = position
        return position

    async def _frame(
        self, kind: str, data: Mapping[str, Any], event_id: str | None = None
    ) -> bytes:
        self._last_sent = time.monotonic()
        if kind in ("succeeded", "failed", "canceled"):
            data = await anyio.to_thread.run_sync(self._show, self._id)
        elif kind == "preview":
            data = await anyio.to_thread.run_sync(self._show_preview, data)
        text = json.dumps(data, ensure_ascii=False)  # one line: JSON escapes line breaks
        numbered = f"id: {event_id}\n" if event_id else ""
        return f"{numbered}event: {kind}\ndata: {text}\n\n".encode("utf-8", "replace")
