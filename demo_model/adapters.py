"""`python -m demo_model.adapters`: a ControlNet and a T2I-Adapter for poses on a frozen base model.

    python -m demo_model.adapters all --config demo_model/configs/mannequin-64-adapters.yaml \\
        --run runs/adapters

renders, encodes, trains and exports to ``RUN/final`` and ``RUN/early``, registry directories that
READOUT_REGISTRY_DIRS may name. Each adapter is a command of its own, too; all resume.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers import ControlNetModel, StableDiffusionPipeline, T2IAdapter
from torch import Tensor, nn

from demo_model.adapter_export import KINDS, Kind, draw_sheet, export_adapter
from demo_model.config import AdaptersConfig, PlanConfig
from demo_model.data import EpochOrder
from demo_model.devices import Device, choose_device, raise_priority
from demo_model.loop import Loop, Stopped
from demo_model.networks import build_scheduler
from demo_model.parallel import FlatGradients, Group
from demo_model.text import WITH_POSE, WITHOUT_POSE, tokenize_captions
from demo_model.unet import Average
from demo_model.vae import encode_latents
from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from world.packed import Packed, open_packed, render_packed
from world.seeds import TRAIN


def build_adapter(kind: Kind, pipeline: StableDiffusionPipeline, config: AdaptersConfig) -> Any:
    """A new adapter for the pipeline's U-Net.

    A ControlNet begins as a copy of the encoder, zero convolutions at its ends. The T2I-Adapter is
    the kind that SDXL has, because these U-Nets, too, halve the latents in a first block without
    attention, after which diffusers adds the first feature; the last block gets none. Where the
    second block has no attention either, the adapter has features for these two blocks alone.
    """
    torch.manual_seed(config.seed)
    if kind == "controlnet":
        adapter = ControlNetModel.from_unet(
            pipeline.unet, conditioning_embedding_out_channels=config.embedding_channels
        )
    else:
        factor = 2 ** len(config.embedding_channels)  # the autoencoder's, and the first block's
        unet = pipeline.unet.config
        both_plain = unet.down_block_types[1] == "DownBlock2D"
        adapter = T2IAdapter(
            channels=list(unet.block_out_channels[: 2 if both_plain else 3]),
            num_res_blocks=2,
            downscale_factor=factor,
            adapter_type="full_adapter" if both_plain else "full_adapter_xl",
        )
    return adapter.requires_grad_(True).train().to(memory_format=torch.channels_last)


def residuals(
    adapter: nn.Module, noisy: Tensor, timesteps: Tensor, context: Tensor, images: Tensor
) -> dict[str, Any]:
    """What an adapter adds to the U-Net's pass, as its keyword arguments."""
    if isinstance(adapter, ControlNetModel):
        down, mid = adapter(noisy, timesteps, context, controlnet_cond=images, return_dict=False)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    return {"down_intrablock_additional_residuals": list(adapter(images))}


