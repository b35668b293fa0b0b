"""The course of a job on the real engine, with the tiny random model."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torch")

from jobs.record import JobState
from jobs.request import GenerationRequest
from tests.jobs.samples import a_request
from tests.worker.conftest import Stack
from worker.engine import TorchEngine
from worker.images import PARAMETERS_KEY
from worker.run import Runner
from worker.settings import WorkerSettings

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def engine(tiny_registry: Path) -> Iterator[TorchEngine]:
    settings = WorkerSettings(device="cpu", dtype="float32", registry_dirs=(tiny_registry,))
    engine = TorchEngine.from_settings(settings)
    engine.warm_up(("tiny",))
    return engine


def run(stack: Stack, engine: TorchEngine, request: GenerationRequest) -> str:
    job = stack.records.create(request).id
    Runner(stack.settings, "w", stack.records, stack.store, engine).run(job)
    return job


def a_pose(**changes: object) -> dict[str, object]:
    person = [{"x": 0.5, "y": point / 20} for point in range(18)]
    control = {"head": "tiny/pose", "weight": 0.5, "span": (0, 0.5)}
    return control | {"pose": {"people": [person], "aspect_ratio": 1.0}} | changes


def test_a_guided_job_leaves_its_picture_with_its_parameters(
    stack: Stack, engine: TorchEngine
) -> None:
    assert engine.loaded() == ("tiny",)
    request = a_request(
        task="spatial", controls=(a_pose(),), num_inference_steps=4, output={"evolution_steps": [3]}
    )
    record = stack.records.get(run(stack, engine, request))
    assert record.state is JobState.SUCCEEDED, record.failure
    assert record.result is not None
    (image,) = record.result.images
    picture = Image.open(io.BytesIO(stack.store.get_bytes(image.key)))
    assert picture.size == (64, 64)
    parameters = json.loads(picture.info[PARAMETERS_KEY])
    assert (parameters["seed"], parameters["controls"][0]["head"]) == (7, "tiny/pose")
    assert image.distances["0"].distance is not None
    assert image.distances["0"].distance > 0
    assert {"sample", "decode", "store"} <= set(record.result.timings)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": "nobody"}, "unknown_model"),
        ({"task": "spatial", "controls": (a_pose(head="tiny/gait"),)}, "unknown_head"),
        ({"task": "spatial", "controls": (a_pose(head="other/pose"),)}, "incompatible_head"),
    ],
)
def test_what_the_gateway_should_have_refused(
    stack: Stack, engine: TorchEngine, changes: dict[str, object], code: str
) -> None:
    failure = stack.records.get(run(stack, engine, a_request(**changes))).failure
    assert failure is not None
    assert failure.code == code
