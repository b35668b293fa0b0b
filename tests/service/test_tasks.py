"""Tasks: what presets expand to, references, and what is wrong with either."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from jobs.controls import BoxPair
from jobs.record import Failure, FailureCode, RecordStore
from jobs.request import InvertedReference, SampledReference
from jobs.result import ResultSummary, StoredResult, attempt_prefix
from tests.service.conftest import image_bytes, pointers, problem, upload

POINTS = [{"from": {"x": 0.25, "y": 0.5}, "to": {"x": 0.75, "y": 0.5}}]
FACE = {"x0": 0.25, "y0": 0.0, "x1": 0.5, "y1": 0.25}
SEEDED = {"prompt": "a", "seed": 3}
INLINE = {"base64": base64.b64encode(image_bytes()).decode()}


def drag(**changes: Any) -> dict[str, Any]:
    asked = {"model": "whole", "task": "drag", "prompt": "a", "points": POINTS} | changes
    asked = {"reference": SEEDED} | asked
    return {name: value for name, value in asked.items() if value is not ...}


def create(client: httpx.Client, asked: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/generations", json=asked)
    assert response.status_code == 202, response.text
    found: dict[str, Any] = response.json()
    return found


def effective(client: httpx.Client, asked: dict[str, Any]) -> dict[str, Any]:
    """The echo, which must be a request that means the same."""
    found: dict[str, Any] = create(client, asked)["request"]
    assert create(client, found)["request"] == found
    return found


def finish(records: RecordStore, generation: dict[str, Any]) -> str:
    """Let a worker succeed; the generation's id."""
    job_id = str(generation["id"])
    attempt = records.start(job_id, "worker")
    request = records.get(job_id).request
    prefix = attempt_prefix(job_id, attempt)
    images = tuple(
        StoredResult(
            index=index,
            seed=request.seed + index,
            key=f"{prefix}image-{index:03d}.png",
            sha256="0" * 64,
            width=request.width,
            height=request.height,
        )
        for index in range(request.num_images)
    )
    summary = ResultSummary(attempt=attempt, manifest_key=f"{prefix}manifest.json", images=images)
    records.succeed(job_id, attempt, summary)
    return job_id


def test_dragging_a_generated_image(client: httpx.Client) -> None:
    found = effective(client, drag(task=...))
    assert found["task"] == "drag"
    assert [control["head"] for control in found["controls"]] == [
        "whole/appearance",
        "whole/correspondence",
    ]
    assert [control["weight"] for control in found["controls"]] == [1.0, 1.0]
    assert [control["span"] for control in found["controls"]] == [[0, 0.5], [0, 0.5]]
    assert found["controls"][1]["points"] == POINTS
    assert (found["guidance_scale"], found["eta"], found["start"]) == (5.0, 0.0, "reference")
    assert found["seed"] == 3  # whose noise the reference has
    assert found["reference"]["guidance_scale"] == 5.0


def test_a_drag_has_the_eta_of_the_noise_that_it_begins_with(client: httpx.Client) -> None:
    lively = SEEDED | {"eta": 0.7}
    assert effective(client, drag(reference=lively))["eta"] == 0.7
    assert effective(client, drag(reference=lively, eta=0.2))["eta"] == 0.2
    assert effective(client, drag(reference=lively, start="seed"))["eta"] == 0.0


def test_dragging_a_real_image(client: httpx.Client, records: RecordStore) -> None:
    created = create(client, drag(reference=INLINE, prompt="a wolf"))
    assert created["request"]["guidance_scale"] == 3.5
    reference = records.get(created["id"]).request.reference
    assert isinstance(reference, InvertedReference)
    assert reference.prompt == "a wolf"
    assert created["request"]["reference"]["upload_id"] == reference.image.upload_id
    assert create(client, created["request"])["request"] == created["request"]
    tuned = create(client, drag(reference=INLINE, model="whole-tuned"))["request"]
    assert tuned["guidance_scale"] == 2.0
    assert (tuned["form"], tuned["branch"]) == ("one_pass", "both")
    assert created["request"]["form"] == "two_pass"
    asked = create(client, drag(reference=INLINE, guidance_scale=6.0))["request"]
    assert asked["guidance_scale"] == 6.0


def test_a_region_that_stays_and_pixels(client: httpx.Client) -> None:
    pixels = [{"from": {"x": 16, "y": 32}, "to": {"x": 48, "y": 32}}]
    region = {"boxes": [{"x0": 16, "y0": 0, "x1": 32, "y1": 16}]}
    found = effective(client, drag(points=pixels, unit="px", region=region))
    assert found["unit"] == "fraction"
    assert found["controls"][1]["points"] == POINTS
    assert found["controls"][0]["region"] == {"boxes": [FACE], "outside": False}
    assert found["region"] is None


