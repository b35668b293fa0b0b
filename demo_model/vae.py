"""The autoencoder's stage: builds it, trains it on full images, and encodes the renders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from demo_model.config import RunConfig, VaeConfig
from demo_model.data import EpochOrder, Renders, images_as_bytes, images_as_tensor
from demo_model.devices import Device
from demo_model.heads import head_weights
from demo_model.networks import load_start
from demo_model.parallel import FlatGradients, Group
from demo_model.sheets import write_sheet


def build_vae(config: RunConfig) -> AutoencoderKL:
    """An AutoencoderKL, the start's where there is one; of a new one the residual branches begin at
    zero: it starts as a linear network."""
    vae, levels = config.vae, len(config.vae.channels)
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=vae.channels,
        layers_per_block=vae.layers_per_block,
        latent_channels=vae.latent_channels,
        norm_num_groups=vae.norm_num_groups,
        sample_size=config.image_size,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    for name, parameter in model.named_parameters():
        if ".conv2." in name:
            torch.nn.init.zeros_(parameter)
    if config.start is not None:
        start = AutoencoderKL.from_pretrained(config.start, subfolder="vae")
        load_start(model, start.state_dict())
    return model.to(memory_format=torch.channels_last)


def image_gradient_loss(difference: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean absolute horizontal and vertical differences of two images' difference."""
    horizontal = (difference[..., :, 1:] - difference[..., :, :-1]).abs() * weights[..., 1:]
    vertical = (difference[..., 1:, :] - difference[..., :-1, :]).abs() * weights[..., 1:, :]
    return horizontal.mean() + vertical.mean()


def reconstruction_loss(
    config: VaeConfig, output: Tensor, images: Tensor, weights: Tensor
) -> Tensor:
    """L1 + 2·L2 + 0.7·gradient, weighted pixel by pixel.

    Args:
        output, images: (batch, 3, height, width) in [-1, 1].
        weights: (batch, 1, height, width), mean 1.
    """
    difference = output - images
    error = difference.abs() + config.l2_weight * difference.square()
    gradient = config.gradient_weight * image_gradient_loss(difference, weights)
    return (error * weights).mean() + gradient


class VaeStage:
    """Trains the autoencoder; each process of `group` takes its part of every batch."""

    name = "vae"

    def __init__(
        self, config: RunConfig, renders: Renders, device: Device, group: Group | None = None
    ) -> None:
        self.config, self.renders, self.device = config, renders, device
        self.plan, self.group = config.vae.plan, group or Group()
        torch.manual_seed(config.seed)
        self.model = build_vae(config).to(device.device)
        self.gradients = FlatGradients(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            betas=(0.9, 0.99),
            weight_decay=self.plan.weight_decay,
            fused=True,
        )
        self.order = EpochOrder(len(renders.train.images), config.seed)
        self.generator = torch.Generator(device.device).manual_seed(config.seed)

    def loss(self, chosen: np.ndarray) -> Tensor:
        """The loss of some training images: reconstruction + 1e-4·KL per latent element."""
        device = self.device.device
        images = images_as_tensor(self.renders.train.images[chosen], device)
        size, channels = self.config.latent_size, self.config.vae.latent_channels
        shape = (len(chosen), channels, size, size)
        noise = torch.randn(shape, generator=self.generator, device=device)
        keypoints, extra = self.renders.train.keypoints[chosen], self.config.vae.head_weight
        weights = head_weights(keypoints, self.config.image_size, extra, device)
        images = images.contiguous(memory_format=torch.channels_last)
        with self.device.autocast():
            posterior = self.model.encode(images, return_dict=False)[0]
            sample = posterior.mean + posterior.std * noise
            output = self.model.decode(sample, return_dict=False)[0]
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).float().mean()
        error = reconstruction_loss(self.config.vae, output.float(), images, weights)
        return error + self.config.vae.kl_weight * kl

    def train_step(self, position: int, rate: float, step: int) -> float | None:
        """One AdamW step on one batch of the whole group; the loss every tenth step."""
        batch = self.order.batch(position, self.plan.batch_size)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss(np.sort(batch[self.group.rank :: self.group.size]))
        loss.backward()
        self.group.average(self.gradients.flat)
        self.gradients.clip(self.plan.max_gradient_norm)
        self.optimizer.step()
        self.gradients.zero()
        return loss.item() if step % 10 == 0 else None

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores weights and optimiser."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """The decoded posterior mean."""
        mean = self.model.encode(images.to(self.device.device)).latent_dist.mean
        return self.model.decode(mean).sample.cpu()

    def write_sheet(self, path: Path) -> dict[str, float]:
        """Validation images above their reconstructions; returns the mean PSNR in dB."""
        images = images_as_tensor(self.renders.validation.images[:64])
        output = torch.cat([self.reconstruct(part) for part in images.split(16)])
        shown = min(16, len(images))
        rows = [images_as_bytes(part[:shown]) for part in (images, output)]
        pairs = np.concatenate([row[at : at + 8] for at in range(0, shown, 8) for row in rows])
        write_sheet(path, pairs)
        return {"psnr_db": round(psnr_db(images, output), 3)}


def psnr_db(left: Tensor, right: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio, for images in [-1, 1]."""
    error = (left - right.clamp(-1, 1)).square().mean((1, 2, 3)).clamp_min(1e-10)
    return float((10 * math.log10(4.0) - 10 * error.log10()).mean())


@torch.no_grad()
def encode_latents(
    model: AutoencoderKL,
    images: np.ndarray,
    path: Path,
    device: Device,
    group: Group,
    batch: int = 64,
) -> None:
    """Writes the posterior mean and standard deviation of every image to `path`, (count, 8, h, w)
    float16 and unscaled; the processes of a group share the work."""
    model.eval()
    temporary = path.with_suffix(".tmp.npy")
    size = images.shape[1] // model_factor(model)
    if group.leads:
        shape = (len(images), 2 * model.config.latent_channels, size, size)
        np.lib.format.open_memmap(temporary, "w+", np.float16, shape).flush()
    group.wait()
    output = np.load(temporary, mmap_mode="r+")
    starts = range(batch * group.rank, len(images), batch * group.size)
    for start in tqdm(starts, desc="latents", mininterval=5.0, disable=not group.leads):
        part = images_as_tensor(images[start : start + batch], device.device)
        with device.autocast():
            posterior = model.encode(part).latent_dist
        both = torch.cat([posterior.mean, posterior.std], dim=1)
        output[start : start + batch] = both.half().cpu().numpy()
    output.flush()
    group.wait()
    if group.leads:
        temporary.rename(path)


def model_factor(model: AutoencoderKL) -> int:
    """Pixels per latent along a side."""
    return int(2 ** (len(model.config.block_out_channels) - 1))


def scaling_factor(latents: np.ndarray, channels: int) -> float:
    """1 / standard deviation of sampled latents over (up to) 4096 images, as SD defines it."""
    some = torch.from_numpy(np.array(latents[:4096], np.float32))
    mean, std = some[:, :channels], some[:, channels:]
    return float(1.0 / (mean.var() + std.square().mean()).sqrt())
