"""An engine that takes its time but needs no torch, and a worker process that runs on it."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image

from jobs.logs import configure_logging
from jobs.record import Failure, FailureCode
from jobs.request import GenerationRequest, OutputOptions, StoredImage
from worker.process import run_worker
from worker.settings import WorkerSettings

STEP_VARIABLE = "FAKE_STEP_S"


@dataclass(frozen=True)
class Frame:
    step: int
    image: Image.Image
    readouts: list[Image.Image]
    index: int = 0


class Measured(NamedTuple):
    distance: float
    step_index: int


@dataclass(frozen=True)
class FakeExecution:
    images: list[Image.Image]
    seeds: list[int]
    distances: list[list[float]]
    readouts: list[list[Image.Image]]
    evolution: list[list[Frame]]
    timings: dict[str, float]
    versions: dict[str, str] = field(default_factory=lambda: {"fake": "1"})
    device: str = "cpu"
    dtype: str = "float32"
    peak_bytes: int | None = None
    reference_psnr_db: float | None = None
    warnings: tuple[str, ...] = ()
    animation: bytes | None = None
    boxes: list[dict[int, Any]] = field(default_factory=list)


class FakeEngine:
    """Images of one colour, the seed's; `before_step` may do whatever a test wants."""

    device, dtype = "cpu", "float32"

    def __init__(
        self, step_s: float = 0.0, before_step: Callable[[int], None] = lambda step_index: None
    ) -> None:
        self.step_s = step_s
        self.before_step = before_step
        self.batches: list[int] = []

    def loaded(self) -> tuple[str, ...]:
        return ("tiny",)

    def execute(
        self,
        request: GenerationRequest,
        load_image: Callable[[StoredImage], Image.Image],
        on_step: Callable[[int, int], None],
        audience: Any = None,
        job: int = 0,
    ) -> Any:
        for control in request.controls:
            assert control.image is not None
            load_image(control.image)
        size = (request.width, request.height)
        seeds = list(request.seeds)
        images = [Image.new("RGB", size, (seed % 256, 0, 0)) for seed in seeds]
        readouts = [[image for _ in request.controls] for image in images]
        evolution: list[list[Frame]] = [[] for _ in images]
        for step_index in range(request.num_steps):
            self.before_step(step_index)
            if audience is not None and step_index > 0:
                measured = [Measured(1 / step_index, step_index - 1) for _ in request.controls]
                audience.on_distances(job, [measured for _ in images])
            on_step(step_index, request.num_steps)
            time.sleep(self.step_s)
            if step_index in request.output.evolution_steps:
                for index, (image, shown) in enumerate(zip(images, readouts, strict=True)):
                    evolution[index].append(Frame(step_index, image, shown, index))
                if audience is not None:
                    audience.on_frames(job, [frames[-1] for frames in evolution])
        distances = [[0.25 for _ in request.controls] for _ in images]
        return FakeExecution(
            images,
            seeds,
            distances,
            readouts,
            evolution,
            {"sample": 1.0},
            animation=b"a film" if request.output.animation else None,
        )

    def execute_together(
        self,
        requests: Sequence[GenerationRequest],
        load_image: Callable[[StoredImage], Image.Image],
        on_step: Callable[[int, int], None],
        audience: Any = None,
    ) -> list[Any]:
        """The first one's steps for all of them, as in a batch."""
        self.batches.append(len(requests))
        first = self.execute(requests[0], load_image, on_step, audience)
        silent = FakeEngine()
        rest = [
            silent.execute(one, load_image, lambda *_: None, audience, job)
            for job, one in enumerate(requests[1:], 1)
        ]
        return [first, *rest]

    def encode(
        self, image: Image.Image, output: OutputOptions, parameters: dict[str, Any] | None
    ) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, output.format)
        return buffer.getvalue()

    def failure_of(self, error: Exception) -> Failure | None:
        if isinstance(error, ArithmeticError):
            return Failure(code=FailureCode.DIVERGED, message=str(error))
        return None


def main() -> None:
    """A worker with a fake engine: the whole process but torch."""
    settings = WorkerSettings()
    configure_logging(settings.log_format)
    run_worker(settings, FakeEngine(float(os.environ.get(STEP_VARIABLE, "0"))))


if __name__ == "__main__":
    sys.exit(main())