def test_appearance_and_its_sweep(client: httpx.Client) -> None:
    asked = {"model": "whole", "prompt": "b", "reference": SEEDED, "weight_sweep": [0, 0.5, 1]}
    found = effective(client, asked)
    assert (found["task"], found["start"], found["eta"]) == ("appearance", "seed", 0.0)
    assert found["num_images"] == 3
    [control] = found["controls"]
    assert (control["type"], control["weight"], control["span"]) == ("appearance", 1, [0.05, 0.5])
    assert control["towards"] == "reference"


def test_identity_has_an_appearance_term_outside_the_faces(client: httpx.Client) -> None:
    other = {"x0": 0.5, "y0": 0.5, "x1": 1.0, "y1": 1.0}
    boxes = [{"reference": FACE}, {"reference": FACE, "picture": other}]
    asked = {"model": "whole", "prompt": "b", "reference": SEEDED, "boxes": boxes}
    found = effective(client, asked)
    assert (found["task"], found["eta"]) == ("identity", 1.0)
    identity, around = found["controls"]
    assert (identity["weight"], identity["span"]) == (1.0, [0.05, 0.8])
    assert identity["boxes"][0] == {"reference": FACE, "picture": FACE}
    assert (around["towards"], around["span"]) == ("original", [0.05, 0.8])
    assert around["region"] == {"boxes": [FACE, other], "outside": True}
    without = asked | {
        "controls": [{"type": "appearance", "towards": "original", "weight": 0}],
    }
    assert len(effective(client, without)["controls"]) == 2


def test_faces_are_left_to_be_found_where_the_model_has_a_detector(
    client: httpx.Client, records: RecordStore
) -> None:
    asked = {"model": "whole-tuned", "prompt": "b", "reference": SEEDED, "task": "identity"}
    created = create(client, asked)
    identity, around = created["request"]["controls"]
    assert identity["boxes"] is None
    assert around["region"] == {"boxes": None, "outside": True}
    assert create(client, created["request"])["request"] == created["request"]
    request = records.get(created["id"]).request
    assert request.controls[0].boxes is None  # type: ignore[union-attr]
    attempt = records.start(created["id"], "w")
    box = {"x0": 0.25, "y0": 0.0, "x1": 0.5, "y1": 0.25}
    pair = BoxPair.model_validate({"reference": box, "picture": FACE})
    prefix = attempt_prefix(created["id"], attempt)
    image = StoredResult(
        index=0, seed=1, key=f"{prefix}0.png", sha256="0" * 64, width=64, height=64,
        boxes={"0": (pair,)},
    )  # fmt: skip
    summary = ResultSummary(attempt=attempt, manifest_key=f"{prefix}m.json", images=(image,))
    records.succeed(created["id"], attempt, summary)
    [shown] = client.get(f"/v1/generations/{created['id']}").json()["result"]["images"]
    assert shown["boxes"] == [{"control": 0, "reference": box, "picture": FACE}]


def test_any_controls_together(client: httpx.Client) -> None:
    depth = {"type": "spatial", "head": "depth", "image": {"upload_id": upload(client)}}
    asked = {"model": "whole", "prompt": "b", "reference": SEEDED, "controls": [depth]}
    found = effective(client, asked)
    assert found["task"] == "appearance"
    assert [control["type"] for control in found["controls"]] == ["spatial", "appearance"]
    assert [control["weight"] for control in found["controls"]] == [0.7, 1.0]
    mine = [depth | {"weight": 0.2}, {"type": "appearance", "weight": 0.4, "span": [0, 1]}]
    found = effective(client, drag(controls=mine))
    assert [control["type"] for control in found["controls"]] == [
        "spatial",
        "appearance",
        "correspondence",
    ]
    assert [control["weight"] for control in found["controls"]] == [0.2, 0.4, 1.0]


def test_a_spatial_control_leaves_a_drag_the_references_picture_until_its_span(
    client: httpx.Client,
) -> None:
    depth = {"type": "spatial", "head": "depth", "image": {"upload_id": upload(client)}}
    tuned = {"model": "whole-tuned", "prompt": "b", "reference": SEEDED, "controls": [depth]}
    (control, *_, correspondence) = effective(client, drag(**tuned))["controls"]
    assert control["span"] == correspondence["span"] == [0.3, 0.9]
    (control, _) = effective(client, tuned)["controls"]
    assert control["span"] != [0.3, 0.9]
    found = effective(client, drag(controls=[depth | {"span": [0.1, 0.9]}]))
    assert found["controls"][0]["span"] == [0.1, 0.9]


