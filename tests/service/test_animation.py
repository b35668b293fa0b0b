"""Animated drags: what a request of one expands to, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from jobs.record import RecordStore
from jobs.result import ResultSummary, StoredAnimation, StoredResult, attempt_prefix
from tests.service.conftest import pointers, problem
from tests.service.test_tasks import INLINE, SEEDED, create, drag, effective


def animated(animation: Any = None, **changes: Any) -> dict[str, Any]:
    return drag(output={"animation": animation or {"frames": 4}}, **changes)


@pytest.mark.parametrize("reference", [SEEDED, INLINE], ids=["generated", "real"])
def test_frames_are_pictures_of_one_noise(client: httpx.Client, reference: Any) -> None:
    found = create(client, animated(reference=reference))["request"]
    assert found["output"]["animation"] == {
        "frames": 4,
        "format": "webp",
        "fps": 8.0,
        "keep_frames": True,
    }
    assert (found["num_images"], found["start"]) == (4, "reference")
    assert create(client, found)["request"] == found
    chosen = {"frames": 3, "format": "mp4", "fps": 12, "keep_frames": False}
    found = effective(client, animated(chosen, num_images=3))
    assert found["output"]["animation"] == chosen
    last = 2**53 - 1
    assert effective(client, animated(start="seed", seed=last))["seed"] == last


def test_the_file_has_a_url(client: httpx.Client, records: RecordStore) -> None:
    job_id = create(client, animated())["id"]
    attempt = records.start(job_id, "worker")
    prefix = attempt_prefix(job_id, attempt)
    image = StoredResult(
        index=0, seed=3, key=f"{prefix}image-000.png", sha256="0" * 64, width=64, height=64
    )
    stored = StoredAnimation(key=f"{prefix}animation.webp", format="webp", frames=4, fps=8)
    records.succeed(
        job_id,
        attempt,
        ResultSummary(
            attempt=attempt, manifest_key=f"{prefix}m.json", images=(image,), animation=stored
        ),
    )
    result = client.get(f"/v1/generations/{job_id}").json()["result"]
    assert f"{prefix}animation.webp" in result["animation"].pop("url")
    assert result["animation"] == {"format": "webp", "frames": 4, "fps": 8}


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("one frame", animated({"frames": 1}), "#/output/animation/frames"),
    ("more frames than any model makes", animated({"frames": 65}), "#/output/animation/frames"),
    ("more frames than this model makes", animated({"frames": 5}), "#/output/animation/frames"),
    ("another format", animated({"frames": 2, "format": "avi"}), "#/output/animation/format"),
    ("no time", animated({"frames": 2, "fps": 0}), "#/output/animation/fps"),
    ("an unknown field", animated({"frames": 2, "loop": 1}), "#/output/animation/loop"),
    ("pictures of another number", animated(num_images=2), "#/num_images"),
    ("a sweep", animated(weight_sweep=[0, 1, 0.5, 1]), "#/weight_sweep"),
    ("candidates", animated(num_candidates=4), "#/num_candidates"),
    (
        "no drag",
        {"model": "whole", "prompt": "a", "output": {"animation": {"frames": 4}}},
        "#/output/animation",
    ),
    (
        "an appearance alone",
        animated(points=..., task="appearance"),
        "#/output/animation",
    ),
]


@pytest.mark.parametrize(
    ("asked", "pointer"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_what_is_wrong_is_named(client: httpx.Client, asked: Any, pointer: str) -> None:
    found = problem(client.post("/v1/generations", json=asked), 422, "invalid_request")
    assert pointers(found)[0] == pointer
