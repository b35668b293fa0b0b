"""Every request that is wrong, and the problem that says so."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from jobs.record import RecordStore
from jobs.request import MAX_SEED
from tests.service.conftest import image_bytes, pointers, problem, upload

POSE = [number for index in range(18) for number in (10.0 + index, 20.0 + index, 1.0)]
MISSING_UPLOAD = "upl_" + "0" * 32


def spatial(**changes: Any) -> dict[str, Any]:
    """A request with one pose control by key points, changed."""
    control = {
        "type": "spatial",
        "head": "pose",
        "keypoints": {
            "people": [{"pose_keypoints_2d": POSE}],
            "canvas_width": 64,
            "canvas_height": 64,
        },
    } | changes
    return {"prompt": "a", "controls": [{k: v for k, v in control.items() if v is not ...}]}


def posed(**changes: Any) -> dict[str, Any]:
    """A request with these key points."""
    return spatial(keypoints={"people": [{"pose_keypoints_2d": POSE}]} | changes)


def person(numbers: list[Any]) -> dict[str, Any]:
    """A request with one person of these numbers, on a canvas."""
    return posed(people=[{"pose_keypoints_2d": numbers}], canvas_width=64, canvas_height=64)


@pytest.fixture(autouse=True)
def nothing_is_queued(records: RecordStore) -> Iterator[None]:
    """A refused request leaves no record."""
    before = sum(records.counts().values())
    yield
    assert sum(records.counts().values()) == before


def test_the_template_is_accepted(client: httpx.Client, records: RecordStore) -> None:
    # A dry run: everything is right but the last thing that is checked.
    asked = spatial() | {"seed": MAX_SEED, "num_images": 2}
    assert pointers(
        problem(client.post("/v1/generations", json=asked), 422, "invalid_request")
    ) == ["#/seed"]


INVALID: list[tuple[str, Any, str]] = [
    ("no prompt", {}, "#/prompt"),
    ("empty prompt", {"prompt": ""}, "#/prompt"),
    ("blank prompt", {"prompt": " \n"}, "#/prompt"),
    ("null prompt", {"prompt": None}, "#/prompt"),
    ("prompt over the limit", {"prompt": "a" * 201}, "#/prompt"),
    (
        "negative prompt over the limit",
        {"prompt": "a", "negative_prompt": "a" * 201},
        "#/negative_prompt",
    ),
    ("NUL in the prompt", {"prompt": "a\0b"}, "#/prompt"),
    ("escape in the prompt", {"prompt": "a\x1b[31m"}, "#/prompt"),
    ("prompt is a number", {"prompt": 7}, "#/prompt"),
    ("unknown field", {"prompt": "a", "cfg_scale": 7}, "#/cfg_scale"),
    ("unknown nested field", {"prompt": "a", "output": {"fromat": "png"}}, "#/output/fromat"),
    ("a field that needs escaping", {"prompt": "a", "a/b~c": 1}, "#/a~1b~0c"),
    ("unknown task", {"prompt": "a", "task": "paint"}, "#/task"),
    ("spatial without controls", {"prompt": "a", "task": "spatial"}, "#/task"),
    ("text_to_image with controls", spatial() | {"task": "text_to_image"}, "#/task"),
    ("steps 0", {"prompt": "a", "num_inference_steps": 0}, "#/num_inference_steps"),
    ("steps 10⁶", {"prompt": "a", "num_inference_steps": 10**6}, "#/num_inference_steps"),
    ("steps true", {"prompt": "a", "num_inference_steps": True}, "#/num_inference_steps"),
    ("steps 10.5", {"prompt": "a", "num_inference_steps": 10.5}, "#/num_inference_steps"),
    ("steps as text", {"prompt": "a", "num_inference_steps": "10"}, "#/num_inference_steps"),
    ("seed -1", {"prompt": "a", "seed": -1}, "#/seed"),
    ("seed 2⁵³", {"prompt": "a", "seed": MAX_SEED + 1}, "#/seed"),
    ("last seed over the limit", {"prompt": "a", "seed": MAX_SEED, "num_images": 2}, "#/seed"),
    ("height not a multiple", {"prompt": "a", "height": 65}, "#/height"),
    ("width not a multiple", {"prompt": "a", "width": 72}, "#/width"),
    ("height over the model's", {"prompt": "a", "height": 160}, "#/height"),
    ("width 0", {"prompt": "a", "width": 0}, "#/width"),
    ("no images", {"prompt": "a", "num_images": 0}, "#/num_images"),
    ("more images than the model makes", {"prompt": "a", "num_images": 5}, "#/num_images"),
    ("num_images null", {"prompt": "a", "num_images": None}, "#/num_images"),
    ("guidance scale 0", {"prompt": "a", "guidance_scale": 0}, "#/guidance_scale"),
    ("eta 1.1", {"prompt": "a", "eta": 1.1}, "#/eta"),
    ("eta false", {"prompt": "a", "eta": False}, "#/eta"),
    ("unknown form", {"prompt": "a", "form": "three_pass"}, "#/form"),
    (
        "evolution step beyond the last",
        {"prompt": "a", "output": {"evolution_steps": [0, 10]}},
        "#/output/evolution_steps/1",
    ),
    (
        "evolution step -1",
        {"prompt": "a", "output": {"evolution_steps": [-1]}},
        "#/output/evolution_steps/0",
    ),
    (
        "21 evolution steps",
        {"prompt": "a", "output": {"evolution_steps": [0] * 21}},
        "#/output/evolution_steps",
    ),
    ("nine controls", {"prompt": "a", "controls": spatial()["controls"] * 9}, "#/controls"),
    ("controls not a list", {"prompt": "a", "controls": {}}, "#/controls"),
    ("control without type", spatial(type=...), "#/controls/0/type"),
    ("control of unknown type", spatial(type="drag"), "#/controls/0/type"),
    ("control without head", spatial(head=...), "#/controls/0/head"),
    ("control without target", spatial(keypoints=...), "#/controls/0"),
    ("control with two targets", spatial(image={"upload_id": MISSING_UPLOAD}), "#/controls/0"),
    ("image without source", spatial(keypoints=..., image={}), "#/controls/0/image"),
    (
        "image with two sources",
        spatial(keypoints=..., image={"upload_id": "a", "base64": ""}),
        "#/controls/0/image",
    ),
    ("weight -0.1", spatial(weight=-0.1), "#/controls/0/weight"),
    ("weight 11", spatial(weight=11), "#/controls/0/weight"),
    ("weight true", spatial(weight=True), "#/controls/0/weight"),
    ("span reversed", spatial(span=[0.5, 0.2]), "#/controls/0"),
    ("span equal", spatial(span=[0.5, 0.5]), "#/controls/0"),
    ("span of one", spatial(span=[0.5]), "#/controls/0/span/1"),
    ("span beyond 1", spatial(span=[0.5, 1.5]), "#/controls/0/span/1"),
    ("span with no step in it", spatial(span=[0.51, 0.54]), "#/controls/0/span"),
    ("key points for a depth head", spatial(head="depth"), "#/controls/0/keypoints"),
    ("no people", posed(people=[]), "#/controls/0/keypoints/people"),
    (
        "21 people",
        posed(people=[{"pose_keypoints_2d": POSE}] * 21),
        "#/controls/0/keypoints/people",
    ),
    ("17 points", person(POSE[:51]), "#/controls/0/keypoints/people/0/pose_keypoints_2d"),
    ("18⅓ points", person([*POSE, 1]), "#/controls/0/keypoints/people/0"),
    (
        "a coordinate is text",
        person(["1", *POSE[1:]]),
        "#/controls/0/keypoints/people/0/pose_keypoints_2d/0",
    ),
    ("a negative confidence", person([1, 1, -1, *POSE[3:]]), "#/controls/0/keypoints/people/0"),
    ("every point unknown", person([0] * 54), "#/controls/0/keypoints"),
    ("pixels without a canvas", posed(), "#/controls/0/keypoints"),
    (
        "pixels on too small a canvas",
        posed(canvas_width=8, canvas_height=8),
        "#/controls/0/keypoints",
    ),
    ("canvas without height", posed(canvas_width=64), "#/controls/0/keypoints"),
    (
        "canvas of height 0",
        posed(canvas_width=64, canvas_height=0),
        "#/controls/0/keypoints/canvas_height",
    ),
    ("an unknown field in key points", posed(canvas=1), "#/controls/0/keypoints/canvas"),
    ("the body is a list", [], "#"),
    ("the body is a number", 5, "#"),
]


@pytest.mark.parametrize(
    ("asked", "pointer"), [case[1:] for case in INVALID], ids=[case[0] for case in INVALID]
)
def test_what_is_wrong_is_named(client: httpx.Client, asked: Any, pointer: str) -> None:
    found = problem(client.post("/v1/generations", json=asked), 422, "invalid_request")
    assert pointers(found)[0] == pointer
    assert found["errors"][0]["detail"] in found["detail"]


NAMES: list[tuple[str, Any, str, str, str]] = [
    ("unknown model", {"prompt": "a", "model": "sd9"}, "unknown_model", "#/model", "tiny-tuned"),
    ("unknown head", spatial(head="nose"), "unknown_head", "#/controls/0/head", "depth, points"),
    (
        "head of another family",
        spatial(head="edge"),
        "incompatible_head",
        "#/controls/0/head",
        "heads that fit: depth",
    ),
    (
        "head id of another family",
        spatial(head="other/edge"),
        "incompatible_head",
        "#/controls/0/head",
        "other family",
    ),
    (
        "head of another kind",
        spatial(head="points"),
        "incompatible_head",
        "#/controls/0/head",
        "correspondence",
    ),
    (
        "unknown upload",
        spatial(keypoints=..., image={"upload_id": MISSING_UPLOAD}),
        "unknown_upload",
        "#/controls/0/image/upload_id",
        "POST /v1/uploads",
    ),
    (
        "upload id that is a path",
        spatial(keypoints=..., image={"upload_id": "../../etc/passwd"}),
        "unknown_upload",
        "#/controls/0/image/upload_id",
        "POST /v1/uploads",
    ),
    (
        "not base64",
        spatial(keypoints=..., image={"base64": "!!!"}),
        "invalid_image",
        "#/controls/0/image/base64",
        "not base64",
    ),
    (
        "empty base64",
        spatial(keypoints=..., image={"base64": ""}),
        "invalid_image",
        "#/controls/0/image/base64",
        "empty",
    ),
    (
        "base64 of no image",
        spatial(keypoints=..., image={"base64": "aGVsbG8gd29ybGQ="}),
        "invalid_image",
        "#/controls/0/image/base64",
        "PNG, JPEG or WebP",
    ),
    (
        "base64 over the limit",
        spatial(keypoints=..., image={"base64": "A" * 300_000}),
        "image_too_large",
        "#/controls/0/image/base64",
        "POST /v1/uploads",
    ),
    (
        "a truncated image",
        spatial(
            keypoints=...,
            image={"base64": base64.b64encode(image_bytes((300, 300))[:100]).decode()},
        ),
        "invalid_image",
        "#/controls/0/image/base64",
        "truncated",
    ),
]


@pytest.mark.parametrize(
    ("asked", "code", "pointer", "hint"), [case[1:] for case in NAMES], ids=[c[0] for c in NAMES]
)
def test_what_does_not_exist_is_named(
    client: httpx.Client, asked: Any, code: str, pointer: str, hint: str
) -> None:
    found = problem(client.post("/v1/generations", json=asked), 422, code)
    assert pointers(found) == [pointer]
    assert hint in found["detail"]


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    ("template", "pointer"),
    [
        ('"guidance_scale": X', "#/guidance_scale"),
        ('"seed": X', "#/seed"),
        ('"controls": [{"type": "spatial", "head": "pose", "weight": X}]', "#/controls/0/weight"),
        (
            '"controls": [{"type": "spatial", "head": "pose", "span": [0, X]}]',
            "#/controls/0/span/1",
        ),
    ],
)
def test_nan_and_infinity_are_refused(
    client: httpx.Client, literal: str, template: str, pointer: str
) -> None:
    body = '{"prompt": "a", %s}' % template.replace("X", literal)  # noqa: UP031
    answer = client.post(
        "/v1/generations", content=body, headers={"Content-Type": "application/json"}
    )
    assert pointer in pointers(problem(answer, 422, "invalid_request"))


MALFORMED = {
    "empty": b"",
    "cut": b'{"prompt": "a',
    "trailing comma": b'{"prompt": "a",}',
    "not UTF-8": b'{"prompt": "\xff"}',
    "deep": b"[" * 100_000,
    "a number of 5000 digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "not JSON": b"prompt=a",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_json(client: httpx.Client, body: bytes) -> None:
    answer = client.post(
        "/v1/generations", content=body, headers={"Content-Type": "application/json"}
    )
    if body:
        problem(answer, 400, "malformed_request")
    else:
        assert pointers(problem(answer, 422, "invalid_request")) == ["#"]


def test_malformed_json_says_where(client: httpx.Client) -> None:
    answer = client.post(
        "/v1/generations",
        content=b'{"prompt": "a", steps: 5}',
        headers={"Content-Type": "application/json"},
    )
    assert "character 16" in problem(answer, 400, "malformed_request")["detail"]


def test_lone_surrogates_are_refused(client: httpx.Client) -> None:
    for body in (r'{"prompt": "a\ud800"}', r'{"prompt": "a", "\ud800": 1}'):
        answer = client.post(
            "/v1/generations", content=body, headers={"Content-Type": "application/json"}
        )
        problem(answer, 422, "invalid_request")


@pytest.mark.parametrize(
    "field",
    [
        r'"reference": {"base64": "\ud800"}, "task": "appearance"',
        r'"init_image": {"base64": "\ud800"}',
        r'"model": "\ud800"',
        r'"controls": [{"type": "spatial", "head": "\ud800", "image": {"upload_id": "x"}}]',
        r'"adapters": [{"type": "controlnet", "model": "\ud800", "image": {"base64": "\ud800"}}]',
    ],
)
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}])
def test_lone_surrogates_are_refused_wherever_they_are(
    client: httpx.Client, field: str, headers: dict[str, str]
) -> None:
    body = '{"prompt": "a", ' + field + "}"
    headers = headers | {"Content-Type": "application/json"}
    answer = client.post("/v1/generations", content=body, headers=headers)
    assert 400 <= answer.status_code < 500, answer.text


@pytest.mark.parametrize(
    "id", ["gen_000000000000000000000000:events", "gen_x", "../../x", "gen_" + "0" * 5000]
)
def test_a_reference_s_id_is_nothing_but_an_id(client: httpx.Client, id: str) -> None:
    for asked in ({"reference": {"generation": id}}, {"init_image": {"generation": id}}):
        answer = client.post("/v1/generations", json={"prompt": "a", **asked})
        assert answer.status_code in (404, 422), answer.text


@pytest.mark.parametrize(
    "box", [{"x0": 0, "y0": 0, "x1": 5e-324, "y1": 64}, {"x0": 1, "y0": 0, "x1": 1, "y1": 2}]
)
def test_a_box_without_area_is_refused(client: httpx.Client, box: dict[str, float]) -> None:
    asked = {"prompt": "a", "model": "whole", "unit": "px", "reference": {"prompt": "a", "seed": 1}}
    answer = client.post("/v1/generations", json=asked | {"region": {"boxes": [box]}})
    assert "x0 < x1" in problem(answer, 422, "invalid_request")["detail"]


def test_only_the_first_of_many_errors_are_listed(client: httpx.Client) -> None:
    asked = {"prompt": "a"} | {f"field_{index}": 1 for index in range(50)}
    found = problem(client.post("/v1/generations", json=asked), 422, "invalid_request")
    assert len(found["errors"]) == 20
    assert "49 more" in found["detail"]


def test_a_thousand_fields_are_one_error(client: httpx.Client) -> None:
    asked = {"prompt": "a"} | {f"field_{index}": 1 for index in range(1000)}
    found = problem(client.post("/v1/generations", json=asked), 422, "invalid_request")
    assert pointers(found) == ["#"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_other_content_types(client: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = client.post("/v1/generations", content=b'{"prompt": "a"}', headers=headers)
    assert "application/json" in problem(answer, 415, "unsupported_media_type")["detail"]


def test_body_over_the_limit_by_its_header(client: httpx.Client) -> None:
    answer = client.post("/v1/generations", json={"prompt": "a" * 1_000_000})
    assert "1,000,000 bytes" in problem(answer, 413, "payload_too_large")["detail"]


@pytest.mark.parametrize("path", ["/v1/generations", "/v1/generations/gen_0/cancel"])
def test_body_over_the_limit_while_it_streams(client: httpx.Client, path: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(20):
            yield b"a" * 100_000

    answer = client.post(path, content=chunks(), headers={"Content-Type": "application/json"})
    if path == "/v1/generations":
        problem(answer, 413, "payload_too_large")
    else:
        problem(answer, 404, "not_found")


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    problem(client.get("/v2/generations"), 404, "not_found")
    problem(client.get("/v1/generations/"), 404, "not_found")
    answer = client.delete("/v1/generations")
    problem(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].replace(" ", "").split(",")) <= {"GET", "POST"}


@pytest.mark.parametrize(
    "name",
    ["gen_" + "0" * 24, "gen_0", "x", "gen_" + "g" * 24, "%00", "..%2F..", "gen_" + "0" * 5000],
)
def test_unknown_and_malformed_ids(client: httpx.Client, name: str) -> None:
    problem(client.get(f"/v1/generations/{name}"), 404, "not_found")
    problem(client.post(f"/v1/generations/{name}/cancel"), 404, "not_found")


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("state=done", "state"),
        ("cursor=abc", "cursor"),
        ("cursor=-1", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=" + "9" * 40, "cursor"),
        ("page=2", "page"),
    ],
)
def test_bad_list_queries(client: httpx.Client, query: str, parameter: str) -> None:
    found = problem(client.get(f"/v1/generations?{query}"), 422, "invalid_request")
    assert pointers(found) == [parameter]


def test_heads_of_an_unknown_model(client: httpx.Client) -> None:
    assert pointers(problem(client.get("/v1/heads?model=x"), 422, "unknown_model")) == ["model"]
    problem(client.get("/v1/models/x"), 404, "not_found")


def test_a_bad_control_is_found_before_any_image_is_stored(client: httpx.Client) -> None:
    image = {"upload_id": upload(client)}
    asked = spatial(keypoints=..., image=image, span=[0, 0.01])
    asked["controls"].insert(0, {"type": "spatial", "head": "depth", "image": image})
    found = problem(client.post("/v1/generations", json=asked), 422, "invalid_request")
    assert pointers(found) == ["#/controls/1/span"]


def test_no_answer_echoes_what_was_sent(client: httpx.Client) -> None:
    secret = "hunter2" * 10
    answer = client.post(
        "/v1/generations",
        content=json.dumps({"prompt": {"a": secret}}),
        headers={"Content-Type": "application/json"},
    )
    assert secret not in answer.text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_candidates": 2, "num_images": 3}, "at least as many"),
        ({"num_candidates": 9}, "makes 4 at a time"),
        ({"num_candidates": 3, "controls": []}, "add one"),
    ],
)
def test_candidates_that_make_no_sense(
    client: httpx.Client, changes: dict[str, Any], says: str
) -> None:
    found = problem(
        client.post("/v1/generations", json=spatial() | changes), 422, "invalid_request"
    )
    assert pointers(found) == ["#/num_candidates"]
    assert says in found["detail"]
