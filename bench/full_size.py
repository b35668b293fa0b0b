"""`python -m bench.full_size`: Stable Diffusion 1.5 at full size, random weights, guided steps.

Time and memory do not depend on the weights. Reports seconds of an unguided and of a guided step at
512 px, and the peak of the process' memory (or of the GPU's, where there is one).
"""

from __future__ import annotations

import argparse
import resource
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from heads_registry.base_model import BaseModel
from heads_registry.device import resolve_device, resolve_dtype
from heads_registry.features import decoder_taps
from heads_registry.networks import ReadoutHead
from tests.tiny import tiny_pipeline
from worker.guidance import ReadoutTarget
from worker.objectives import spatial_distance
from worker.sampler import SampleItem, SamplingPlan, sample


def sd15(device: torch.device, dtype: torch.dtype) -> BaseModel:
    """A pipeline of SD1.5's sizes: 860M U-Net, 84M VAE, 123M text encoder."""
    torch.manual_seed(0)
    with TemporaryDirectory() as directory:
        pipeline = tiny_pipeline(Path(directory))
    pipeline.register_modules(
        unet=UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            attention_head_dim=8,
        ),
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                projection_dim=768,
                eos_token_id=pipeline.tokenizer.eos_token_id,
            )
        ),
    )
    pipeline.to(device, dtype)
    model = BaseModel(pipeline)
    model.unet.to(memory_format=torch.channels_last)
    return model


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--form", default="one_pass")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = resolve_device(options.device)
    dtype = resolve_dtype("auto", device)
    model = sd15(device, dtype)
    taps = decoder_taps(model.unet)
    head = ReadoutHead(tuple(taps.values()), 384, 1280, output_channels=3)
    head = head.requires_grad_(False).eval().to(device)
    target = ReadoutTarget(
        head,
        tuple(taps),
        "timestep",
        torch.zeros(3, 64, 64, device=device),
        spatial_distance,
        0.5,
        (0.0, 0.5),
        0.02,
    )
    starts: list[float] = []

    def on_step(step_index: int, num_steps: int) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        starts.append(time.perf_counter())

    plan = SamplingPlan(512, 512, options.steps, eta=1.0, form=options.form)
    item = SampleItem("a person", seed=0, targets=(target,))
    samples = sample(model, [item], plan, on_step=on_step)
    on_step(options.steps, options.steps)
    seconds = [later - earlier for earlier, later in pairwise(starts)]
    half = options.steps // 2
    begun = time.perf_counter()
    model.decode(samples.latents)
    decode_s = time.perf_counter() - begun
    peak = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    print(
        f"SD1.5 at 512 px, {device}, {dtype}, {options.form}: "
        f"guided step {min(seconds[:half]):.1f} s, unguided {min(seconds[half:]):.1f} s, "
        f"decode {decode_s:.1f} s, "
        f"peak {peak / 2**30:.1f} GiB, latents finite: {bool(samples.latents.isfinite().all())}"
    )


if __name__ == "__main__":
    main()
