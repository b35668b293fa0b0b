"""The autoencoder's stages: builds it, trains it on full images, encodes the renders, and trains
its decoder on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm

from demo_model.compile_ahead import compiled
from demo_model.config import PlanConfig, RunConfig, VaeConfig
from demo_model.data import EpochOrder, Renders, images_as_bytes, images_as_tensor
from demo_model.devices import Device
from demo_model.parallel import Group
from demo_model.sheets import write_sheet


def build_vae(config: RunConfig) -> AutoencoderKL:
    """A new AutoencoderKL; residual branches begin at zero: it starts as a linear network."""
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
    return model.to(memory_format=torch.channels_last)


def image_gradient_loss(left: Tensor, right: Tensor) -> Tensor:
    """Mean absolute difference of the two images' horizontal and vertical differences."""
    difference = left - right
    horizontal = (difference[..., :, 1:] - difference[..., :, :-1]).abs().mean()
    vertical = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    return horizontal + vertical


def reconstruction_loss(config: VaeConfig, output: Tensor, images: Tensor) -> Tensor:
    """L1 + 2·L2 + 0.7·gradient, on images in [-1, 1]."""
    squared = config.l2_weight * F.mse_loss(output, images)
    gradient = config.gradient_weight * image_gradient_loss(output, images)
    return F.l1_loss(output, images) + squared + gradient


def vae_loss(config: VaeConfig, model: AutoencoderKL, images: Tensor, noise: Tensor) -> Tensor:
    """The reconstruction's loss + 1e-4·KL per latent element, on images in [-1, 1]."""
    posterior = model.encode(images).latent_dist
    output = model.decode(posterior.mean + posterior.std * noise).sample
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
    return reconstruction_loss(config, output, images) + config.kl_weight * kl


class VaeStage:
    """Trains the autoencoder."""

    name = "vae"

    def __init__(self, config: RunConfig, renders: Renders, device: Device) -> None:
        self.config, self.renders, self.device = config.vae, renders, device
        self.plan = self.plan_of(config)
        self.model = build_vae(config).to(device.device)
        self.optimizer = torch.optim.AdamW(
            self.trained_parameters(),
            betas=(0.9, 0.99),
            weight_decay=self.plan.weight_decay,
            fused=True,
        )
        self.order = EpochOrder(len(renders.train.images), config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        size = config.latent_size
        self.noise_shape = (self.plan.batch_size, config.vae.latent_channels, size, size)

    def plan_of(self, config: RunConfig) -> PlanConfig:
        """How long this stage trains."""
        return config.vae.plan

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves."""
        return list(self.model.parameters())

    def loss(self, chosen: np.ndarray) -> Tensor:
        """The loss of some training images."""
        images = images_as_tensor(self.renders.train.images[chosen]).to(self.device.device)
        noise = torch.randn(self.noise_shape, generator=self.generator).to(self.device.device)
        return vae_loss(self.config, self.model, images, noise)

    def train_step(self, position: int, rate: float, step: int) -> float | None:
        """One AdamW step on one batch; the loss every tenth step."""
        chosen = np.sort(self.order.batch(position, self.plan.batch_size))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.device.autocast():
            loss = self.loss(chosen)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained_parameters(), self.plan.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
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


class DecoderStage(VaeStage):
    """Trains the decoder alone on cached latents: they, and all that was trained on them (U-Net,
    heads), stay valid while pictures become sharper.

    Args:
        latents: (count, 8, h, w) float16, posterior means and standard deviations of the first
            `count` training images.
        autoencoder: the trained autoencoder's weights.
    """

    name = "decoder"

    def __init__(
        self,
        config: RunConfig,
        renders: Renders,
        device: Device,
        latents: np.ndarray,
        autoencoder: dict[str, Tensor],
    ) -> None:
        super().__init__(config, renders, device)
        self.model.load_state_dict(autoencoder)
        self.model.requires_grad_(False)
        for parameter in self.trained_parameters():
            parameter.requires_grad_()
        self.latents = latents
        self.order = EpochOrder(len(latents), config.seed)
        self.decode = compiled(self.model.decode, config)

    def plan_of(self, config: RunConfig) -> PlanConfig:
        """How long this stage trains."""
        return config.vae.decoder_plan or config.vae.plan

    def trained_parameters(self) -> list[nn.Parameter]:
        """The decoder's."""
        return [*self.model.post_quant_conv.parameters(), *self.model.decoder.parameters()]

    def loss(self, chosen: np.ndarray) -> Tensor:
        """Of pictures decoded from their posteriors' samples."""
        images = images_as_tensor(self.renders.train.images[chosen]).to(self.device.device)
        both = torch.from_numpy(self.latents[chosen].astype(np.float32))
        mean, std = both.split(self.config.latent_channels, dim=1)
        latents = mean + std * torch.randn(mean.shape, generator=self.generator)
        latents = latents.to(self.device.device, memory_format=torch.channels_last)
        return reconstruction_loss(self.config, self.decode(latents, return_dict=False)[0], images)


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
        part = images_as_tensor(images[start : start + batch]).to(device.device)
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