def test_an_earlier_generation_is_sampled_again(client: httpx.Client, records: RecordStore) -> None:
    first = create(
        client,
        {"model": "whole", "prompt": "x", "seed": 40, "num_images": 2, "guidance_scale": 4}
        | {"num_inference_steps": 7, "eta": 0.5, "negative_prompt": "n"},
    )
    made = finish(records, first)
    created = create(client, drag(reference={"generation": made, "index": 1}))
    request = records.get(created["id"]).request
    reference = request.reference
    assert isinstance(reference, SampledReference)
    assert (reference.prompt, reference.negative_prompt) == ("x", "n")
    assert (reference.seed, reference.guidance_scale, reference.eta) == (41, 4.0, 0.5)
    assert (request.seed, request.num_inference_steps, request.guidance_scale) == (41, 7, 4.0)
    assert created["request"]["reference"]["generation"] == made
    assert create(client, created["request"])["request"] == created["request"]


def test_an_earlier_guided_generation_is_inverted(
    client: httpx.Client, records: RecordStore
) -> None:
    made = finish(records, create(client, drag()))
    reference = {"generation": made}
    created = create(client, drag(reference=reference, num_inference_steps=9))
    found = records.get(created["id"]).request.reference
    assert isinstance(found, InvertedReference)
    assert found.image.key.startswith(f"jobs/{made}/1/image-000")
    assert create(client, created["request"])["request"] == created["request"]


@pytest.fixture
def nothing_is_queued(records: RecordStore) -> Iterator[None]:
    before = sum(records.counts().values())
    yield
    assert sum(records.counts().values()) == before


def outside(**point: float) -> dict[str, Any]:
    return {"x": 0.5, "y": 0.5} | point


def region(**box: float) -> dict[str, Any]:
    return {"model": "whole", "prompt": "a", "reference": SEEDED, "region": {"boxes": [FACE | box]}}


def identity(**changes: Any) -> dict[str, Any]:
    asked = {"model": "whole", "task": "identity", "prompt": "a", "reference": SEEDED}
    return asked | {"boxes": [{"reference": FACE}]} | changes


ANYWHERE = {"from": outside(), "to": outside(x=0.1)}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("drag without points", drag(points=...), "#/points"),
    ("no points", drag(points=[]), "#/points"),
    ("too many points", drag(points=[ANYWHERE] * 65), "#/points"),
    (
        "a point to the right",
        drag(points=[{"from": outside(x=1.0), "to": outside()}]),
        "#/points/0/from",
    ),
    (
        "a point above",
        drag(points=[ANYWHERE, {"from": outside(), "to": outside(y=-0.01)}]),
        "#/points/1/to",
    ),
    (
        "a pixel outside",
        drag(points=[{"from": {"x": 64, "y": 1}, "to": {"x": 1, "y": 1}}], unit="px"),
        "#/points/0/from",
    ),
    (
        "pixels taken for fractions",
        drag(points=[{"from": {"x": 10, "y": 1}, "to": {"x": 1, "y": 1}}]),
        "#/points/0/from",
    ),
    ("a drag of no length", drag(points=[{"from": outside(), "to": outside()}]), "#/points/0"),
    ("a point without y", drag(points=[{"from": {"x": 0}, "to": outside()}]), "#/points/0/from/y"),
    ("an infinite point", drag(points=[{"from": {"x": "a", "y": 0}}]), "#/points/0/from/x"),
    (
        "points of a control",
        drag(
            points=...,
            controls=[
                {"type": "correspondence", "points": [{"from": outside(x=2), "to": outside()}]}
            ],
        ),
        "#/controls/0/points/0/from",
    ),
    (
        "points twice",
        drag(controls=[{"type": "correspondence", "points": POINTS}]),
        "#/points",
    ),
    ("no reference", drag(reference=...), "#/reference"),
    ("two references", drag(reference=SEEDED | INLINE), "#/reference"),
    ("an empty reference", drag(reference={}), "#/reference"),
    ("a seed without prompt", drag(reference={"seed": 1}), "#/reference"),
    ("eta of an image", drag(reference=INLINE | {"eta": 0.5}), "#/reference"),
    ("an index without generation", drag(reference=SEEDED | {"index": 1}), "#/reference"),
    (
        "a long prompt of the reference",
        drag(reference={"seed": 1, "prompt": "a" * 201}),
        "#/reference/prompt",
    ),
    ("another seed than the reference's", drag(seed=4), "#/seed"),
    ("several pictures of one noise", drag(num_images=2), "#/num_images"),
    (
        "start without reference",
        {"model": "whole", "prompt": "a", "start": "reference"},
        "#/start",
    ),
    (
        "a reference without use",
        {"model": "whole", "prompt": "a", "task": "spatial", "reference": SEEDED}
        | {"controls": [{"type": "spatial", "head": "depth", "image": INLINE}]},
        "#/reference",
    ),
    (
        "text_to_image with a reference",
        {"model": "whole", "prompt": "a", "task": "text_to_image", "reference": SEEDED},
        "#/task",
    ),
    ("points of another task", drag(task="appearance"), "#/points"),
    ("a box outside", region(x1=1.5), "#/region/boxes/0"),
    (
        "a region of faces without any",
        {"model": "whole", "prompt": "a", "reference": SEEDED, "region": {"outside": True}},
        "#/region/boxes",
    ),
    (
        "an identity control without boxes",
        {"model": "whole", "prompt": "a", "reference": SEEDED, "controls": [{"type": "identity"}]},
        "#/controls/0/boxes",
    ),
    ("a box above", region(y0=-0.1), "#/region/boxes/0"),
    ("a box without area", region(x1=0.25), "#/region/boxes/0"),
    ("identity without boxes", identity(boxes=None), "#/boxes"),
    ("identity with no boxes", identity(boxes=[]), "#/boxes"),
    (
        "a face outside",
        identity(boxes=[{"reference": FACE, "picture": FACE | {"x1": 2.0}}]),
        "#/boxes/0/picture",
    ),
    (
        "a sweep over the limit",
        drag(weight_sweep=[0.1] * 5),
        "#/weight_sweep",
    ),
    ("a sweep of another number", drag(weight_sweep=[0, 1], num_images=3), "#/num_images"),
    ("a negative weight in a sweep", drag(weight_sweep=[-1]), "#/weight_sweep/0"),
    (
        "a sweep without reference",
        {"model": "whole", "prompt": "a", "weight_sweep": [1]},
        "#/weight_sweep",
    ),
    ("an unknown field of a point", drag(points=[ANYWHERE | {"z": 1}]), "#/points/0/z"),
]


