"""Batches over HTTP: every item checked first, one state, cancel, retry, manifest."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from jobs.batches import BatchRecord, BatchStore
from jobs.connection import connect
from jobs.errors import JobExpired, StateConflict
from jobs.keys import batch_key
from jobs.queue import JobQueue
from jobs.reconciler import Reconciler
from jobs.record import Failure, FailureCode, JobRecord, JobState, RecordStore
from jobs.store import ObjectStore
from service import batch_schemas
from service.batches import parse_lines
from service.errors import PayloadTooLarge
from service.settings import GatewaySettings
from tests.jobs.samples import a_result
from tests.service.conftest import pointers, problem, serving, upload

FAILURE = Failure(code=FailureCode.DIVERGED, message="image 0 diverged at step 3")


@pytest.fixture
def own(make_settings: Any) -> GatewaySettings:
    """Settings of a gateway whose queue nobody else fills."""
    found: GatewaySettings = make_settings(max_queued=400, max_batch_items=300)
    return found


@pytest.fixture
def client(own: GatewaySettings) -> Iterator[httpx.Client]:
    with serving(own) as client:
        yield client


@pytest.fixture
def records(own: GatewaySettings) -> Iterator[RecordStore]:
    redis = connect(own)
    yield RecordStore(redis, own)
    redis.close()


@pytest.fixture
def reconciler(own: GatewaySettings) -> Iterator[Reconciler]:
    redis, queue, store = connect(own), JobQueue(own), ObjectStore(own)
    yield Reconciler(own, redis, queue, store)
    for connection in (redis, queue, store):
        connection.close()


def items(count: int, **changes: object) -> list[dict[str, Any]]:
    return [
        {"prompt": f"number {n}", "seed": n, "custom_id": f"c{n}"} | changes for n in range(count)
    ]


def create(client: httpx.Client, count: int = 3, **headers: str) -> dict[str, Any]:
    response = client.post("/v1/batches", json={"items": items(count)}, headers=headers)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/batches/{response.json()['id']}"
    found: dict[str, Any] = response.json()
    return found


def get(client: httpx.Client, batch: str) -> dict[str, Any]:
    response = client.get(f"/v1/batches/{batch}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def finish(records: RecordStore, *, but_fail: tuple[str, ...] = ()) -> list[JobRecord]:
    """What a worker does, for everything that waits; prompts in `but_fail` fail."""
    done = []
    while taken := records.take("w", 50, 10**9):
        for job in taken:
            if job.request.prompt in but_fail:
                records.fail(job.id, job.attempt, FAILURE)
            else:
                records.succeed(job.id, job.attempt, a_result(job.id, job.attempt))
            done.append(job)
    return done


def test_a_batch_from_creation_to_its_manifest(
    client: httpx.Client,
    records: RecordStore,
    reconciler: Reconciler,
    own: GatewaySettings,
) -> None:
    batch = create(client, 5)
    assert (batch["state"], batch["total"], batch["progress"]) == ("queued", 5, 0)
    queue = JobQueue(own)
    assert len(queue.waiting()) == 5
    queue.close()
    (first,) = records.take("w")
    running = get(client, batch["id"])
    assert (running["state"], running["counts"]["running"]) == ("running", 1)
    records.succeed(first.id, first.attempt, a_result(first.id, first.attempt))
    assert get(client, batch["id"])["progress"] == 0.2
    finish(records)
    done = get(client, batch["id"])
    assert (done["state"], done["manifest_url"]) == ("succeeded", None)
    assert done["finished_at"] is not None
    reconciler.reconcile_once()
    url = get(client, batch["id"])["manifest_url"]
    lines = [json.loads(line) for line in httpx.get(url, trust_env=False).text.splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["custom_id"] for line in lines] == ["c0", "c1", "c2", "c3", "c4"]
    assert lines[0]["generation_id"] == first.id
    assert lines[0]["result"]["images"][0]["key"] == f"jobs/{first.id}/1/image-000.png"
    listed = client.get(f"/v1/batches/{batch['id']}/items?start=1&limit=2").json()
    assert [item["index"] for item in listed["items"]] == [1, 2]
    assert listed["next_start"] == 3


def test_every_wrong_item_is_named_and_none_runs(client: httpx.Client, own: Any) -> None:
    wrong = items(60)
    wrong[3] |= {"height": 33}
    wrong[7] |= {"thoroughness": 1}
    wrong[20] |= {"prompt": 5}
    wrong[41]["custom_id"] = "c40"
    wrong[50] |= {"controls": [{"type": "spatial", "head": "nothing", "keypoints": KEYPOINTS}]}
    wrong[58] |= {"webhook_url": "https://example.com/hook"}
    picture = {"type": "spatial", "head": "pose", "image": {"base64": "AAAA"}}
    wrong[56] |= {"controls": [picture]}
    for n in range(5, 60, 2):
        wrong[n] |= {"negative_prompt": "x" * 201}
    found = problem(client.post("/v1/batches", json={"items": wrong}), 422, "invalid_batch")
    named = pointers(found)
    for pointer in (
        "#/items/3/height",
        "#/items/7/thoroughness",
        "#/items/20/prompt",
        "#/items/41/custom_id",
        "#/items/50/controls/0/head",
        "#/items/56/controls/0/image/base64",
        "#/items/58/webhook_url",
        "#/items/59/negative_prompt",
    ):
        assert pointer in named
    assert "of 60 items are wrong" in found["detail"]
    assert len(named) > 30  # a report, not the first of them
    assert client.get("/v1/generations").json()["items"] == []


KEYPOINTS = {"people": [{"pose_keypoints_2d": [0.5, 0.5, 1.0] * 18}]}


def test_json_lines_are_the_same_as_json(client: httpx.Client) -> None:
    image = {"upload_id": upload(client)}
    control = {"type": "spatial", "head": "pose", "image": image}
    text = "\n".join(json.dumps(item) for item in items(3, controls=[control])) + "\n\n"
    response = client.post(
        "/v1/batches/jsonl", content=text, headers={"Content-Type": "application/jsonl"}
    )
    assert response.status_code == 202, response.text
    assert response.json()["total"] == 3

    def refused(content: bytes, status: int, code: str, kind: str = "application/jsonl") -> Any:
        answer = client.post("/v1/batches/jsonl", content=content, headers={"Content-Type": kind})
        return problem(answer, status, code)

    assert "line 2" in refused(b'{"prompt": "a"}\n{"prompt": ', 400, "malformed_request")["detail"]
    assert pointers(refused(b'{"prompt": "a"}\n{"promt": "b"}', 422, "invalid_batch"))
    refused(b"\n", 422, "invalid_request")
    refused(b"\xff\xfe", 400, "malformed_request")
    refused(b'{"prompt": "a"}', 415, "unsupported_media_type", "text/csv")


WRONG_BODIES: dict[str, tuple[bytes, str | None, str]] = {
    "nothing": (b"", "#", "#: missing; it is required"),
    "null": (b"null", "#", "#: must be a valid dictionary or object to extract fields from"),
    "a list": (b"[]", "#", "#: must be a valid dictionary or object to extract fields from"),
    "no items": (b"{}", "#/items", "items: missing; it is required"),
    "items that are no list": (b'{"items": 5}', "#/items", "items: must be a valid tuple"),
    "unknown field": (b'{"items": [{}], "a": 1}', "#/a", "a: unknown field"),
    "two errors": (b'{"items": [], "a": 1}', "#/items", "(and 1 more)"),
    "cut": (b'{"items": [', None, "not JSON: Expecting value at character 11"),
    "not UTF-8": (b'{"items": ["\xff"]}', None, "the body cannot be parsed: not JSON in UTF-8"),
    "deep": (b"[" * 100_000, None, "the body cannot be parsed: not JSON in UTF-8"),
}


@pytest.mark.parametrize(
    ("body", "pointer", "says"), WRONG_BODIES.values(), ids=WRONG_BODIES.keys()
)
def test_a_body_that_is_no_batch(
    client: httpx.Client, body: bytes, pointer: str | None, says: str
) -> None:
    answer = client.post(
        "/v1/batches", content=body, headers={"Content-Type": "application/json; charset=utf-8"}
    )
    if pointer is None:
        found = problem(answer, 400, "malformed_request")
    else:
        found = problem(answer, 422, "invalid_request")
        assert pointers(found)[0] == pointer
    assert says in found["detail"]


class Spy:
    """Stands for a function; says which of its calls were on an event loop."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.on_the_loop: list[bool] = []

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.on_the_loop.append(asyncio._get_running_loop() is not None)
        return self._function(*arguments, **options)


