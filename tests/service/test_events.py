"""Waiting for a generation: `Prefer: wait`, and server-sent events that can be resumed."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from client import ReadoutClient, Refused
from jobs.errors import StaleAttempt
from jobs.record import Failure, FailureCode, Progress, RecordStore
from jobs.result import Preview, StoredReadout, attempt_prefix
from jobs.state import CurrentDistance
from service import listening
from service.settings import GatewaySettings
from tests.jobs.samples import a_result
from tests.service.conftest import problem, serving

FAILURE = Failure(code=FailureCode.DIVERGED, message="step 7: lower the weight")


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    type: str
    data: dict[str, Any]
    id: str | None = None


def parse(lines: Iterator[str]) -> Iterator[Event]:
    """By the HTML standard, as far as we use it; comments are events of type "comment"."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            yield Event("comment", {})
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Event(fields["event"], json.loads(fields["data"]), fields.get("id"))
            fields = {}
        else:
            fields = {}


def create(client: httpx.Client) -> str:
    response = client.post("/v1/generations", json={"prompt": "a"})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def path(generation_id: str) -> str:
    return f"/v1/generations/{generation_id}/events"


def a_preview(job: str, attempt: int, step: int) -> Preview:
    stem = f"{attempt_prefix(job, attempt)}evolution-000-step-{step:03d}"
    readout = StoredReadout(head="tiny/pose", key=f"{stem}-pose.png")
    return Preview(index=0, step=step, key=f"{stem}-image.png", readouts=(readout,))


def later(seconds: float, call: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, call)
    timer.start()
    return timer


def listen(client: httpx.Client, generation_id: str, after: str | None = None) -> list[Event]:
    """Until the stream closes by itself."""
    headers = {"Last-Event-ID": after} if after else {}
    with client.stream("GET", path(generation_id), headers=headers) as response:
        assert response.status_code == 200
        return list(parse(response.iter_lines()))


