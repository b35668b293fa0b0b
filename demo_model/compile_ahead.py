"""Fills torch.compile's cache for a configuration, so that training starts at once."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from demo_model.config import RunConfig, load_config
from demo_model.devices import choose_device, raise_priority
from demo_model.networks import build_unet

Forward = Callable[..., tuple[Tensor]]


def compiled(forward: Forward, config: RunConfig) -> Forward:
    """A network's forward, compiled for one batch size where the configuration asks for it."""
    return torch.compile(forward, dynamic=False) if config.compile else forward


def main() -> None:
    """Compiles one forward and backward pass; prints the seconds of it and of later steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    config = load_config(parser.parse_args().config)
    raise_priority()
    device = choose_device(config)
    model = build_unet(config).to(device.device)
    denoise = compiled(model, config)
    batch, size = config.unet.plan.batch_size // config.processes, config.latent_size
    for _ in range(8):
        began = time.monotonic()
        latents = torch.randn(batch, config.vae.latent_channels, size, size, device=device.device)
        latents = latents.contiguous(memory_format=torch.channels_last)
        timesteps = torch.randint(0, 1000, (batch,), device=device.device)
        context = torch.randn(
            batch, config.text.max_length, config.text.width, device=device.device
        )
        with device.autocast():
            output = denoise(latents, timesteps, context.requires_grad_(), return_dict=False)[0]
        output.square().mean().backward()
        print(f"{time.monotonic() - began:.2f} s for {batch} samples", flush=True)


if __name__ == "__main__":
    main()
