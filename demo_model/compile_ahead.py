"""Fills torch.compile's cache for a configuration, so that training starts at once."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from demo_model.config import RunConfig, load_config
from demo_model.devices import choose_device, raise_priority
from demo_model.networks import build_unet


def compiled(network: nn.Module, config: RunConfig) -> nn.Module:
    """A network compiled for one batch size where the configuration asks for it."""
    if not config.compile:
        return network
    double_by_copies(network)
    compiled_network: nn.Module = torch.compile(network, dynamic=False)
    return compiled_network


def double_by_copies(network: nn.Module) -> None:
    """Makes all nearest upsampling of a network copies of pixels; what it computes is the same.

    torch 2.13 compiles `interpolate` between bfloat16 convolutions on a CPU such that no gradient
    passes.
    """
    for module in network.modules():
        if isinstance(module, Upsample2D):
            module.interpolate = False
            module.register_forward_pre_hook(_double)


def _double(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    hidden, *rest = inputs
    count, channels, height, width = hidden.shape
    copies = hidden[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return (copies.reshape(count, channels, 2 * height, 2 * width), *rest)


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
