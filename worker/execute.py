"""Jobs on the device: effective requests in, pictures, readouts and measures out."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import diffusers
import torch
from PIL import Image

from heads_registry.base_model import BaseModel
from heads_registry.targets import fit_image, image_target, readout_image
from jobs.request import GenerationRequest, Pose, SpatialControl, StoredImage
from openpose import draw_pose
from worker.guidance import ReadoutTarget
from worker.images import to_images
from worker.models import LoadedHead, ModelCache
from worker.objectives import spatial_distance
from worker.sampler import Diverged, OnStep, SampleItem, Samples, SamplingPlan, sample

LoadImage = Callable[[StoredImage], Image.Image]


@dataclass(frozen=True)
class EvolutionFrame:
    """What the model saw at one step: the predicted clean picture and the readouts (figure 15)."""

    step: int
    image: Image.Image
    readouts: list[Image.Image]


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
        distances: image × control: RMS difference of readout and target on the last step's
            features, in readout units.
        readouts: image × control: the readout at the last step as a picture.
        evolution: image × step.
        timings: seconds by stage: load, prepare, sample, decode.
        versions: of what makes the pixels.
        device: name of the device.
        dtype: of the U-Net.
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


def execute(
    request: GenerationRequest,
    models: ModelCache,
    load_image: LoadImage,
    on_step: OnStep,
    thrift: Thrift = Thrift(),
) -> Execution:
    """Run a request alone; see `execute_together`."""
    return execute_together([request], models, load_image, on_step, thrift)[0]


def execute_together(
    requests: Sequence[GenerationRequest],
    models: ModelCache,
    load_image: LoadImage,
    on_step: OnStep,
    thrift: Thrift = Thrift(),
) -> list[Execution]:
    """Run requests that share model and sampling plan in one sampler batch.

    Every picture has its own generator, so that its company changes nothing but rounding.

    Args:
        requests: effective, all defaults resolved; they must agree in `shared_plan`.
        models: cache of loaded models and heads.
        load_image: fetches a stored control image.
        on_step: called before each step with (step_index, num_steps); raise in it to stop.
        thrift: how to save memory.

    Returns:
        One execution a request; timings are those of the whole batch.

    Raises:
        RegistryError: a model or a head is not there or does not fit.
        Diverged: latents are no longer finite; names the picture among all of them.
    """
    clock = _Clock()
    model = models.model(requests[0].model)
    heads = [
        [models.head(request.model, control.head) for control in request.controls]
        for request in requests
    ]
    clock.lap("load")
    items, item_heads = [], []
    for request, own in zip(requests, heads, strict=True):
        items += _items(model, own, request, load_image)
        item_heads += [own] * request.num_samples
    clock.lap("prepare")
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    pictures: list[_Picture] = []
    size = thrift.batch_images or len(items)
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    for index, part in enumerate(parts):
        on_part_step = _part_of(on_step, index, len(parts))
        try:
            samples = _sample(model, part, requests[0], on_part_step, thrift)
        except Diverged as error:
            raise Diverged(error.item + len(pictures), error.step_index) from None
        clock.lap("sample")
        pictures += _pictures(model, samples, item_heads[len(pictures) :][: len(part)])
        clock.lap("decode")
    rows = iter(pictures)
    return [
        _execution(request, [next(rows) for _ in range(request.num_samples)], model, clock.laps)
        for request in requests
    ]


def _items(
    model: BaseModel, heads: list[LoadedHead], request: GenerationRequest, load_image: LoadImage
) -> list[SampleItem]:
    """One a picture, with the seeds seed, seed + 1, …"""
    targets = tuple(
        _target(model, head, control, request, load_image)
        for head, control in zip(heads, request.controls, strict=True)
    )
    return [
        SampleItem(request.prompt, request.negative_prompt, request.seed + index, targets)
        for index in range(request.num_samples)
    ]


def _sample(
    model: BaseModel,
    items: list[SampleItem],
    request: GenerationRequest,
    on_step: OnStep,
    thrift: Thrift,
) -> Samples:
    with _checkpointing(model, thrift.checkpoint):
        return sample(model, items, shared_plan(request), on_step=on_step)


@contextmanager
def _checkpointing(model: BaseModel, wanted: bool) -> Iterator[None]:
    """The U-Net's blocks forget their activations, and repeat them for the backward pass."""
    if wanted:
        model.unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if wanted:
            model.unet.disable_gradient_checkpointing()


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
    model: BaseModel, samples: Samples, heads: Sequence[list[LoadedHead]]
) -> list[_Picture]:
    images = to_images(model.decode(samples.latents))
    readouts = [_readout_images(row, own) for row, own in zip(samples.readouts, heads, strict=True)]
    evolution = _evolution(model, samples, heads)
    rows = zip(images, samples.distances, readouts, evolution, strict=True)
    return [_Picture(*row) for row in rows]


