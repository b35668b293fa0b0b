"""`python -m bench.guided_ratio`: what guidance costs beside the same pictures without it.

Both are sampled in one process, A B B A, and compared by CPU seconds and by wall-clock seconds;
the ratio is what counts, on shared machines. `--model random` is the 33.8M-parameter U-Net of
REFERENCE.md section 5 at 32×32 latents, with a head of 96 channels; a name is a model of the
catalogue with its pose head. Half of the steps are guided, one control of weight 0.5 a picture.

The *floor* is what no implementation gets below: both branches' forwards, and in guided steps one
backward from the tapped features to the latents, each timed alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import UNet2DConditionModel

from heads_registry.base_model import BaseModel
from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from heads_registry.device import resolve_dtype
from heads_registry.features import decoder_taps
from heads_registry.networks import ReadoutHead
from tests.tiny import tiny_pipeline
from worker.guidance import ReadoutTarget
from worker.models import ModelCache
from worker.objectives import spatial_distance
from worker.sampler import SampleItem, SamplingPlan, sample

CPU = torch.device("cpu")


def random_model() -> tuple[BaseModel, ReadoutHead, SamplingPlan]:
    """The U-Net of REFERENCE.md section 5 with random weights, and a head for it."""
    torch.manual_seed(0)
    with TemporaryDirectory() as directory:
        pipeline = tiny_pipeline(Path(directory))
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(64, 128, 256, 256),
        cross_attention_dim=16,
        attention_head_dim=8,
    )
    pipeline.register_modules(unet=unet)
    model = BaseModel(pipeline)
    model.unet.to(memory_format=torch.channels_last)
    head = ReadoutHead(
        tuple(decoder_taps(unet).values()),
        96,
        unet.time_embedding.linear_2.out_features,
        num_norm_groups=8,
        output_channels=3,
    )
    factor = model.vae_scale_factor
    return model, head.requires_grad_(False).eval(), SamplingPlan(32 * factor, 32 * factor)


def catalogue_model(name: str, dtype: str) -> tuple[BaseModel, ReadoutHead, SamplingPlan]:
    """An installed model with its pose head."""
    chosen = None if dtype == "auto" else resolve_dtype(dtype, CPU)
    models = ModelCache(Catalogue([BUILTIN_DIR]), 2**34, CPU, chosen)
    manifest = models.catalogue.model(name)
    head = models.head(name, "pose").network
    return models.model(name), head, SamplingPlan(manifest.height, manifest.width)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds of one run."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def floor_ratio(model: BaseModel, plan: SamplingPlan, batch: int) -> float:
    """(2 forwards + half a backward) ÷ 2 forwards."""
    taps = tuple(decoder_taps(model.unet))
    conditioning = model.encode_prompts([""])[[0] * batch]
    timesteps = torch.full((batch,), 500)
    latents = torch.randn(batch, *model.latent_shape(plan.height, plan.width))

    def forward() -> None:
        with torch.no_grad():
            model.denoise(latents, timesteps, conditioning)

    def both() -> None:
        leaf = latents.clone().requires_grad_()
        with model.capture_features(taps) as features:
            model.denoise(leaf, timesteps, conditioning)
        torch.autograd.grad(features, leaf, [torch.ones_like(one) for one in features])

    forward(), both()
    once, through = (min(timed(run)[0] for _ in range(5)) for run in (forward, both))
    return (2 * once + 0.5 * (through - once)) / (2 * once)


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="random")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--form", default="one_pass")
    parser.add_argument("--branch", default="unconditional")
    parser.add_argument("--dtype", default="auto", help="of an installed model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, head, plan = (
        random_model()
        if options.model == "random"
        else catalogue_model(options.model, options.dtype)
    )
    plan = SamplingPlan(
        plan.height,
        plan.width,
        options.steps,
        eta=1.0,
        form=options.form,
        branch=options.branch,
    )
    _, h, w = model.latent_shape(plan.height, plan.width)
    scale = head.output_scale
    taps = tuple(decoder_taps(model.unet))

    def items(weight: float) -> list[SampleItem]:
        target = ReadoutTarget(
            head, taps, "timestep", torch.zeros(3, h * scale, w * scale), spatial_distance,
            weight, (0.0, 0.5), 0.02,
        )  # fmt: skip
        return [
            SampleItem("a person", seed=seed, targets=(target,)) for seed in range(options.batch)
        ]

    def plain() -> None:
        sample(model, items(0.0), plan)

    def guided() -> None:
        sample(model, items(0.5), plan)

    plain(), guided()
    seconds: dict[str, list[tuple[float, float]]] = {"plain": [], "guided": []}
    for _ in range(options.rounds):
        for name, run in (
            ("plain", plain),
            ("guided", guided),
            ("guided", guided),
            ("plain", plain),
        ):
            seconds[name].append(timed(run))
    wall, cpu = (
        [statistics.median(run[clock] for run in seconds[name]) for name in ("plain", "guided")]
        for clock in (0, 1)
    )
    parameters = sum(parameter.numel() for parameter in model.unet.parameters()) / 1e6
    print(
        f"{options.model} ({parameters:.1f}M), {options.form}, {options.branch}, "
        f"batch {options.batch}, {options.steps} steps, {options.threads} threads, "
        f"{str(model.dtype).removeprefix('torch.')}: "
        f"unguided {wall[0] / options.batch:.3f}, guided {wall[1] / options.batch:.3f} s an image; "
        f"ratio {wall[1] / wall[0]:.2f} wall, {cpu[1] / cpu[0]:.2f} CPU; "
        f"floor {floor_ratio(model, plan, options.batch):.2f}"
    )


if __name__ == "__main__":
    main()