@pytest.mark.usefixtures("nothing_is_queued")
@pytest.mark.parametrize(
    ("asked", "pointer"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_what_is_wrong_is_named(client: httpx.Client, asked: Any, pointer: str) -> None:
    found = problem(client.post("/v1/generations", json=asked), 422, "invalid_request")
    assert pointers(found)[0] == pointer
    assert found["errors"][0]["detail"] in found["detail"]


def test_a_task_is_offered_only_where_its_head_is(client: httpx.Client) -> None:
    asked = identity(model="tiny")
    found = problem(client.post("/v1/generations", json=asked), 422, "unknown_head")
    assert "no identity head" in found["detail"]
    control = {"type": "correspondence", "head": "appearance", "points": POINTS}
    asked = drag(points=..., controls=[control])
    found = problem(client.post("/v1/generations", json=asked), 422, "incompatible_head")
    assert pointers(found) == ["#/controls/0/head"]
    asked = drag(reference={"upload_id": "upl_" + "0" * 32})
    found = problem(client.post("/v1/generations", json=asked), 422, "unknown_upload")
    assert pointers(found) == ["#/reference/upload_id"]


def test_generations_that_cannot_be_references(client: httpx.Client, records: RecordStore) -> None:
    def refused(**changes: Any) -> tuple[str, str]:
        answer = client.post("/v1/generations", json=drag(**changes))
        found = problem(answer, 422, "unusable_reference")
        return pointers(found)[0], found["detail"]

    where = "#/reference/generation"
    for unknown in ("gen_" + "0" * 24, "x"):
        pointer, detail = refused(reference={"generation": unknown})
        assert pointer == where
        assert "expired" in detail
    queued = create(client, {"model": "whole", "prompt": "a"})
    assert refused(reference={"generation": queued["id"]}) == (
        where,
        "reference/generation: it is queued; it must have succeeded",
    )
    failed = create(client, {"model": "whole", "prompt": "a"})
    attempt = records.start(failed["id"], "worker")
    records.fail(failed["id"], attempt, Failure(code=FailureCode.DIVERGED, message="m"))
    assert "failed" in refused(reference={"generation": failed["id"]})[1]
    other = finish(records, create(client, {"model": "tiny", "prompt": "a"}))
    assert "of model 'tiny'" in refused(reference={"generation": other})[1]
    made = finish(records, create(client, {"model": "whole", "prompt": "a"}))
    assert refused(reference={"generation": made, "index": 1})[0] == "#/reference/index"
    assert "64 by 64 px" in refused(reference={"generation": made}, width=96)[1]
    pointer, detail = refused(reference={"generation": made}, num_inference_steps=5)
    assert pointer == "#/num_inference_steps"
    assert "10 steps" in detail
    assert refused(reference={"generation": made, "prompt": "b"})[0] == "#/reference/prompt"
