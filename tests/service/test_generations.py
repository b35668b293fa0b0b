"""Looking at generations, listing and canceling them, through all their states."""

from __future__ import annotations

import httpx
import pytest

from jobs.record import Failure, FailureCode, Progress, RecordStore
from jobs.result import (
    ControlDistance,
    ResultSummary,
    StoredFrame,
    StoredReadout,
    StoredResult,
    attempt_prefix,
)
from jobs.store import ObjectStore
from tests.service.conftest import problem, upload


def create(client: httpx.Client, **changes: object) -> str:
    """A queued generation; its id."""
    response = client.post("/v1/generations", json={"prompt": "a"} | changes)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def get(client: httpx.Client, generation_id: str) -> httpx.Response:
    """The generation now."""
    response = client.get(f"/v1/generations/{generation_id}")
    assert response.status_code == 200, response.text
    return response


def test_running_shows_progress(client: httpx.Client, records: RecordStore) -> None:
    generation_id = create(client)
    attempt = records.start(generation_id, "worker-1")
    records.progress(generation_id, attempt, Progress(step=3, total_steps=10, stage="sampling"))
    response = get(client, generation_id)
    assert int(response.headers["retry-after"]) >= 1
    found = response.json()
    assert found["state"] == "running"
    assert found["attempt"] == 1
    assert found["started_at"] is not None
    nothing: dict[str, object] = {"distances": [], "previews": []}
    assert found["progress"] == {"step": 3, "total_steps": 10, "stage": "sampling"} | nothing


def test_failed_says_why(client: httpx.Client, records: RecordStore) -> None:
    generation_id = create(client)
    attempt = records.start(generation_id, "worker-1")
    failure = Failure(code=FailureCode.DIVERGED, message="step 7: lower the weight")
    records.fail(generation_id, attempt, failure)
    response = get(client, generation_id)
    assert "retry-after" not in response.headers
    found = response.json()
    assert found["state"] == "failed"
    assert found["failure"] == {"code": "diverged", "message": "step 7: lower the weight"}
    assert found["result"] is None
    assert found["progress"] is None


def test_succeeded_has_urls_that_work(
    client: httpx.Client, records: RecordStore, objects: ObjectStore
) -> None:
    image = {"upload_id": upload(client)}
    controls = [{"type": "spatial", "head": head, "image": image} for head in ("pose", "depth")]
    generation_id = create(client, controls=controls, seed=5)
    attempt = records.start(generation_id, "worker-1")
    prefix = attempt_prefix(generation_id, attempt)
    names = ("image-000.png", "readout-000-pose.png", "evolution-000-step-004-image.png")
    for name in (*names, "manifest.json"):
        objects.put_bytes(prefix + name, name.encode())
    stored = StoredResult(
        index=0,
        seed=5,
        key=prefix + names[0],
        sha256="0" * 64,
        width=64,
        height=64,
        distances={
            "1": ControlDistance(head="tiny/depth", distance=None),
            "0": ControlDistance(head="tiny/pose", distance=0.25),
        },
        readouts=(StoredReadout(head="tiny/pose", key=prefix + names[1]),),
        evolution=(StoredFrame(step=4, key=prefix + names[2]),),
    )
    summary = ResultSummary(
        attempt=attempt,
        manifest_key=prefix + "manifest.json",
        images=(stored,),
        timings={"sample": 1.5},
    )
    records.succeed(generation_id, attempt, summary)

    found = get(client, generation_id).json()
    assert found["state"] == "succeeded"
    result = found["result"]
    assert result["timings"] == {"sample": 1.5}
    picture = result["images"][0]
    assert [(one["control"], one["distance"]) for one in picture["distances"]] == [
        (0, 0.25),
        (1, None),
    ]
    urls = [
        picture["url"],
        picture["readouts"][0]["url"],
        picture["evolution"][0]["url"],
        result["manifest_url"],
    ]
    for url, name in zip(urls, (*names, "manifest.json"), strict=True):
        assert httpx.get(url, trust_env=False).content == name.encode()


def test_list_pages_newest_first(client: httpx.Client) -> None:
    created = [create(client, prompt=f"number {index}") for index in range(5)]
    newest = client.get("/v1/generations?limit=2").json()
    assert [item["id"] for item in newest["items"]] == created[:2:-1]
    assert newest["items"][0]["prompt"] == "number 4"
    create(client)
    rest = client.get("/v1/generations", params={"limit": 3, "cursor": newest["next_cursor"]})
    assert [item["id"] for item in rest.json()["items"]] == created[2::-1]


def test_list_ends_and_filters(client: httpx.Client) -> None:
    generation_id = create(client)
    client.post(f"/v1/generations/{generation_id}/cancel")
    seen: list[str] = []
    cursor: str | None = None
    while True:
        query = {"state": "canceled", "limit": 1} | ({"cursor": cursor} if cursor else {})
        page = client.get("/v1/generations", params=query).json()
        assert {item["state"] for item in page["items"]} <= {"canceled"}
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen[0] == generation_id
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("started", [False, True])
def test_cancel_is_immediate_and_idempotent(
    client: httpx.Client, records: RecordStore, started: bool
) -> None:
    generation_id = create(client)
    if started:
        records.start(generation_id, "worker-1")
    for _ in range(2):
        response = client.post(f"/v1/generations/{generation_id}/cancel")
        assert response.status_code == 200
        assert response.json()["state"] == "canceled"
        assert response.json()["finished_at"] is not None
        assert "retry-after" not in response.headers


def test_cancel_of_a_finished_job(client: httpx.Client, records: RecordStore) -> None:
    generation_id = create(client)
    attempt = records.start(generation_id, "worker-1")
    records.fail(generation_id, attempt, Failure(code=FailureCode.INTERNAL, message="x"))
    found = problem(client.post(f"/v1/generations/{generation_id}/cancel"), 409, "state_conflict")
    assert "failed" in found["detail"]
    assert get(client, generation_id).json()["state"] == "failed"