def test_the_event_loop_neither_parses_nor_checks(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    parses, checks = Spy(json.loads), Spy(batch_schemas.field_errors)
    monkeypatch.setattr(batch_schemas, "field_errors", checks)
    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", parses)
        answer = client.post("/v1/batches", json={"items": [{}, {}]})
    problem(answer, 422, "invalid_batch")
    assert parses.on_the_loop == [False]
    assert checks.on_the_loop == [False, False]


def test_items_beyond_the_limit_are_not_looked_at(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = Spy(batch_schemas.field_errors)
    monkeypatch.setattr(batch_schemas, "field_errors", checks)
    for count in (301, 10_001):
        answer = client.post("/v1/batches", json={"items": [{}] * count})
        assert "may have 300" in problem(answer, 413, "payload_too_large")["detail"]
        answer = client.post(
            "/v1/batches/jsonl",
            content=b"{}\n" * count,
            headers={"Content-Type": "application/jsonl"},
        )
        assert "may have 300" in problem(answer, 413, "payload_too_large")["detail"]
    assert checks.on_the_loop == []


def test_reading_lines_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b"{}\n\n" * 100_000
    parses = Spy(json.loads)
    monkeypatch.setattr(json, "loads", parses)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            parse_lines(lines, 7)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(parses.on_the_loop) == 7
    assert peak < 100_000
    assert len(parse_lines(b"{}\r\n \n" * 7, 7).items) == 7


def test_limits(client: httpx.Client) -> None:
    problem(client.post("/v1/batches", json={"items": items(301)}), 413, "payload_too_large")
    problem(client.post("/v1/batches", json={"items": []}), 422, "invalid_request")
    create(client, 300)
    refusal = client.post("/v1/batches", json={"items": items(101)})
    assert "no room for 101 more" in problem(refusal, 503, "queue_full")["detail"]
    create(client, 100)  # all or none: exactly what there is room for
    problem(client.get("/v1/batches/batch_0"), 404, "not_found")
    unknown = client.get("/v1/batches/batch_" + "0" * 24)
    assert "batch" in problem(unknown, 404, "not_found")["detail"]


def test_cancel_keeps_what_has_succeeded(client: httpx.Client, records: RecordStore) -> None:
    batch = create(client, 6)["id"]
    (first,) = records.take("w")
    records.succeed(first.id, first.attempt, a_result(first.id, first.attempt))
    (second,) = records.take("w")
    response = client.post(f"/v1/batches/{batch}/cancel")
    assert response.status_code == 200, response.text
    found = response.json()
    assert found["state"] == "canceled"
    assert (found["counts"]["succeeded"], found["counts"]["canceled"]) == (1, 5)
    assert records.get(second.id).state is JobState.CANCELED
    assert records.take("w") == []
    again = client.post(f"/v1/batches/{batch}/cancel")
    assert again.json() == found
    whole = create(client, 1)["id"]
    finish(records)
    problem(client.post(f"/v1/batches/{whole}/cancel"), 409, "state_conflict")


def cancel_as_the_last_job_ends(
    own: GatewaySettings, monkeypatch: pytest.MonkeyPatch, batch: str, end: Callable[[], object]
) -> BatchRecord:
    """Cancel, where `end` happens between the look at the batch and the cancel of its jobs."""
    redis = connect(own)
    batches = BatchStore(redis, own)
    look = batches.get

    def look_once(*arguments: Any) -> BatchRecord:
        monkeypatch.undo()
        found = look(*arguments)
        end()
        return found

    monkeypatch.setattr(batches, "get", look_once)
    try:
        return batches.cancel(batch)
    finally:
        redis.close()


def test_a_cancel_that_comes_too_late_cancels_nothing(
    client: httpx.Client,
    records: RecordStore,
    own: GatewaySettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = create(client, 2)["id"]
    jobs = records.take("w", 50, 10**9)
    records.succeed(jobs[0].id, jobs[0].attempt, a_result(jobs[0].id, jobs[0].attempt))

    def end() -> None:
        records.fail(jobs[1].id, jobs[1].attempt, FAILURE)

    with pytest.raises(StateConflict, match="partially_failed"):
        cancel_as_the_last_job_ends(own, monkeypatch, batch, end)
    found = get(client, batch)
    assert (found["state"], found["counts"]["canceled"]) == ("partially_failed", 0)
    problem(client.post(f"/v1/batches/{batch}/cancel"), 409, "state_conflict")


def test_a_cancel_of_what_expires_just_now_leaves_nothing_behind(
    client: httpx.Client,
    records: RecordStore,
    own: GatewaySettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = create(client, 1)["id"]
    redis = connect(own)

    def end() -> None:
        finish(records)
        redis.delete(batch_key(own, batch))

    with pytest.raises(JobExpired):
        cancel_as_the_last_job_ends(own, monkeypatch, batch, end)
    assert not redis.exists(batch_key(own, batch))
    redis.close()


def test_a_batch_is_canceled_when_any_of_its_items_is(
    client: httpx.Client, records: RecordStore
) -> None:
    batch = create(client, 3)["id"]
    (item, *_) = client.get(f"/v1/batches/{batch}/items").json()["items"]
    assert client.post(f"/v1/generations/{item['generation_id']}/cancel").status_code == 200
    assert get(client, batch)["state"] == "running"
    finish(records, but_fail=("number 1",))
    assert get(client, batch)["state"] == "canceled"


def test_failed_items_are_tried_again_in_their_places(
    client: httpx.Client, records: RecordStore, reconciler: Reconciler
) -> None:
    batch = create(client, 5)["id"]
    failing = ("number 1", "number 3")
    first_run = {job.request.prompt: job.id for job in finish(records, but_fail=failing)}
    partial = get(client, batch)
    assert (partial["state"], partial["counts"]["failed"]) == ("partially_failed", 2)
    reconciler.reconcile_once()
    assert get(client, batch)["manifest_url"]
    response = client.post(f"/v1/batches/{batch}/retry")
    assert response.status_code == 202, response.text
    assert response.json()["counts"] == {
        "queued": 2,
        "running": 0,
        "succeeded": 3,
        "failed": 0,
        "canceled": 0,
    }
    assert get(client, batch)["manifest_url"] is None
    second_run = {job.request.prompt: job.id for job in finish(records)}
    assert set(second_run) == set(failing)
    assert records.get(first_run["number 1"]).state is JobState.FAILED
    assert get(client, batch)["state"] == "succeeded"
    reconciler.reconcile_once()
    text = httpx.get(get(client, batch)["manifest_url"], trust_env=False).text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["custom_id"] for line in lines] == ["c0", "c1", "c2", "c3", "c4"]
    assert lines[3]["generation_id"] == second_run["number 3"]
    problem(client.post(f"/v1/batches/{batch}/retry"), 409, "state_conflict")


def test_one_idempotency_key_makes_one_batch(client: httpx.Client, own: GatewaySettings) -> None:
    first = create(client, 4, **{"Idempotency-Key": "k1"})
    again = client.post("/v1/batches", json={"items": items(4)}, headers={"Idempotency-Key": "k1"})
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    assert again.headers["idempotency-replayed"] == "true"
    other = client.post("/v1/batches", json={"items": items(5)}, headers={"Idempotency-Key": "k1"})
    assert other.status_code == 422
    assert len(client.get("/v1/generations?limit=100").json()["items"]) == 4


def test_anothers_batch_does_not_exist(client: httpx.Client, own: GatewaySettings) -> None:
    redis = connect(own)
    theirs = create(client, 1)["id"]
    redis.hset(batch_key(own, theirs), "owner", "somebody")
    for response in (
        client.get(f"/v1/batches/{theirs}"),
        client.get(f"/v1/batches/{theirs}/items"),
        client.post(f"/v1/batches/{theirs}/cancel"),
        client.post(f"/v1/batches/{theirs}/retry"),
    ):
        problem(response, 404, "not_found")
    assert BatchStore(redis, own).get(theirs).owner == "somebody"
    redis.close()


def test_an_expired_batch_is_gone_with_its_manifest(
    client: httpx.Client, records: RecordStore, reconciler: Reconciler, own: GatewaySettings
) -> None:
    batch = create(client, 2)["id"]
    finish(records)
    reconciler.reconcile_once()
    redis, store = connect(own), ObjectStore(own)
    assert 0 < redis.ttl(batch_key(own, batch)) <= own.record_ttl_s
    assert len(store.list_keys(f"batches/{batch}/")) == 1
    redis.delete(batch_key(own, batch))
    problem(client.get(f"/v1/batches/{batch}"), 410, "gone")
    reconciler.reconcile_once()
    assert list(store.list_keys(f"batches/{batch}/")) == []
    redis.close()
    store.close()
