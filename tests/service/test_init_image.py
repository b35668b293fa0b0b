"""Image to image and inpainting: what is filled in, what is refused, and what an estimate says."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from jobs.record import Failure, FailureCode, RecordStore
from jobs.request import InvertedReference
from tests.service.conftest import image_bytes, pointers, problem, upload
from tests.service.test_tasks import SEEDED, create, drag, effective, finish

INLINE = {"base64": base64.b64encode(image_bytes((64, 64))).decode()}
OTHER_SIZE = {"base64": base64.b64encode(image_bytes((64, 32))).decode()}


def edit(**changes: Any) -> dict[str, Any]:
    asked = {"model": "whole", "prompt": "a", "init_image": INLINE} | changes
    return {name: value for name, value in asked.items() if value is not ...}


def test_defaults_are_those_of_diffusers(client: httpx.Client, records: RecordStore) -> None:
    created = create(client, edit())
    found = created["request"]
    assert (found["task"], found["strength"], found["mask"]) == ("text_to_image", 0.8, None)
    request = records.get(created["id"]).request
    assert request.init_image is not None
    assert found["init_image"]["upload_id"] == request.init_image.image.upload_id
    assert (request.first_step, request.num_steps) == (2, 8)
    found = effective(client, edit(mask=INLINE, init_image=INLINE | {"fit": "stretch"}))
    assert found["strength"] == 1.0
    assert found["mask"]["upload_id"] != found["init_image"]["upload_id"]
    assert found["init_image"]["fit"] == "stretch"
    assert effective(client, edit(prompt="", strength=0.5))["strength"] == 0.5


def test_an_earlier_generation_of_any_model_and_size(
    client: httpx.Client, records: RecordStore
) -> None:
    first = {"model": "tiny", "prompt": "x", "num_images": 2, "width": 96}
    made = finish(records, create(client, first))
    created = create(client, edit(init_image={"generation": made, "index": 1}))
    init = records.get(created["id"]).request.init_image
    assert init is not None
    assert init.image.key.endswith("image-001.png")
    assert created["request"]["init_image"]["generation"] == made
    assert create(client, created["request"])["request"] == created["request"]
    wide = {"base64": base64.b64encode(image_bytes((96, 64))).decode()}
    create(client, edit(init_image={"generation": made}, mask=wide))


def test_as_a_reference_it_is_inverted_for_its_seed_alone_did_not_make_it(
    client: httpx.Client, records: RecordStore
) -> None:
    made = finish(records, create(client, edit()))
    asked = drag(reference={"generation": made}, num_inference_steps=7)
    found = records.get(create(client, asked)["id"]).request.reference
    assert isinstance(found, InvertedReference)


def test_any_control_goes_with_it_and_so_does_a_drag_of_the_seed(client: httpx.Client) -> None:
    depth = {"type": "spatial", "head": "depth", "image": {"upload_id": upload(client)}}
    found = effective(client, edit(controls=[depth | {"span": [0, 1]}], strength=0.5))
    assert (found["task"], found["eta"]) == ("spatial", 1.0)
    face = {"x0": 0.25, "y0": 0.0, "x1": 0.5, "y1": 0.25}
    effective(client, edit(reference=SEEDED, boxes=[{"reference": face}], strength=0.5))
    effective(client, drag(init_image=INLINE, start="seed"))


def test_a_mask_alone_lies_on_the_reference(client: httpx.Client, records: RecordStore) -> None:
    created = create(client, drag(mask=INLINE))
    request = records.get(created["id"]).request
    assert request.mask is not None
    assert (request.init_image, request.start, request.first_step) == (None, "reference", 0)
    assert created["request"]["mask"] == {"upload_id": request.mask.upload_id, "base64": None}
    made = finish(records, create(client, {"model": "whole", "prompt": "a"}))
    for asked in (
        drag(reference=OTHER_SIZE, mask=OTHER_SIZE),  # fitted as its reference is
        drag(reference={"generation": made}, mask=INLINE),
        edit(init_image=..., reference=SEEDED, mask=INLINE, num_images=2),
        {"model": "whole", "prompt": "a", "reference": SEEDED, "mask": INLINE, "start": "seed"},
    ):
        effective(client, asked)
    init = drag(init_image=OTHER_SIZE, start="seed", mask=OTHER_SIZE)
    effective(client, init)  # where there are both it is the init image's


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("a mask alone", edit(init_image=..., mask=INLINE), "#/mask", "no init_image or reference"),
    ("strength alone", edit(init_image=..., strength=0.5), "#/strength", "no init_image"),
    ("no strength", edit(strength=0), "#/strength", "greater than 0"),
    ("too much strength", edit(strength=1.1), "#/strength", "less than or equal to 1"),
    ("strength of no step", edit(strength=0.09), "#/strength", "give at least 0.1"),
    ("a mask of another size", edit(mask=OTHER_SIZE), "#/mask", "64 by 32 px"),
    ("a mask of another size than the drag", drag(mask=OTHER_SIZE), "#/mask", "the reference 64"),
    (
        "a mask of another size than the photo",
        drag(reference=INLINE, mask=OTHER_SIZE),
        "#/mask",
        "the reference 64 by 64",
    ),
    ("a mask from two sources", edit(mask=INLINE | {"upload_id": "u"}), "#/mask", "exactly one"),
    ("two init images", edit(init_image=INLINE | {"upload_id": "u"}), "#/init_image", "one of"),
    ("no init image", edit(init_image={}), "#/init_image", "exactly one of"),
    ("an index of an upload", edit(init_image=INLINE | {"index": 1}), "#/init_image", "index"),
    ("a drag begins elsewhere", drag(init_image=INLINE), "#/init_image", "reference's noise"),
    (
        "a variation that begins with its reference",
        edit(reference=SEEDED, start="reference"),
        "#/init_image",
        "reference's noise",
    ),
    (
        "a span that is over before it begins",
        edit(reference=SEEDED, strength=0.5),
        "#/controls/0/span",
        "ends before step 5 of 10",
    ),
    (
        "an evolution step that is not run",
        edit(strength=0.5, output={"evolution_steps": [5, 4]}),
        "#/output/evolution_steps/1",
        "the steps are 5 to 9",
    ),
]


@pytest.mark.parametrize(
    ("asked", "pointer", "detail"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
@pytest.mark.parametrize("route", ["generations", "estimate"])
def test_what_is_wrong_is_named(
    client: httpx.Client, route: str, asked: Any, pointer: str, detail: str
) -> None:
    answer = client.post(f"/v1/{route}", json=asked)
    if route == "estimate" and asked.get("mask") == OTHER_SIZE:
        assert answer.status_code == 200  # it opens no images
        return
    found = problem(answer, 422, "invalid_request")
    assert pointers(found)[0] == pointer
    assert detail in found["detail"]


def test_generations_that_cannot_be_started_from(
    client: httpx.Client, records: RecordStore
) -> None:
    def refused(**init_image: Any) -> str:
        answer = client.post("/v1/generations", json=edit(init_image=init_image))
        found = problem(answer, 422, "unusable_reference")
        assert pointers(found)[0].startswith("#/init_image/")
        return str(found["detail"])

    assert "expired" in refused(generation="gen_" + "0" * 24)
    failed = create(client, {"model": "whole", "prompt": "a"})
    attempt = records.start(failed["id"], "worker")
    records.fail(failed["id"], attempt, Failure(code=FailureCode.DIVERGED, message="m"))
    assert "it is failed; it must have succeeded" in refused(generation=failed["id"])
    made = finish(records, create(client, {"model": "whole", "prompt": "a"}))
    assert "has 1 pictures" in refused(generation=made, index=1)
    found = problem(
        client.post("/v1/generations", json=edit(init_image={"upload_id": "upl_" + "0" * 32})),
        422,
        "unknown_upload",
    )
    assert pointers(found) == ["#/init_image/upload_id"]


def test_items_of_a_batch_name_uploads(client: httpx.Client, records: RecordStore) -> None:
    sent = {"upload_id": upload(client)}
    items = [edit(init_image=sent, mask=sent), edit(init_image=sent, strength=0.3)]
    answer = client.post("/v1/batches", json={"items": items})
    assert answer.status_code == 202, answer.text
    found = problem(client.post("/v1/batches", json={"items": [edit()]}), 422, "invalid_batch")
    assert pointers(found) == ["#/items/0/init_image/base64"]