class AdapterStage:
    """Trains one adapter to the noise prediction's error, weighted by min(1 / ᾱ, limit).

    Timesteps are drawn as T2I-Adapter's are (Mou et al. 2023, section 3.4), t = (1 - u³) T: late
    ones hardly change a pose any more.
    """

    def __init__(
        self,
        kind: Kind,
        config: AdaptersConfig,
        pipeline: StableDiffusionPipeline,
        renders: Packed,
        folder: Path,
        device: Device,
    ) -> None:
        self.kind, self.name, self.config, self.folder = kind, kind, config, folder
        self.plan: PlanConfig = getattr(config, kind)
        self.pipeline, self.renders, self.device = pipeline, renders, device
        self.latents = np.load(folder / "latents.npy", mmap_mode="r")
        self.captions = np.load(folder / "captions.npy")
        self.order = EpochOrder(config.data.count - config.data.validation_count, config.seed)
        self.generator = torch.Generator()
        self.adapter = build_adapter(kind, pipeline, config).to(device.device)
        parameters = list(self.adapter.parameters())
        self.gradients = FlatGradients(parameters)
        self.average = Average(parameters, config.ema_decay)
        self.optimizer = torch.optim.AdamW(
            parameters, betas=(0.9, 0.99), weight_decay=self.plan.weight_decay, fused=True
        )
        self.alphas_cumprod = build_scheduler().alphas_cumprod
        self.weights = (1 / self.alphas_cumprod).clamp(max=config.weight_limit)

    def _context(self, rows: np.ndarray) -> Tensor:
        """Text embeddings of one random caption of each picture, sometimes of the empty one."""
        count, draw, tokenizer = len(rows), self.generator, self.pipeline.tokenizer
        variant = torch.randint(0, WITH_POSE, (count,), generator=draw)
        poseless = WITH_POSE + torch.randint(0, WITHOUT_POSE, (count,), generator=draw)
        without = torch.rand(count, generator=draw) < self.config.without_pose_probability
        variant = torch.where(without, poseless, variant)
        ids = torch.from_numpy(self.captions[rows, variant.numpy()].astype(np.int64))
        empty = torch.full_like(ids[0], tokenizer.eos_token_id)
        empty[0] = tokenizer.bos_token_id
        dropped = torch.rand(count, generator=draw) < self.config.empty_caption_probability
        ids = torch.where(dropped[:, None], empty, ids)
        with torch.no_grad():
            return self.pipeline.text_encoder(ids.to(self.device.device)).last_hidden_state

    def _latents(self, rows: np.ndarray) -> Tensor:
        """(batch, channels, h, w) sampled from the cached posteriors, scaled."""
        mean, std = torch.from_numpy(self.latents[rows].astype(np.float32)).chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=self.generator)
        return (mean + std * noise) * self.pipeline.vae.config.scaling_factor

    def loss(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """The weighted loss of some pictures, and the plain mean squared error of ε."""
        device, draw = self.device.device, self.generator
        latents, context = self._latents(rows), self._context(rows)
        uniform = (
            torch.randperm(len(rows), generator=draw) + torch.rand(len(rows), generator=draw)
        ) / len(rows)
        timesteps = ((1 - uniform**3) * 1000).long().clamp(0, 999)
        noise = torch.randn(latents.shape, generator=draw)
        signal = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        noisy = noisy.to(device, memory_format=torch.channels_last)
        poses = torch.from_numpy(np.array(self.renders.labels["pose"][rows]))
        poses = (poses.permute(0, 3, 1, 2).float() / 255).to(device)
        steps = timesteps.to(device)
        with self.device.autocast():
            extra = residuals(self.adapter, noisy, steps, context, poses)
            noise_pred = self.pipeline.unet(noisy, steps, context, return_dict=False, **extra)[0]
        error = (noise_pred.float() - noise.to(device)).square().mean((1, 2, 3))
        return (error * self.weights[timesteps].to(device)).mean(), error.detach().mean()

    def train_step(self, position: int, rate: float, step: int) -> float | None:
        """One AdamW step; the loss every tenth."""
        if position >= self.config.early_samples and not self._exported("early").exists():
            self.export("early", position)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, _ = self.loss(self.order.batch(position, self.plan.batch_size))
        loss.backward()
        self.gradients.clip(self.plan.max_gradient_norm)
        self.optimizer.step()
        self.gradients.zero()
        self.average.update()
        return loss.item() if step % 10 == 0 else None

    def state_dict(self) -> dict[str, Any]:
        """Weights, averages and optimiser."""
        return {
            "adapter": self.adapter.state_dict(),
            "average": self.average.values,
            "updates": self.average.updates,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s answer."""
        self.adapter.load_state_dict(state["adapter"])
        for value, saved in zip(self.average.values, state["average"], strict=True):
            value.copy_(saved)
        self.average.updates = state["updates"]
        self.optimizer.load_state_dict(state["optimizer"])

    def _exported(self, which: str) -> Path:
        return self.folder / which / "adapters" / f"{self.config.model}-{KINDS[self.kind]}.yaml"

    def export(self, which: str, samples: int) -> None:
        """Writes the averaged weights with their manifest into the registry ``RUN/which``."""
        self.average.swap()
        try:
            export_adapter(
                self._exported(which), self.kind, self.adapter, self.config.model, samples
            )
        finally:
            self.average.swap()

    def write_sheet(self, path: Path) -> dict[str, float]:
        """Held-out poses and what the averaged weights draw for them."""
        data = self.config.data
        rows = np.arange(data.count - data.validation_count, data.count)
        poses = np.array(self.renders.labels["pose"][rows])
        captions = [self.renders.rows[row]["captions_without_pose"][0] for row in rows]
        self.average.swap()
        self.adapter.eval()
        try:
            steps = self.config.sheet_steps
            draw_sheet(path, self.pipeline, self.adapter, poses, captions, steps)
        finally:
            self.adapter.train()
            self.average.swap()
        return {}


def load_config(path: Path) -> AdaptersConfig:
    """Reads a YAML configuration; unknown fields raise pydantic's ValidationError."""
    return AdaptersConfig.model_validate(yaml.safe_load(path.read_text()))


def load_base(config: AdaptersConfig, device: Device) -> StableDiffusionPipeline:
    """The base model, frozen."""
    location = Catalogue([BUILTIN_DIR]).model(config.model).location
    pipeline = StableDiffusionPipeline.from_pretrained(location, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.requires_grad_(False).eval().to(device.device)
    pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline


def prepare(
    config: AdaptersConfig, pipeline: StableDiffusionPipeline, folder: Path, device: Device
) -> Packed:
    """Renders, encodes and tokenizes what is not there yet; returns the renders."""
    folder.mkdir(parents=True, exist_ok=True)
    data = config.data
    render_packed(
        data.folder, TRAIN[: data.count], config.image_size, labels=["pose"], workers=data.workers
    )
    renders = open_packed(data.folder)
    if not (folder / "captions.npy").exists():
        tokenizer = pipeline.tokenizer
        np.save(
            folder / "captions.npy",
            tokenize_captions(tokenizer, renders, tokenizer.model_max_length),
        )
    if not (folder / "latents.npy").exists():
        with torch.no_grad():
            encode_latents(pipeline.vae, renders.images, folder / "latents.npy", device, Group())
    return renders


def train(kind: Kind, config: AdaptersConfig, folder: Path) -> None:
    """Trains one adapter and exports it; goes on where it was stopped.

    Raises:
        Stopped: a signal asked to stop; the checkpoint is written.
    """
    device = choose_device(config)
    pipeline = load_base(config, device)
    renders = prepare(config, pipeline, folder, device)
    stage = AdapterStage(kind, config, pipeline, renders, folder, device)
    loop = Loop(stage, folder, config.seed)
    loop.run()
    stage.export("final", loop.samples)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (3: stopped by a signal)."""
    parser = argparse.ArgumentParser(prog="python -m demo_model.adapters", description=__doc__)
    parser.add_argument("command", choices=["prepare", *KINDS, "all"])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and results")
    options = parser.parse_args(arguments)
    config = load_config(options.config)
    raise_priority()
    if options.command == "prepare":
        device = choose_device(config)
        prepare(config, load_base(config, device), options.run, device)
        return 0
    try:
        for kind in KINDS if options.command == "all" else (options.command,):
            train(kind, config, options.run)
    except Stopped as stopped:
        print(f"stopped in {stopped}; the same command goes on", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
