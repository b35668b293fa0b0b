"""Plain DDIM sampling with classifier-free guidance, for sample sheets; knows no pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from demo_model.networks import build_scheduler


@torch.no_grad()
def sample_latents(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    captions: Sequence[str],
    seed: int,
    steps: int = 30,
    guidance_scale: float = 4.0,
) -> Tensor:
    """(captions, channels, h, w) scaled latents; deterministic by seed (eta 0)."""
    device = next(unet.parameters()).device
    texts = [*[""] * len(captions), *captions]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    context = text_encoder(ids.to(device)).last_hidden_state
    size, scheduler = unet.config.sample_size, build_scheduler()
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(captions), unet.config.in_channels, size, size)
    latents = torch.randn(shape, generator=generator).to(device)
    for timestep in scheduler.timesteps:
        noise_pred = unet(torch.cat([latents, latents]), timestep, context).sample
        noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
        noise_pred = noise_pred_uncond + guidance_scale * (noise_pred_text - noise_pred_uncond)
        latents = scheduler.step(noise_pred, timestep, latents).prev_sample
    return latents
