"""What is installed, and that the ranges told are the ranges enforced."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from service.schemas import (
    Adapter,
    Animation,
    GenerationParameters,
    OutputOptions,
    SpatialControl,
)
from tests.service.conftest import pointers, problem


@pytest.fixture
def tiny(client: httpx.Client) -> dict[str, Any]:
    """The model's entry."""
    found: dict[str, Any] = client.get("/v1/models/tiny").json()
    return found


def test_models_and_heads(client: httpx.Client, tiny: dict[str, Any]) -> None:
    models = client.get("/v1/models").json()["items"]
    ours = [model for model in models if model["family"] in ("tiny", "other")]
    assert [model["name"] for model in ours] == ["other", "tiny", "tiny-tuned"]
    assert tiny in models
    assert [model["name"] for model in models if model["is_default"]] == ["tiny"]
    assert tiny["heads"] == ["tiny/depth", "tiny/points", "tiny/pose"]
    heads = client.get("/v1/heads?model=tiny-tuned").json()["items"]
    assert [head["id"] for head in heads] == tiny["heads"]
    assert [head["accepts"] for head in heads] == [["image"], [], ["image", "keypoints"]]
    assert heads[0]["defaults"] == {"weight": 0.3, "span": [0.2, 0.8]}
    assert heads[0]["models"] == ["tiny", "tiny-tuned"]
    everything = client.get("/v1/heads").json()["items"]
    assert {head["id"] for head in everything} >= {*tiny["heads"], "other/edge"}


def test_every_request_field_is_described(tiny: dict[str, Any]) -> None:
    expected = {name for name in GenerationParameters.model_fields if name != "output"}
    expected |= {f"controls[].{name}" for name in SpatialControl.model_fields}
    expected |= {f"adapters[].{name}" for name in Adapter.model_fields}
    expected |= {f"output.{name}" for name in OutputOptions.model_fields if name != "animation"}
    expected |= {f"output.animation.{name}" for name in Animation.model_fields}
    assert set(tiny["parameters"]) == expected


def test_ranges_and_defaults(tiny: dict[str, Any]) -> None:
    def brief(name: str) -> dict[str, Any]:
        found = tiny["parameters"][name].items()
        return {key: value for key, value in found if value is not None and key != "description"}

    size = {"default": 64, "minimum": 32, "maximum": 128, "multiple_of": 32}
    assert brief("height") == brief("width") == size
    assert brief("num_images") == {"default": 1, "minimum": 1, "maximum": 4}
    assert brief("num_inference_steps") == {"default": 10, "minimum": 1, "maximum": 1000}
    assert brief("guidance_scale") == {"default": 5.0, "minimum": 1, "maximum": 50}
    assert brief("seed") == {"minimum": 0, "maximum": 2**53 - 1}
    assert brief("prompt") == {"max_length": 200}
    assert brief("negative_prompt") == {"default": "", "max_length": 200}
    assert brief("form") == {"default": "two_pass", "choices": ["one_pass", "two_pass"]}
    assert brief("controls") == {"default": [], "max_length": 8}
    assert brief("controls[].weight") == {"default": 0.7, "minimum": 0, "maximum": 10}
    span = {"default": [0.0, 0.5], "minimum": 0, "maximum": 1, "max_length": 2}
    assert brief("controls[].span") == span
    assert brief("output.format") == {"default": "png", "choices": ["png", "webp", "jpeg"]}


@pytest.mark.parametrize(
    "name", ["height", "width", "num_images", "num_inference_steps", "guidance_scale", "eta"]
)
def test_the_ranges_told_are_those_enforced(
    client: httpx.Client, tiny: dict[str, Any], name: str
) -> None:
    told = tiny["parameters"][name]
    step = told["multiple_of"] or 1
    for value in (told["minimum"], told["maximum"]):
        number = int(value) if value == int(value) else value
        answer = client.post("/v1/generations", json={"prompt": "a", name: number})
        assert answer.status_code == 202, answer.text
    for number in (int(told["minimum"]) - step, int(told["maximum"]) + step):
        answer = client.post("/v1/generations", json={"prompt": "a", name: number})
        assert pointers(problem(answer, 422, "invalid_request")) == [f"#/{name}"]