def test_a_whole_life(client: httpx.Client, records: RecordStore) -> None:
    job = create(client)
    attempt = records.start(job, "w")
    records.progress(job, attempt, Progress(step=0, total_steps=10))
    records.release(job, attempt)
    attempt = records.start(job, "w")
    distance = CurrentDistance(control=0, head="tiny/pose", distance=0.5, unit="rms", step=2)
    records.progress(job, attempt, Progress(step=3, total_steps=10, distances=(distance,)))
    records.fail(job, attempt, FAILURE)
    events = listen(client, job)
    assert [event.type for event in events] == [
        "queued",
        "started",
        "progress",
        "requeued",
        "started",
        "progress",
        "failed",
    ]
    assert events[1].data == {"attempt": 1}
    assert events[5].data["distances"] == [distance.model_dump()]
    assert {**events[5].data, "distances": []} == {
        "step": 3,
        "total_steps": 10,
        "stage": "sampling",
        "distances": [],
    }
    assert events[-1].data == client.get(f"/v1/generations/{job}").json()
    with client.stream("GET", path(job)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-store"


def test_the_terminal_event_has_the_result_with_urls(
    client: httpx.Client, records: RecordStore
) -> None:
    job = create(client)
    attempt = records.start(job, "w")
    records.succeed(job, attempt, a_result(job, attempt))
    last = listen(client, job)[-1]
    assert last.type == "succeeded"
    assert last.data["result"]["images"][0]["url"].startswith("http")
    assert "key" not in last.data["result"]["images"][0]


def test_frames_are_events_with_urls_and_part_of_the_status(
    client: httpx.Client, records: RecordStore
) -> None:
    job = create(client)
    attempt = records.start(job, "w")
    records.progress(job, attempt, Progress(step=3, total_steps=10))
    frames = [a_preview(job, attempt, step) for step in (1, 3)]
    for count in (1, 2):
        records.preview(job, attempt, frames[count - 1 : count], frames[:count])
    shown = client.get(f"/v1/generations/{job}").json()["progress"]["previews"]
    assert [(one["step"], one["index"]) for one in shown] == [(1, 0), (3, 0)]
    assert frames[0].key in shown[0]["url"]
    assert shown[0]["readouts"][0]["head"] == "tiny/pose"
    records.fail(job, attempt, FAILURE)
    told = [event.data for event in listen(client, job) if event.type == "preview"]
    assert [(one["attempt"], one["step"]) for one in told] == [(1, 1), (1, 3)]
    assert frames[1].key in told[1]["images"][0]["url"]
    assert "key" not in told[1]["images"][0]
    assert records.get(job).previews == ()


def test_frames_of_a_lost_attempt_are_no_longer_shown(
    client: httpx.Client, records: RecordStore
) -> None:
    job = create(client)
    attempt = records.start(job, "w")
    frame = a_preview(job, attempt, 1)
    records.preview(job, attempt, [frame], [frame])
    records.release(job, attempt)
    attempt = records.start(job, "w")
    records.progress(job, attempt, Progress(step=0, total_steps=10))
    assert client.get(f"/v1/generations/{job}").json()["progress"]["previews"] == []
    with pytest.raises(StaleAttempt):
        records.preview(job, attempt - 1, [frame], [frame])
    records.request_cancel(job)


def test_events_come_as_they_happen_and_the_place_in_the_queue_is_told(
    client: httpx.Client, records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "POSITION_INTERVAL_S", 0.05)
    first, second = create(client), create(client)
    with client.stream("GET", path(second)) as response:
        events = parse(response.iter_lines())
        assert next(events).type == "queued"
        before = next(events)
        assert (before.type, before.id) == ("position", None)
        records.request_cancel(first)
        after = next(events)
        assert after.data["position"] == before.data["position"] - 1
        records.start(second, "w")
        assert next(events).type == "started"
        records.request_cancel(second)
        assert [event.type for event in events] == ["canceled"]


def test_a_client_that_comes_and_goes_sees_each_event_once_in_order(
    client: httpx.Client, records: RecordStore
) -> None:
    job = create(client)
    steps = 150

    def work() -> None:
        attempt = records.start(job, "w")
        for step in range(steps):
            records.progress(job, attempt, Progress(step=step, total_steps=steps))
            time.sleep(0.01)
        records.succeed(job, attempt, a_result(job, attempt))

    worker, dice = threading.Thread(target=work), random.Random(3)
    worker.start()
    seen: list[Event] = []
    connections = 0
    while not seen or seen[-1].type != "succeeded":
        headers = {"Last-Event-ID": str(seen[-1].id)} if seen else {}
        connections += 1
        leave_after = dice.randrange(1, 15)
        with client.stream("GET", path(job), headers=headers) as response:
            for event in parse(response.iter_lines()):
                if event.id is not None:
                    seen.append(event)
                    leave_after -= 1
                if not leave_after:
                    break
    worker.join()
    assert connections > 5
    assert [event.data["step"] for event in seen if event.type == "progress"] == [*range(steps)]
    assert [event.type for event in seen if event.type != "progress"] == [
        "queued",
        "started",
        "succeeded",
    ]
    again = client.get(path(job), headers={"Last-Event-ID": str(seen[-1].id)})
    assert (again.status_code, again.content) == (204, b"")
    assert [event.id for event in listen(client, job, after=seen[-2].id)] == [seen[-1].id]


def test_our_own_client_follows_and_resumes(
    client: httpx.Client, records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection breaks after eight lines, wherever that is."""
    whole = httpx.Response.iter_lines

    def breaking(response: httpx.Response) -> Iterator[str]:
        for number, line in enumerate(whole(response)):
            if number == 8:
                raise httpx.ReadError("broken")
            yield line

    job = create(client)
    attempt = records.start(job, "w")
    for step in range(5):
        records.progress(job, attempt, Progress(step=step, total_steps=5))
    records.fail(job, attempt, FAILURE)
    monkeypatch.setattr(httpx.Response, "iter_lines", breaking)
    with ReadoutClient(str(client.base_url)) as ours:
        events = list(ours.events(job))
        assert [event.type for event in events] == [
            "queued",
            "started",
            *["progress"] * 5,
            "failed",
        ]
        assert [event.data["step"] for event in events[2:-1]] == [*range(5)]
        assert list(ours.events(job, after=events[-1].id)) == []
        with pytest.raises(Refused):
            next(ours.events("gen_" + "0" * 24))


def test_an_id_of_the_future_does_not_wait_forever(
    client: httpx.Client, records: RecordStore
) -> None:
    job = create(client)
    timer = later(0.3, lambda: records.request_cancel(job))
    events = listen(client, job, after="99999999999999-0")
    timer.join()
    assert [event.type for event in events if event.id] == ["canceled"]
    for wrong in ("x", "0-99999999999999999999", "99999999999999999999-0"):
        problem(client.get(path(job), headers={"Last-Event-ID": wrong}), 422, "invalid_request")
    problem(client.get(path("gen_" + "0" * 24)), 404, "not_found")


def test_silence_is_broken_by_comments(
    client: httpx.Client, records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "COMMENT_INTERVAL_S", 0.1)
    job = create(client)
    records.start(job, "w")
    with client.stream("GET", path(job)) as response:
        events = parse(response.iter_lines())
        assert [next(events).type for _ in range(4)] == ["queued", "started", "comment", "comment"]
        records.request_cancel(job)
        assert [event.type for event in events if event.id] == ["canceled"]


def test_as_many_listen_as_may_and_the_others_poll(
    make_settings: Callable[..., GatewaySettings],
) -> None:
    with serving(make_settings(max_listeners=1)) as client:
        job = create(client)
        with client.stream("GET", path(job)) as response:
            events = parse(response.iter_lines())
            assert next(events).type == "queued"
            problem(client.get(path(job)), 503, "too_many_streams")
            waiting = client.get(f"/v1/generations/{job}", headers={"Prefer": "wait=5"})
            assert "preference-applied" not in waiting.headers
        client.post(f"/v1/generations/{job}/cancel")
        deadline = time.monotonic() + 20  # until the gateway has noticed that the client is gone
        while client.get(path(job)).status_code == 503:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_wait_answers_when_it_is_over(client: httpx.Client, records: RecordStore) -> None:
    def newest_job() -> str | None:
        return next((record.id for record in records.list(limit=1).records), None)

    before = newest_job()

    def work() -> None:
        while (newest := newest_job()) in (None, before):
            time.sleep(0.02)
        time.sleep(0.3)
        attempt = records.start(newest, "w")
        records.succeed(newest, attempt, a_result(newest, attempt))

    timer, start = later(0, work), time.monotonic()
    headers = {"Prefer": "respond-async, wait=20", "Idempotency-Key": f"wait-{start}"}
    done = client.post("/v1/generations", json={"prompt": "a"}, headers=headers)
    timer.join()
    assert done.status_code == 200
    assert 0.3 < time.monotonic() - start < 15
    assert done.json()["state"] == "succeeded"
    assert done.headers["preference-applied"] == "wait=20"
    assert done.headers["location"].endswith(done.json()["id"])
    assert "retry-after" not in done.headers
    again = client.post("/v1/generations", json={"prompt": "a"}, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, done.json()["id"])


def test_wait_ends_with_its_time(client: httpx.Client) -> None:
    start = time.monotonic()
    late = client.post("/v1/generations", json={"prompt": "a"}, headers={"Prefer": "wait=1"})
    assert (late.status_code, late.json()["state"]) == (202, "queued")
    assert time.monotonic() - start >= 1
    assert late.headers["preference-applied"] == "wait=1"
    assert int(late.headers["retry-after"]) >= 1
    seen = client.get(late.headers["location"], headers={"Prefer": "wait=1"})
    assert seen.headers["preference-applied"] == "wait=1"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("wait=7", 7),
        ("WAIT = 7", 7),
        ('respond-async, wait="7"; foo', 7),
        ("wait=5, wait=9", 5),
        ("wait=61", 60),
        ("wait=99999999999999999999", 60),
        ("wait=-1", 0),
        ("wait=1.5", 0),
        ("wait", 0),
        ("wait=\u0663", 0),
        (",,;=", 0),
    ],
)
def test_preferences_are_read_as_rfc_7240_says(header: str | None, seconds: int) -> None:
    found = asyncio.run(listening._wait_s(None if header is None else [header]))
    assert found == seconds
