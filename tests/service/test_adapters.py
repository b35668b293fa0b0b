"""Adapters in requests: what is filled in, and what is wrong with them."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from jobs.record import RecordStore
from jobs.schedule import batch_group, cost
from tests.service.conftest import image_bytes, pointers, problem, upload

POINTS = [0.5, 0.5, 1.0] * 18
KEYPOINTS = {"people": [{"pose_keypoints_2d": POINTS}]}
IMAGE = {"base64": base64.b64encode(image_bytes()).decode()}


def asked(*adapters: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"prompt": "a", "adapters": list(adapters)} | changes


def create(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/generations", json=body)
    assert response.status_code == 202, response.text
    found: dict[str, Any] = response.json()
    return found


def test_the_effective_adapters_are_echoed(client: httpx.Client, records: RecordStore) -> None:
    image = {"upload_id": upload(client)}
    net = {"type": "controlnet", "model": "pose-net", "keypoints": KEYPOINTS, "span": [0, 0.5]}
    t2i = {"model": "tiny/depth-t2i", "image": image, "fit": "contain"}
    created = create(client, asked(net, t2i, adapter_gradient="full"))
    found = created["request"]
    first, second = found["adapters"]
    assert (first["type"], first["model"]) == ("controlnet", "tiny/pose-net")
    assert (first["scale"], first["span"]) == (1.0, [0, 0.5])
    assert first["keypoints"]["people"]
    assert (second["type"], second["scale"], second["span"]) == ("t2i_adapter", 0.6, [0.0, 0.7])
    assert (second["image"], second["fit"]) == (image | {"base64": None}, "contain")
    assert (found["task"], found["adapter_gradient"]) == ("text_to_image", "full")
    assert create(client, found)["request"] == found
    stored = records.get(created["id"]).request
    assert [adapter.model for adapter in stored.adapters] == ["tiny/pose-net", "tiny/depth-t2i"]


def test_an_image_in_the_request_becomes_an_upload(client: httpx.Client) -> None:
    [adapter] = create(client, asked({"model": "pose-net", "image": IMAGE}, prompt=""))["request"][
        "adapters"
    ]
    assert adapter["image"]["upload_id"].startswith("upl_")


def test_batches_and_estimates_take_adapters(client: httpx.Client) -> None:
    adapter = {"model": "pose-net", "image": {"upload_id": upload(client)}}
    batch = client.post("/v1/batches", json={"items": [asked(adapter), {"prompt": "b"}]})
    assert batch.status_code == 202, batch.text
    bad = client.post("/v1/batches", json={"items": [asked(adapter | {"scale": 3})]})
    assert pointers(problem(bad, 422, "invalid_batch")) == ["#/items/0/adapters/0/scale"]
    estimate = client.post("/v1/estimate", json=asked({"model": "pose-net", "image": IMAGE}))
    assert estimate.status_code == 200, estimate.text


def test_adapters_cost_and_share_batches(client: httpx.Client, records: RecordStore) -> None:
    adapter = {"model": "pose-net", "image": {"upload_id": upload(client)}}
    with_net, plain = (
        records.get(create(client, body)["id"]).request
        for body in (asked(adapter), {"prompt": "a"})
    )
    assert cost(with_net) == pytest.approx(1.5 * cost(plain))
    assert batch_group(with_net) == batch_group(plain)


NET = {"model": "pose-net", "image": IMAGE}
WRONG: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("unknown", NET | {"model": "canny"}, "unknown_adapter", "model", "pose-net"),
    ("another family's", NET | {"model": "edge-net"}, "incompatible_adapter", "model", "other"),
    ("another family's, by id", NET | {"model": "other/edge-net"}, "incompatible_adapter", "model",
     "of family 'tiny'"),
    ("another type", NET | {"type": "t2i_adapter"}, "incompatible_adapter", "type", "controlnet"),
    ("no such type", NET | {"type": "lora"}, "invalid_request", "type", "controlnet"),
    ("too strong", NET | {"scale": 2.5}, "invalid_request", "scale", "0 to 2"),
    ("negative", NET | {"scale": -1}, "invalid_request", "scale", "greater than or equal to 0"),
    ("a span backwards", NET | {"span": [0.5, 0.2]}, "invalid_request", "span", "start < end"),
    ("a span of no step", NET | {"span": [0, 0.01]}, "invalid_request", "span", "none of the 10"),
    ("a span outside", NET | {"span": [0, 1.5]}, "invalid_request", "span/1", "less than or equal"),
    ("no image", {"model": "pose-net"}, "invalid_request", "", "exactly one"),
    ("an image and key points", NET | {"keypoints": KEYPOINTS}, "invalid_request", "",
     "exactly one"),
    ("key points for depth", {"model": "depth-t2i", "keypoints": KEYPOINTS}, "invalid_request",
     "keypoints", "give an image"),
    ("not an image", NET | {"image": {"base64": "AAAA"}}, "invalid_image", "image/base64", ""),
    ("no such upload", NET | {"image": {"upload_id": "upl_0"}}, "unknown_upload",
     "image/upload_id", "POST /v1/uploads"),
    ("an unknown field", NET | {"weight": 1}, "invalid_request", "weight", "unknown field"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("adapter", "code", "pointer", "says"),
    [row[1:] for row in WRONG],
    ids=[row[0] for row in WRONG],
)
def test_what_is_wrong_is_named(
    client: httpx.Client, adapter: dict[str, Any], code: str, pointer: str, says: str
) -> None:
    found = problem(client.post("/v1/generations", json=asked(adapter)), 422, code)
    assert pointers(found) == [f"#/adapters/0/{pointer}".removesuffix("/")]
    assert says in found["detail"]


def test_too_many_and_sizes_and_originals(client: httpx.Client) -> None:
    many = client.post("/v1/generations", json=asked(*[NET] * 5))
    assert pointers(problem(many, 422, "invalid_request")) == ["#/adapters"]
    t2i = {"model": "depth-t2i", "image": IMAGE}
    odd = client.post("/v1/generations", json=asked(t2i, height=96))
    found = problem(odd, 422, "invalid_request")
    assert pointers(found) == ["#/height"]
    assert "multiples of 64" in found["detail"]
    face = {"x0": 0.25, "y0": 0.0, "x1": 0.5, "y1": 0.25}
    identity = {
        "model": "whole",
        "task": "identity",
        "reference": {"prompt": "a", "seed": 3},
        "boxes": [{"reference": face}],
    }
    original = client.post("/v1/generations", json=asked(NET, **identity))
    assert pointers(problem(original, 422, "invalid_request")) == ["#/adapters"]


def test_the_catalogue_lists_adapters(client: httpx.Client) -> None:
    found = client.get("/v1/adapters?model=tiny-tuned").json()["items"]
    assert [one["id"] for one in found] == ["tiny/depth-t2i", "tiny/pose-net"]
    assert [one["accepts"] for one in found] == [["image"], ["image", "keypoints"]]
    assert found[0]["defaults"] == {"scale": 0.6, "span": [0.0, 0.7]}
    assert (found[0]["max_scale"], found[0]["size_multiple"]) == (1.5, 64)
    assert found[0]["models"] == ["tiny", "tiny-tuned"]
    everything = {one["id"] for one in client.get("/v1/adapters").json()["items"]}
    assert everything >= {"other/edge-net", "mannequin-64/pose-controlnet"}
    assert client.get("/v1/models/tiny").json()["adapters"] == ["tiny/depth-t2i", "tiny/pose-net"]
    problem(client.get("/v1/adapters?model=nothing"), 422, "unknown_model")
