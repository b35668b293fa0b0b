"""The U-Net's stage: trains it and the text encoder on cached latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from demo_model.compile_ahead import compiled
from demo_model.config import RunConfig
from demo_model.data import EpochOrder, images_as_bytes
from demo_model.devices import Device
from demo_model.heads import head_weights
from demo_model.networks import build_scheduler
from demo_model.parallel import FlatGradients, Group
from demo_model.sampling import sample_latents
from demo_model.sheets import write_sheet
from demo_model.text import WITH_POSE, WITHOUT_POSE


@dataclass(frozen=True)
class Parts:
    """The networks of the model being trained; the autoencoder is frozen."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL


class Average:
    """Exponential moving average of parameters, decay min(limit, (1+n) / (10+n)) at n."""

    def __init__(self, parameters: list[nn.Parameter], limit: float) -> None:
        self.parameters, self.limit = parameters, limit
        self.values = [parameter.detach().clone() for parameter in parameters]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the parameters."""
        self.updates += 1
        decay = min(self.limit, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges parameters and averages; a second call takes it back."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)


def min_snr_weights(alphas_cumprod: Tensor, gamma: float) -> Tensor:
    """(timesteps,) min(SNR, γ) / SNR for noise prediction (Hang et al. 2023, eq. 8)."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / snr


