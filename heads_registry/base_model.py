"""The frozen model that heads read: load, encode, denoise, decode; the one door to diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from jaxtyping import Float
from torch import Tensor

from heads_registry.features import capture_features
from heads_registry.manifest import ModelManifest, RegistryError

Latents = Float[Tensor, "batch channels h w"]
Pixels = Float[Tensor, "batch 3 height width"]


class ModelLoadError(RegistryError):
    """The base model cannot be loaded; says from where and why."""


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of a batch: token embeddings and, for SDXL, the added conditions."""

    prompt_embeds: Float[Tensor, "batch tokens channels"]
    pooled_embeds: Float[Tensor, "batch channels"] | None = None
    time_ids: Float[Tensor, "batch 6"] | None = None

    @property
    def added(self) -> dict[str, Tensor | None] | None:
        """SDXL's added conditions as diffusers takes them; None for SD."""
        if self.pooled_embeds is None:
            return None
        return {"text_embeds": self.pooled_embeds, "time_ids": self.time_ids}

    def __getitem__(self, rows: Sequence[int] | slice) -> Conditioning:
        """The conditioning of some items."""
        index = list(rows) if not isinstance(rows, slice) else rows
        return Conditioning(
            self.prompt_embeds[index],
            None if self.pooled_embeds is None else self.pooled_embeds[index],
            None if self.time_ids is None else self.time_ids[index],
        )

    @staticmethod
    def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
        """The batches of several conditionings, one after the other."""

        def join(tensors: list[Tensor | None]) -> Tensor | None:
            present = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(present) if present else None

        embeds = join([part.prompt_embeds for part in parts])
        assert embeds is not None
        return Conditioning(
            embeds,
            join([part.pooled_embeds for part in parts]),
            join([part.time_ids for part in parts]),
        )


@dataclass(frozen=True)
class Residuals:
    """What adapters add to a U-Net pass; every tensor has all rows of the batch.

    Attributes:
        down: ControlNet's, one for each output of the encoder that the decoder is fed.
        mid: ControlNet's, of the middle block; None without `down`.
        intrablock: T2I-Adapter's, one for each of the first blocks of the encoder.
    """

    down: tuple[Tensor, ...] = ()
    mid: Tensor | None = None
    intrablock: tuple[Tensor, ...] = ()

    @property
    def arguments(self) -> dict[str, object]:
        """As the U-Net's forward takes them; it pops from the list, so that is a new one."""
        arguments: dict[str, object] = {}
        if self.down:
            arguments["down_block_additional_residuals"] = self.down
            arguments["mid_block_additional_residual"] = self.mid
        if self.intrablock:
            arguments["down_intrablock_additional_residuals"] = list(self.intrablock)
        return arguments


