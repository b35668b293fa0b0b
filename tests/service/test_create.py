"""Creating generations: defaults, the echo, and what lands in the queue."""

from __future__ import annotations

import base64
import re
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from heads_registry.catalogue import Catalogue
from jobs.queue import JobQueue
from jobs.record import RecordStore
from jobs.request import Keypoint, Pose
from service.checks import guided_steps
from service.keypoints import OpenPoseKeypoints
from service.settings import GatewaySettings
from tests.service.conftest import image_bytes, upload

POSE = [number for index in range(18) for number in (10.0 + index, 20.0 + 2 * index, 1.0)]


def test_create_answers_202_with_location_and_the_effective_request(
    client: httpx.Client, records: RecordStore, settings: GatewaySettings
) -> None:
    response = client.post("/v1/generations", json={"prompt": "a person"})
    assert response.status_code == 202
    generation = response.json()
    assert re.fullmatch(r"/v1/generations/gen_[0-9a-f]{24}", response.headers["location"])
    assert response.headers["location"].endswith(generation["id"])
    assert int(response.headers["retry-after"]) >= 1
    assert generation["state"] == "queued"
    assert generation["attempt"] == 0
    asked = generation["request"]
    assert 0 <= asked.pop("seed") < 2**32
    assert asked == {
        "prompt": "a person",
        "negative_prompt": "",
        "model": "tiny",
        "task": "text_to_image",
        "num_images": 1,
        "num_candidates": None,
        "keep": "best",
        "height": 64,
        "width": 64,
        "num_inference_steps": 10,
        "guidance_scale": 5.0,
        "eta": 0.0,
        "form": "two_pass",
        "branch": "unconditional",
        "update_rule": "elementwise",
        "controls": [],
        "reference": None,
        "start": "seed",
        "adapters": [],
        "adapter_gradient": "constant",
        "init_image": None,
        "strength": None,
        "mask": None,
        "points": None,
        "boxes": None,
        "region": None,
        "unit": "fraction",
        "weight_sweep": None,
        "output": {
            "format": "png",
            "embed_parameters": True,
            "readouts": True,
            "evolution_steps": [],
            "animation": None,
        },
        "webhook_url": None,
    }
    record = records.get(generation["id"])
    assert record.request_id == response.headers["x-request-id"]
    queue, deadline = JobQueue(settings), time.monotonic() + 20
    while generation["id"] not in queue.waiting():  # written by a thread of its own
        assert time.monotonic() < deadline
        time.sleep(0.01)
    queue.close()


def test_defaults_are_request_over_task_over_head_over_model(client: httpx.Client) -> None:
    image = {"upload_id": upload(client)}
    asked = {
        "prompt": "",
        "controls": [
            {"type": "spatial", "head": "pose", "image": image},
            {"type": "spatial", "head": "depth", "image": image},
            {"type": "spatial", "head": "tiny/depth", "image": image, "weight": 2, "span": [0, 1]},
        ],
    }
    effective = client.post("/v1/generations", json=asked).json()["request"]
    assert effective["task"] == "spatial"
    assert effective["eta"] == 1.0
    assert [control["head"] for control in effective["controls"]] == [
        "tiny/pose",
        "tiny/depth",
        "tiny/depth",
    ]
    assert [control["weight"] for control in effective["controls"]] == [0.7, 0.3, 2.0]
    assert [control["span"] for control in effective["controls"]] == [[0, 0.5], [0.2, 0.8], [0, 1]]
    again = client.post("/v1/generations", json=asked | {"eta": 0.25}).json()["request"]
    assert again["eta"] == 0.25


