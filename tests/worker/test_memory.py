"""Running out of memory: one cheaper try, the same pictures, and a worker that is well afterwards.

A CPU does not run out of memory on demand, so the allocator's error is raised for it; what follows
is the real engine's.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from PIL import Image

from jobs.record import FailureCode
from jobs.request import GenerationRequest
from tests.jobs.samples import a_request
from worker import execute as module
from worker.engine import TorchEngine
from worker.execute import Execution, Thrift, execute
from worker.failures import DeviceLost, OutOfMemory
from worker.settings import WorkerSettings

pytestmark = pytest.mark.torch


@pytest.fixture
def engine(tiny_registry: Path) -> Iterator[TorchEngine]:
    settings = WorkerSettings(device="cpu", dtype="float32", registry_dirs=(tiny_registry,))
    return TorchEngine.from_settings(settings)


def guided(num_images: int = 3) -> GenerationRequest:
    person = [{"x": 0.5, "y": point / 20} for point in range(18)]
    pose = {"people": [person], "aspect_ratio": 1.0}
    control = {"head": "tiny/pose", "weight": 0.5, "span": (0, 1), "pose": pose}
    return a_request(
        task="spatial",
        num_images=num_images,
        num_inference_steps=3,
        update_rule="rms",
        controls=(control,),
    )


def run(engine: TorchEngine, request: GenerationRequest, steps: list[Any] | None = None) -> Any:
    seen = steps if steps is not None else []
    return engine.execute(request, _no_image, lambda *step: seen.append(step))


def _no_image(_: object) -> Image.Image:
    raise AssertionError


def difference(one: Execution, other: Execution) -> float:
    """Mean absolute difference of the pictures, of 255."""
    pairs = zip(one.images, other.images, strict=True)
    return max(float(np.abs(np.array(a, int) - np.array(b, int)).mean()) for a, b in pairs)


def failing(error: Exception, fails: Callable[[int], bool], held: list[Any]) -> Any:
    """The sampler, but it fails for some batch sizes after it has made tensors."""
    real = module.sample

    def sample(model: Any, items: Any, plan: Any, **options: Any) -> Any:
        if fails(len(items)):
            tensor = torch.ones(1000)
            held.append(weakref.ref(tensor))
            raise type(error)(*error.args)  # this one's traceback is nobody else's
        if held:
            gc.collect()
            assert held[0]() is None, "the failed run's tensors were alive in the second"
            assert any(
                getattr(block, "gradient_checkpointing", False) for block in model.unet.modules()
            )
        return real(model, items, plan, **options)

    return sample


def test_the_cheaper_plan_makes_the_same_pictures(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, held, steps = run(engine, guided()), [], []
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
    monkeypatch.setattr(module, "sample", failing(error, lambda size: size > 1, held))
    cheaper = run(engine, guided(), steps)
    assert len(held) == 1
    assert steps == [(step, 9) for step in range(9)]
    assert cheaper.seeds == plain.seeds
    assert difference(plain, cheaper) < 0.5
    for row, other in zip(plain.distances, cheaper.distances, strict=True):
        assert row == pytest.approx(other, rel=1e-3)
    monkeypatch.undo()
    assert difference(plain, run(engine, guided())) == 0  # and not checkpointed any longer


def test_checkpointing_changes_no_gradient(engine: TorchEngine) -> None:
    models = engine._models
    arguments = (guided(1), models, _no_image, lambda *_: None)
    plain, saved = execute(*arguments), execute(*arguments, Thrift(checkpoint=True))
    assert difference(plain, saved) < 0.05


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_not_enough_after_all_is_a_clear_failure_and_the_worker_goes_on(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(module, "sample", failing(error, lambda size: True, []))
    with pytest.raises(OutOfMemory) as raised:
        run(engine, guided())
    failure = engine.failure_of(raised.value)
    assert failure is not None
    assert failure.code is FailureCode.OUT_OF_MEMORY
    assert "smaller size" in failure.message
    assert engine.loaded() == ()
    monkeypatch.undo()
    assert len(run(engine, guided(1)).images) == 1


def test_a_broken_context_is_not_tried_again(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    error = RuntimeError("CUDA error: device-side assert triggered\nCompile with …")
    monkeypatch.setattr(module, "sample", failing(error, lambda size: True, held))
    with pytest.raises(DeviceLost, match="device-side assert"):
        run(engine, guided())
    assert len(held) == 1


def test_other_errors_are_as_they_are(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sample", failing(KeyError("bug"), lambda size: True, []))
    with pytest.raises(KeyError, match="bug"):
        run(engine, guided())