def latent_head_weights(
    config: RunConfig, keypoints: np.ndarray, latent_size: int, device: torch.device
) -> Tensor:
    """(count, 1, latent_size, latent_size) float16, mean 1 an image: how much each latent counts.

    Args:
        keypoints: (count, people, 18, 3), x and y in pixels.
    """
    extra, factor = config.unet.head_weight, config.image_size // latent_size
    weights = [
        F.avg_pool2d(head_weights(part, config.image_size, extra, device), factor).half()
        for part in np.array_split(keypoints, max(1, len(keypoints) // 500))
    ]
    return torch.cat(weights)


class UnetStage:
    """Trains U-Net and text encoder; each process of `group` takes its part of every batch.

    Args:
        latents: (count, 8, h, w) float16, posterior means and standard deviations, unscaled.
        captions: (count, 6, length) token ids, the last two without words of the pose.
        keypoints: (count, people, 18, 3), x and y in pixels.
        export: writes the pipeline of the networks as they are; called with the averages in place.
    """

    name = "unet"

    def __init__(
        self,
        config: RunConfig,
        parts: Parts,
        latents: np.ndarray,
        captions: np.ndarray,
        keypoints: np.ndarray,
        device: Device,
        group: Group,
        export: Callable[[], None],
    ) -> None:
        self.config, self.plan, self.parts = config.unet, config.unet.plan, parts
        self.device, self.group, self.export = device, group, export
        self.latent_channels = config.vae.latent_channels
        where = device.device  # the whole data set: some gigabytes
        self.latents = torch.from_numpy(latents).to(where)
        self.captions = torch.from_numpy(captions).to(where)
        self.head_weights = latent_head_weights(config, keypoints, latents.shape[-1], where)
        self.order = EpochOrder(len(latents), config.seed)
        self.generator = torch.Generator(where)
        unet_parameters = list(parts.unet.parameters())
        text_parameters = list(parts.text_encoder.parameters())
        self.gradients = FlatGradients([*unet_parameters, *text_parameters])
        self.average = Average([*unet_parameters, *text_parameters], config.unet.ema_decay)
        self.optimizer = torch.optim.AdamW(
            [{"params": unet_parameters}, {"params": text_parameters}],
            betas=(0.9, 0.99),
            weight_decay=self.plan.weight_decay,
            fused=True,
        )
        self.denoise = compiled(parts.unet, config)
        end = parts.tokenizer.eos_token_id
        self.empty = torch.full((config.text.max_length,), end, device=where)
        self.empty[0] = parts.tokenizer.bos_token_id
        self.alphas_cumprod = build_scheduler().alphas_cumprod.to(where)
        self.weights = min_snr_weights(self.alphas_cumprod, config.unet.min_snr_gamma)

    def _caption_ids(self, images: Tensor) -> Tensor:
        """(batch, length) ids of one random caption of each image, sometimes the empty one."""
        count = len(images)
        variant = self._integers(count, 0, WITH_POSE)
        poseless = self._integers(count, WITH_POSE, WITH_POSE + WITHOUT_POSE)
        without = self._uniform(count) < self.config.without_pose_probability
        ids = self.captions[images, torch.where(without, poseless, variant)].long()
        empty = self._uniform(count) < self.config.empty_caption_probability
        return torch.where(empty[:, None], self.empty, ids)

    def _integers(self, count: int, low: int, high: int) -> Tensor:
        where, draw = self.generator.device, self.generator
        return torch.randint(low, high, (count,), generator=draw, device=where)

    def _uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, device=self.generator.device)

    def _normal(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def _latents(self, images: Tensor) -> Tensor:
        """(batch, channels, h, w) sampled from the cached posteriors, scaled to unit variance."""
        mean, std = self.latents[images].float().split(self.latent_channels, dim=1)
        return (mean + std * self._normal(mean.shape)) * self.parts.vae.config.scaling_factor

    def _timesteps(self, count: int) -> Tensor:
        """(batch,) one from each of `count` equal parts of the schedule, in random order."""
        where, draw = self.generator.device, self.generator
        parts = torch.randperm(count, generator=draw, device=where)
        return ((parts + self._uniform(count)) * 1000 / count).long()

    def loss(self, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """The min-SNR and head weighted loss of some images, and the plain mean squared error."""
        images = torch.from_numpy(chosen).to(self.device.device)
        ids, latents = self._caption_ids(images), self._latents(images)
        timesteps = self._timesteps(len(images))
        noise = self._normal(latents.shape)
        signal = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with self.device.autocast():
            context = self.parts.text_encoder(ids).last_hidden_state
            noise_pred = self.denoise(noisy, timesteps, context, return_dict=False)[0]
        error = (noise_pred.float() - noise).square().mean(1, keepdim=True)
        weights = self.head_weights[images].float() * self.weights[timesteps].view(-1, 1, 1, 1)
        return (error * weights).mean(), error.detach().mean()

    def train_step(self, position: int, rate: float, step: int) -> float | None:
        """One AdamW step on one batch of the whole group; the plain error every tenth step."""
        images = self.order.batch(position, self.plan.batch_size)[
            self.group.rank :: self.group.size
        ]
        for group, factor in zip(
            self.optimizer.param_groups, (1.0, self.config.text_learning_rate_factor), strict=True
        ):
            group["lr"] = rate * factor
        loss, error = self.loss(images)
        loss.backward()
        self.group.average(self.gradients.flat)
        self.gradients.clip(self.plan.max_gradient_norm)
        self.optimizer.step()
        self.gradients.zero()
        if self.group.leads:
            self.average.update()
        return error.item() if step % 10 == 0 else None

    def state_dict(self) -> dict[str, Any]:
        """Weights, averages and optimiser."""
        return {
            "unet": self.parts.unet.state_dict(),
            "text_encoder": self.parts.text_encoder.state_dict(),
            "average": self.average.values,
            "updates": self.average.updates,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s answer."""
        self.parts.unet.load_state_dict(state["unet"])
        self.parts.text_encoder.load_state_dict(state["text_encoder"])
        for value, saved in zip(self.average.values, state["average"], strict=True):
            value.copy_(saved)
        self.average.updates = state["updates"]
        self.optimizer.load_state_dict(state["optimizer"])

    def write_sheet(self, path: Path) -> dict[str, float]:
        """16 samples of the averaged weights for fixed captions, and exports those weights."""
        self.average.swap()
        try:
            captions = SHEET_CAPTIONS
            latents = sample_latents(
                self.parts.unet, self.parts.text_encoder, self.parts.tokenizer, captions, seed=1
            )
            vae = self.parts.vae
            with torch.no_grad():
                images = vae.decode(latents / vae.config.scaling_factor).sample
            write_sheet(path, images_as_bytes(images), captions)
            self.export()
        finally:
            self.average.swap()
        return {}


SHEET_CAPTIONS = (
    "a person in a red shirt and blue trousers, arms raised, on grass, under a pink sky",
    "a person in a yellow shirt and black trousers, arms out, on snow, under a blue sky",
    "a person in a green shirt and white trousers, walking, hands on hips, on sand",
    "a person in a purple shirt and orange trousers, kneeling, arms forward, on wood",
    "a person in a white shirt and red trousers, legs apart, waving left hand, on asphalt",
    "a person in a black shirt and yellow trousers, standing, arms down, under a dark sky",
    "a person in an orange shirt and green trousers, right arm pointing, under a golden sky",
    "a person in a blue shirt and purple trousers, left leg raised, right arm raised, on grass",
    "a portrait of a person with short brown hair and round glasses, in a red shirt",
    "a portrait of a person with long blond hair, in a blue shirt, under a golden sky",
    "a portrait of a person with a bald head and a green cap, in a white shirt",
    "two people, one in a red shirt and black trousers, one in a yellow shirt and blue trousers",
    "a person in a red shirt and white trousers with a hat, standing, next to a tree",
    "a person in a blue shirt and yellow trousers, arms raised, from behind, on sand",
    "a person in a green shirt and purple trousers, arms out, under a grey sky, next to a ball",
    "a person",
)