def test_the_echo_is_itself_a_request_that_means_the_same(client: httpx.Client) -> None:
    encoded = base64.b64encode(image_bytes((50, 20))).decode()
    asked = {
        "prompt": "ein Mann, 人\nzwei",
        "num_images": 2,
        "height": 96,
        "controls": [
            {"type": "spatial", "head": "depth", "image": {"base64": encoded}, "fit": "contain"},
            {
                "type": "spatial",
                "head": "pose",
                "keypoints": {
                    "people": [{"pose_keypoints_2d": POSE}],
                    "canvas_width": 301,
                    "canvas_height": 77,
                },
            },
        ],
        "output": {"evolution_steps": [9, 0, 9], "format": "webp"},
    }
    first = client.post("/v1/generations", json=asked)
    assert first.status_code == 202, first.text
    effective = first.json()["request"]
    assert effective["output"]["evolution_steps"] == [0, 9]
    assert set(effective["controls"][0]["image"]) >= {"upload_id"}
    second = client.post("/v1/generations", json=effective)
    assert second.status_code == 202, second.text
    assert second.json()["request"] == effective


def test_a_data_url_is_an_image_too(client: httpx.Client, records: RecordStore) -> None:
    encoded = base64.encodebytes(image_bytes((33, 22), kind="WEBP")).decode()
    control = {
        "type": "spatial",
        "head": "depth",
        "image": {"base64": f"data:image/webp;base64,{encoded}"},
    }
    response = client.post("/v1/generations", json={"prompt": "", "controls": [control]})
    assert response.status_code == 202, response.text
    image = records.get(response.json()["id"]).request.controls[0].image
    assert image is not None
    assert (image.width, image.height) == (33, 22)


def test_null_means_the_default(client: httpx.Client) -> None:
    names = ("negative_prompt", "model", "task", "seed", "height", "eta", "form", "guidance_scale")
    response = client.post("/v1/generations", json={"prompt": "a"} | dict.fromkeys(names))
    assert response.status_code == 202, response.text
    assert response.json()["request"]["guidance_scale"] == 5.0


def test_a_client_may_name_its_request(client: httpx.Client) -> None:
    mine = client.get("/livez", headers={"X-Request-ID": "order-66.b_1"})
    assert mine.headers["x-request-id"] == "order-66.b_1"
    for hostile in ("a b", "x" * 65, "", "ü".encode(), '"'):
        answer = client.get("/livez", headers={"X-Request-ID": hostile})
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_a_head_fits_every_model_of_its_family(client: httpx.Client) -> None:
    control = {"type": "spatial", "head": "pose", "image": {"upload_id": upload(client)}}
    asked = {"prompt": "a", "model": "tiny-tuned", "controls": [control]}
    response = client.post("/v1/generations", json=asked)
    assert response.json()["request"]["controls"][0]["head"] == "tiny/pose"


@pytest.mark.parametrize(
    ("span", "steps", "expected"),
    [
        ((0.0, 0.5), 10, range(5)),
        ((0.29, 0.57), 100, range(29, 57)),
        ((0.0, 1.0), 1, range(1)),
        ((0.0, 0.01), 10, range(0)),
    ],
)
def test_span_ends_are_rounded(span: tuple[float, float], steps: int, expected: range) -> None:
    assert guided_steps(span, steps) == expected


points = st.none() | st.builds(
    Keypoint,
    x=st.floats(-0.9, 1.9),
    y=st.floats(-0.9, 1.9),
    confidence=st.floats(0.01, 1),
)


@given(
    st.lists(st.tuples(*[points] * 18), min_size=1, max_size=3),
    st.floats(1 / 32, 32),
)
@hypothesis_settings(deadline=None, max_examples=50)
def test_a_pose_survives_its_echo(people: list[tuple[Keypoint | None, ...]], ratio: float) -> None:
    pose = Pose(people=tuple(people), aspect_ratio=ratio)
    if not any(point for person in people for point in person):
        return
    sent = OpenPoseKeypoints.from_pose(pose).model_dump_json()
    assert OpenPoseKeypoints.model_validate_json(sent).to_pose(1.0) == pose


def test_the_fixture_reads(catalogue: Catalogue) -> None:
    assert [head.id for head in catalogue.heads] == [
        "other/edge",
        "tiny/depth",
        "tiny/points",
        "tiny/pose",
        "whole/appearance",
        "whole/correspondence",
        "whole/depth",
        "whole/identity",
    ]
