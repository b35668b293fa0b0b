"""The frozen side of training: latents cached once, noised, and read by the U-Net without grad."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from heads_registry.base_model import BaseModel, Latents
from heads_registry.features import decoder_taps
from heads_registry.networks import Feature, TimeEmbedding
from heads_registry.training.data import Pictures
from heads_registry.training.recipe import HeadRecipe


class FrozenFeatures:
    """Features of noised pictures under the empty prompt (section 4.1), whose text is encoded once.

    Args:
        model: the frozen base model.
        width, height: of the pictures, px; SDXL is told.
    """

    def __init__(self, model: BaseModel, width: int, height: int) -> None:
        self.model = model
        self.taps = decoder_taps(model.unet)
        self.empty_prompt = model.encode_prompts([""], height, width)
        self.alphas = model.ddim_scheduler(10).alphas_cumprod.to(model.device)

    @property
    def num_timesteps(self) -> int:
        """Of the model's training schedule, 1000."""
        return len(self.alphas)

    def add_noise(
        self, latents: Latents, noise: Latents, timesteps: Int[Tensor, " batch"]
    ) -> Latents:
        """√ᾱ latents + √(1-ᾱ) noise, at the timestep of each."""
        alpha = self.alphas[timesteps][:, None, None, None]
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    @torch.no_grad()
    def features(self, noised: Latents, timesteps: Int[Tensor, " batch"]) -> list[Feature]:
        """What the taps say in one pass, float32, each at its native size."""
        conditioning = self.empty_prompt[[0] * len(noised)]
        with self.model.capture_features(tuple(self.taps)) as features:
            self.model.denoise(noised, timesteps, conditioning)
        return [feature.float() for feature in features]

    @torch.no_grad()
    def embedding(self, convention: str, timesteps: Int[Tensor, " batch"]) -> TimeEmbedding | None:
        """The U-Net's embedding of what a head of that convention is told (docs/heads.md)."""
        if convention == "none":
            return None
        told = self.num_timesteps - timesteps if convention == "reversed" else timesteps
        return self.model.embed_timestep(told.float()).float()

    def readout(
        self,
        head: torch.nn.Module,
        recipe: HeadRecipe,
        features: list[Feature],
        timesteps: Int[Tensor, " batch"],
        size: tuple[int, int],
    ) -> Float[Tensor, "batch channels height width"]:
        """What a head says."""
        readout: Tensor = head(
            features, self.embedding(recipe.timestep_convention, timesteps), size
        )
        return readout.float()


def cached_latents(
    model: BaseModel, images: Pictures, cache: Path | None = None, batch_size: int = 32
) -> Latents:
    """Latents of all pictures, on the CPU: the posterior's mean; read from `cache` if there.

    The cache file is named after the pictures and the model, so it cannot be of others.
    """
    path = cache / f"latents-{_fingerprint(model, images)}.safetensors" if cache else None
    if path and path.is_file():
        return load_file(path)["latents"]
    latents = torch.cat(
        [
            model.encode(images[start : start + batch_size].float() / 127.5 - 1).cpu()
            for start in range(0, len(images), batch_size)
        ]
    )
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({"latents": latents}, partial)
        partial.replace(path)
    return latents


def _fingerprint(model: BaseModel, images: Pictures) -> str:
    digest = hashlib.sha256(model.manifest.weights_identity.encode() if model.manifest else b"")
    digest.update(f"{model.vae.dtype} {tuple(images.shape)}".encode())
    for start in range(0, len(images), 256):
        digest.update(images[start : start + 256].numpy().tobytes())
    return digest.hexdigest()[:16]