class BaseModel:
    """A Stable Diffusion or SDXL pipeline, frozen, with the five things that guidance needs.

    Nothing here assumes a VAE factor of 8, 77 tokens or a particular U-Net size. The VAE and the
    text encoders stay in the pipeline's dtype, except a VAE that asks for float32
    (`force_upcast`, SDXL's) when the rest is in fp16.
    """

    def __init__(self, pipeline: DiffusionPipeline, manifest: ModelManifest | None = None) -> None:
        self.pipeline = pipeline
        self.manifest = manifest
        self.is_xl = isinstance(pipeline, StableDiffusionXLPipeline)
        self.unet = pipeline.unet
        self.vae = pipeline.vae
        for module in pipeline.components.values():
            if isinstance(module, torch.nn.Module):
                module.requires_grad_(False).eval()
        if self.dtype == torch.float16 and self.vae.config.get("force_upcast"):
            self.vae.to(torch.float32)

    @classmethod
    def load(
        cls,
        manifest: ModelManifest,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> BaseModel:
        """Load with `from_pretrained`, from a directory or a hub id; safetensors only.

        Raises:
            ModelLoadError: the files are missing, unreadable or not of that pipeline class.
        """
        kind = (
            StableDiffusionXLPipeline
            if manifest.pipeline == "stable-diffusion-xl"
            else StableDiffusionPipeline
        )
        options = {"safety_checker": None, "requires_safety_checker": False}
        try:
            pipeline = kind.from_pretrained(
                manifest.location,
                revision=manifest.revision,
                variant=manifest.variant,
                dtype=dtype,
                use_safetensors=True,
                **({} if manifest.pipeline == "stable-diffusion-xl" else options),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelLoadError(
                f"model {manifest.name}: cannot load {manifest.location}: {error}"
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(device)
        model = cls(pipeline, manifest)
        # channels_last suits the convolutions of GPUs and of oneDNN alike (PERFORMANCE.md).
        model.unet.to(memory_format=torch.channels_last)
        return model

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """The U-Net's dtype."""
        return self.unet.dtype

    @property
    def latent_dtype(self) -> torch.dtype:
        """Of latents and noise predictions: float32, or float64 for a float64 model."""
        return torch.promote_types(self.unet.dtype, torch.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(
            parameter.numel() * parameter.element_size()
            for module in self.pipeline.components.values()
            if isinstance(module, torch.nn.Module)
            for parameter in module.parameters()
        )

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, in each direction."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, h, w) of the latents of one picture of height × width px."""
        factor = self.vae_scale_factor
        return (self.unet.config.in_channels, height // factor, width // factor)

    def ddim_scheduler(self, num_inference_steps: int) -> DDIMScheduler:
        """DDIM with the model's own betas and spacing, its timesteps set."""
        scheduler = DDIMScheduler.from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(num_inference_steps)
        return scheduler

    @torch.no_grad()
    def encode_prompts(
        self, prompts: Sequence[str], height: int = 0, width: int = 0
    ) -> Conditioning:
        """Text → conditioning; the size is SDXL's micro-conditioning, in px.

        An empty prompt is encoded as it stands, not zeroed: heads are trained on it (section 4.1).
        """
        texts = list(prompts)
        if not self.is_xl:
            embeds, _ = self.pipeline.encode_prompt(
                texts, self.device, 1, do_classifier_free_guidance=False
            )
            return Conditioning(embeds)
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            texts, device=self.device, do_classifier_free_guidance=False
        )
        time_ids = torch.tensor([[height, width, 0, 0, height, width]], device=self.device)
        return Conditioning(
            embeds, pooled, time_ids.to(embeds.dtype).expand(len(texts), -1).contiguous()
        )

    def denoise(
        self,
        latents: Latents,
        timestep: Float[Tensor, ""],
        conditioning: Conditioning,
        residuals: Residuals | None = None,
    ) -> Latents:
        """One U-Net pass: the predicted noise of (batch, c, h, w) latents, in `latent_dtype`."""
        sample = latents.to(self.dtype, memory_format=torch.channels_last)
        output: Tensor = self.unet(
            sample,
            timestep,
            encoder_hidden_states=conditioning.prompt_embeds,
            added_cond_kwargs=conditioning.added,
            return_dict=False,
            **(residuals.arguments if residuals else {}),
        )[0]
        return output.to(self.latent_dtype)

    def capture_features(self, taps: Sequence[str]) -> AbstractContextManager[list[Tensor]]:
        """Features of the passes within the context, see `heads_registry.features`."""
        return capture_features(self.unet, taps)

    def embed_timestep(self, timestep: Float[Tensor, " batch"]) -> Float[Tensor, "batch embedding"]:
        """The U-Net's own embedding of a timestep, before anything is added to it (section 8.5)."""
        projected = self.unet.time_proj(timestep)
        embedding: Tensor = self.unet.time_embedding(projected.to(self.dtype))
        return embedding

    @torch.no_grad()
    def encode(self, pixels: Pixels, generator: torch.Generator | None = None) -> Latents:
        """Pictures in [-1, 1] → scaled latents: the posterior's mean, or a sample of it."""
        posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        latents = posterior.mean if generator is None else posterior.sample(generator)
        return (latents * self.vae.config.scaling_factor).float()

    @torch.no_grad()
    def decode(self, latents: Latents) -> Pixels:
        """Scaled latents → pictures in [-1, 1], float32, clamped."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        return self.vae.decode(scaled, return_dict=False)[0].float().clamp(-1, 1)

    @torch.no_grad()
    def edit(
        self,
        pixels: Pixels,
        prompts: Sequence[str],
        strength: float,
        num_inference_steps: int,
        guidance_scale: float,
        seeds: Sequence[int],
    ) -> Pixels:
        """SDEdit: pictures in [-1, 1], noised to `strength` of the schedule and denoised again.

        diffusers' own image-to-image pipeline on this model's parts, with DDIM; each picture has
        its own noise, from its seed, whatever else is in the batch.
        """
        kind = StableDiffusionXLImg2ImgPipeline if self.is_xl else StableDiffusionImg2ImgPipeline
        # Latents are not pixels: nothing to clip at ±1.
        scheduler = DDIMScheduler.from_config(self.pipeline.scheduler.config, clip_sample=False)
        parts = self.pipeline.components | {"scheduler": scheduler}
        pipeline = kind(**parts, **({} if self.is_xl else {"requires_safety_checker": False}))
        pipeline.set_progress_bar_config(disable=True)
        edited = pipeline(
            prompt=list(prompts),
            negative_prompt=[""] * len(prompts) if guidance_scale > 1 else None,
            image=(pixels / 2 + 0.5).to(self.device, self.vae.dtype),
            strength=strength,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images
        return edited.float().cpu() * 2 - 1


def unet_outline(manifest: ModelManifest) -> UNet2DConditionModel:
    """A model's U-Net without weights, on the meta device: enough to see what heads would read.

    Raises:
        ModelLoadError: its configuration cannot be had.
    """
    try:
        config = UNet2DConditionModel.load_config(
            manifest.location, subfolder="unet", revision=manifest.revision
        )
        with torch.device("meta"):
            return UNet2DConditionModel.from_config(config)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelLoadError(
            f"model {manifest.name}: no U-Net configuration at {manifest.location}: {error}"
        ) from error