def _execution(
    request: GenerationRequest, pictures: list[_Picture], model: BaseModel, laps: dict[str, float]
) -> Execution:
    return Execution(
        images=[picture.image for picture in pictures],
        seeds=[request.seed + index for index in range(len(pictures))],
        distances=[picture.distances for picture in pictures],
        readouts=[picture.readouts for picture in pictures],
        evolution=[picture.evolution for picture in pictures],
        timings=dict(laps),
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
    )


def control_image(
    control: SpatialControl, width: int, height: int, load_image: LoadImage
) -> Image.Image:
    """The control as a picture of the output's aspect: fitted, or drawn from its key points."""
    if control.image is not None:
        return fit_image(load_image(control.image), width, height, control.fit)
    assert control.pose is not None
    return _draw(control.pose, width, height, control.fit)


def _draw(pose: Pose, width: int, height: int, fit: str) -> Image.Image:
    """Key points moved as `fit` would move the pixels they lie on, then drawn at full size."""
    aspect = pose.aspect_ratio * height / width
    scale_x, scale_y = 1.0, 1.0
    if fit != "stretch":
        widen = (aspect > 1) == (fit == "cover")
        scale_x, scale_y = (aspect, 1.0) if widen else (1.0, 1 / aspect)
    people = [
        [
            None
            if point is None
            else (
                ((point.x - 0.5) * scale_x + 0.5) * width,
                ((point.y - 0.5) * scale_y + 0.5) * height,
            )
            for point in person
        ]
        for person in pose.people
    ]
    return draw_pose(people, width, height)


def _target(
    model: BaseModel,
    head: LoadedHead,
    control: SpatialControl,
    request: GenerationRequest,
    load_image: LoadImage,
) -> ReadoutTarget:
    manifest = head.manifest
    assert model.manifest is not None
    _, h, w = model.latent_shape(request.height, request.width)
    image = control_image(control, request.width, request.height, load_image)
    size = (h * manifest.output_scale, w * manifest.output_scale)
    target = image_target(image, size, manifest.value_range, manifest.target_resampling)
    return ReadoutTarget(
        head=head.network,
        taps=manifest.feature_taps,
        timestep_convention=manifest.timestep_convention,
        target=target.to(model.device),
        objective=spatial_distance,
        weight=control.weight,
        span=control.span,
        update_scale=manifest.update_scale or model.manifest.update_scale,
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
        evolution_steps=request.output.evolution_steps,
    )


def _readout_images(readouts: list, heads: list[LoadedHead]) -> list[Image.Image]:
    return [
        Image.fromarray(readout_image(readout, head.manifest.value_range))
        for readout, head in zip(readouts, heads, strict=True)
    ]


def _evolution(
    model: BaseModel, samples: Samples, heads: Sequence[list[LoadedHead]]
) -> list[list[EvolutionFrame]]:
    frames: list[list[EvolutionFrame]] = [[] for _ in range(len(samples.latents))]
    for snapshot in samples.evolution:
        pictures = to_images(model.decode(snapshot.pred_original_sample))
        for row, picture in enumerate(pictures):
            readouts = _readout_images(snapshot.readouts[row], heads[row])
            frames[row].append(EvolutionFrame(snapshot.step_index, picture, readouts))
    return frames


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
