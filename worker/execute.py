"""Jobs on the device: effective requests in, pictures, readouts and measures out."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import diffusers
import torch
from PIL import Image

from heads_registry.base_model import BaseModel
from jobs.controls import BoxPair
from jobs.request import GenerationRequest
from worker.animation import encode_animation
from worker.controls import LoadImage
from worker.images import to_images
from worker.models import LoadedHead, ModelCache
from worker.prepare import Prepared
from worker.references import References
from worker.sampler import Diverged, OnStep, SampleItem, Samples, SamplingPlan, sample
from worker.watch import Audience, EvolutionFrame, Frames, readout_images


@dataclass(frozen=True)
class Thrift:
    """What a run does to need less memory; its pictures differ by rounding alone.

    Attributes:
        batch_images: most pictures in one sampler batch; None: all of them.
        checkpoint: compute activations again in the backward pass instead of keeping them.
    """

    batch_images: int | None = None
    checkpoint: bool = False


@dataclass(frozen=True)
class Execution:
    """The outcome of one job.

    Attributes:
        images: one a seed.
        seeds: of the images.
        distances: image × control: on the last step's features, the RMS difference of readout
            and target in readout units, or a relative control's distance by cosine.
        readouts: image × control: the readout at the last step as a picture.
        evolution: image × step.
        timings: seconds by stage: load, prepare, sample, decode; prepare includes references,
            whose U-Net passes are counted in reference_forwards.
        versions: of what makes the pixels.
        device: name of the device.
        dtype: of the U-Net.
        peak_bytes: of the device's memory; None on the CPU.
        reference_psnr_db: of the inverted reference's reconstruction; None where there is none.
        warnings: what the client should know of the result.
        animation: its frames as a file; None: not asked for.
        boxes: of each image, the faces that its identity controls compared, by position.
    """

    images: list[Image.Image]
    seeds: list[int]
    distances: list[list[float]]
    readouts: list[list[Image.Image]]
    evolution: list[list[EvolutionFrame]]
    timings: dict[str, float]
    versions: dict[str, str]
    device: str
    dtype: str
    peak_bytes: int | None = field(default=None)
    reference_psnr_db: float | None = None
    warnings: tuple[str, ...] = ()
    animation: bytes | None = None
    boxes: list[dict[int, tuple[BoxPair, ...]]] = field(default_factory=list)


def execute(
    request: GenerationRequest,
    models: ModelCache,
    load_image: LoadImage,
    on_step: OnStep,
    thrift: Thrift = Thrift(),
    audience: Audience | None = None,
) -> Execution:
    """Run a request alone; see `execute_together`."""
    return execute_together([request], models, load_image, on_step, thrift, audience)[0]


def execute_together(
    requests: Sequence[GenerationRequest],
    models: ModelCache,
    load_image: LoadImage,
    on_step: OnStep,
    thrift: Thrift = Thrift(),
    audience: Audience | None = None,
) -> list[Execution]:
    """Run requests that share model and sampling plan in one sampler batch.

    Every picture has its own generator, so that its company changes nothing but rounding.

    Args:
        requests: effective, all defaults resolved; they must agree in `shared_plan`.
        models: cache of loaded models and heads.
        load_image: fetches a stored control image.
        on_step: called before each step with (step_index, num_steps); raise in it to stop.
        thrift: how to save memory.
        audience: is shown distances and frames on the way.

    Returns:
        One execution a request; timings are those of the whole batch.

    Raises:
        RegistryError: a model, a head or an adapter is not there or does not fit.
        Diverged: latents are no longer finite; names the picture among all of them.
        InvalidControl, InversionFailed, InvalidMask: a control, the reference or the mask cannot
            be used.
        UnsupportedFormat: an animation's file cannot be written here.
    """
    clock = _Clock()
    model = models.model(requests[0].model)
    heads = [
        [models.head(request.model, control.head) for control in request.controls]
        for request in requests
    ]
    adapters = [
        [models.adapter(request.model, adapter.model) for adapter in request.adapters]
        for request in requests
    ]
    clock.lap("load")
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    plan = shared_plan(requests[0])
    prepared = []
    for request, own, beside in zip(requests, heads, adapters, strict=True):
        references = References(
            model, plan, models.references, load_image, lambda: on_step(0, len(plan))
        )
        faces = partial(models.face_detector, request.model)
        prepared.append(Prepared(request, model, own, beside, references, load_image, faces))
    items = [item for one in prepared for item in one.items]
    item_heads = [one.heads for one in prepared for _ in one.items]
    owners = [(job, index) for job, one in enumerate(prepared) for index in range(len(one.items))]
    clock.lap("prepare")
    pictures: list[_Picture] = []
    size = thrift.batch_images or len(items)
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    for index, part in enumerate(parts):
        on_part_step = _part_of(on_step, index, len(parts))
        rows = slice(len(pictures), len(pictures) + len(part))
        frames = Frames(model, item_heads[rows], owners[rows], audience, clock.lap)
        try:
            with _checkpointing(model, part, thrift.checkpoint):
                samples = sample(model, part, plan, on_step=on_part_step, watch=frames)
        except Diverged as error:
            raise Diverged(error.item + len(pictures), error.step_index) from None
        clock.lap("sample")
        pictures += _pictures(model, samples, item_heads[rows], frames)
        clock.lap("decode")
    made = iter(pictures)
    return [_execution(one, [next(made) for _ in one.items], model, clock.laps) for one in prepared]


@contextmanager
def _checkpointing(model: BaseModel, items: Sequence[SampleItem], wanted: bool) -> Iterator[None]:
    """The U-Net's and ControlNets' blocks forget activations, and repeat them for the backward."""
    networks = {one.adapter.network for item in items for one in item.adapters}
    kept = [network for network in networks if isinstance(network, diffusers.ControlNetModel)]
    modules = [model.unet, *kept] if wanted else []
    for module in modules:
        module.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for module in modules:
            module.disable_gradient_checkpointing()


def _part_of(on_step: OnStep, index: int, count: int) -> OnStep:
    """The steps of one of `count` runs as steps of the whole."""
    if count == 1:
        return on_step
    return lambda step, num_steps: on_step(index * num_steps + step, count * num_steps)


@dataclass(frozen=True)
class _Picture:
    """What became of one item."""

    image: Image.Image
    distances: list[float]
    readouts: list[Image.Image]
    evolution: list[EvolutionFrame]


def _pictures(
    model: BaseModel, samples: Samples, heads: Sequence[list[LoadedHead]], frames: Frames
) -> list[_Picture]:
    images = to_images(model.decode(samples.latents))
    readouts = [readout_images(row, own) for row, own in zip(samples.readouts, heads, strict=True)]
    rows = zip(images, samples.distances, readouts, frames.by_row, strict=True)
    return [_Picture(*row) for row in rows]


def _finished(prepared: Prepared, pictures: list[_Picture]) -> tuple[list[_Picture], bytes | None]:
    """The pictures that are kept, with their own pixels outside a mask; the animation of all."""
    if prepared.beginning is not None:
        finished = prepared.beginning.finished
        pictures = [replace(picture, image=finished(picture.image)) for picture in pictures]
    asked = prepared.request.output.animation
    if asked is None:
        return pictures, None
    animation = encode_animation([picture.image for picture in pictures], asked)
    return pictures if asked.keep_frames else pictures[-1:], animation


def _execution(
    prepared: Prepared, pictures: list[_Picture], model: BaseModel, laps: dict[str, float]
) -> Execution:
    pictures, animation = _finished(prepared, pictures)
    return Execution(
        images=[picture.image for picture in pictures],
        seeds=list(prepared.request.seeds)[-len(pictures) :],
        distances=[picture.distances for picture in pictures],
        readouts=[picture.readouts for picture in pictures],
        evolution=[picture.evolution for picture in pictures],
        timings=laps | prepared.counted,
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        device=_device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        peak_bytes=(
            torch.cuda.max_memory_allocated(model.device) if model.device.type == "cuda" else None
        ),
        reference_psnr_db=prepared.reference.psnr_db if prepared.reference else None,
        warnings=prepared.warnings,
        animation=animation,
        boxes=prepared.boxes[-len(pictures) :],
    )


def shared_plan(request: GenerationRequest) -> SamplingPlan:
    """What requests must agree in, beside the model, to be sampled together."""
    return SamplingPlan(
        height=request.height,
        width=request.width,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        eta=request.eta,
        form=request.form,
        branch=request.branch,
        update_rule=request.update_rule,
        adapter_gradient=request.adapter_gradient,
        evolution_steps=request.output.evolution_steps,
        first_step=request.first_step,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = round(self.laps.get(stage, 0.0) + now - self._last, 4)
        self._last = now
