"""The training loop: one pass of the frozen U-Net feeds every head that is being trained.

Section 3.2 and 4.2: latents of labelled images are noised to random timesteps, the U-Net sees
them with the empty prompt, and each head learns to say the label from the features.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from heads_registry.base_model import BaseModel, Conditioning, Latents
from heads_registry.features import decoder_taps
from heads_registry.targets import label_targets
from heads_registry.training.data import LabelledImages, Pictures
from heads_registry.training.recipe import HeadRecipe
from heads_registry.training.trainee import Trainee, save_head

METRIC_FRACTIONS = tuple(round(tenth / 10, 1) for tenth in range(1, 10))
"""Fractions of the schedule at which held-out readouts are measured."""


class HeadTrainer:
    """Trains spatial heads of several recipes together on the same images.

    Args:
        model: the frozen base model.
        recipes: of one batch size, step count and seed, since they share the loop.
        data: images and labels, in memory.
        run: directory of the checkpoint; a run that was stopped goes on from it.
    """

    def __init__(
        self,
        model: BaseModel,
        recipes: Sequence[HeadRecipe],
        data: LabelledImages,
        run: Path,
        validation: int = 256,
    ) -> None:
        shared = {(recipe.batch_size, recipe.max_steps, recipe.seed) for recipe in recipes}
        if len(shared) != 1:
            raise ValueError("heads trained together need one batch_size, max_steps and seed")
        self.model, self.run_directory = model, run
        ((self.batch_size, self.max_steps, seed),) = shared
        train, held_out = data.split(min(validation, len(data) // 5 or 1))
        self.train_labels, self.validation_labels = train.labels, held_out.labels
        self.latents = encode_images(model, train.images)
        self.validation_latents = encode_images(model, held_out.images)
        self.empty_prompt = model.encode_prompts([""], train.images.shape[2], train.images.shape[3])
        scheduler = model.ddim_scheduler(10)
        self.alphas = scheduler.alphas_cumprod.to(model.device)
        self.taps = decoder_taps(model.unet)
        self.generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.trainees = [Trainee.create(recipe, self.taps, model) for recipe in recipes]
        self.step = 0
        self._resume()

    def train(self, checkpoint_every_s: float = 120.0) -> None:
        """Run to the recipes' max_steps, checkpointing on the way."""
        saved = time.monotonic()
        bar = tqdm(initial=self.step, total=self.max_steps, desc="heads", mininterval=5)
        while self.step < self.max_steps:
            losses = self._train_step()
            self.step += 1
            bar.update()
            if self.step % 50 == 0:
                bar.set_postfix(
                    {name: f"{float(loss):.4f}" for name, loss in losses.items()}, refresh=False
                )
            if time.monotonic() - saved > checkpoint_every_s:
                self._checkpoint()
                saved = time.monotonic()
        bar.close()
        self._checkpoint()

    def _train_step(self) -> dict[str, Tensor]:
        device = self.model.device
        rows = torch.randint(len(self.latents), (self.batch_size,), generator=self.generator)
        timesteps = torch.randint(
            1, len(self.alphas), (self.batch_size,), generator=self.generator
        ).to(device)
        noise = torch.randn(self.batch_size, *self.latents.shape[1:], generator=self.generator).to(
            device
        )
        features, size = self._features(self.latents[rows].to(device), noise, timesteps)
        losses = {}
        for trainee in self.trainees:
            readout = trainee.head(features, self._embedding(trainee, timesteps), size)
            target = self._targets(trainee, self.train_labels[trainee.recipe.label][rows], size)
            loss = trainee.loss(readout, target)
            trainee.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            trainee.optimizer.step()
            trainee.schedule.step()
            if trainee.average is not None:
                trainee.average.update_parameters(trainee.head)
            losses[trainee.recipe.name] = loss.detach()
        return losses

    @torch.no_grad()
    def _features(
        self, latents: Latents, noise: Latents, timesteps: Float[Tensor, " batch"]
    ) -> tuple[list[Tensor], tuple[int, int]]:
        """Features of the noised latents under the empty prompt, float32."""
        alpha = self.alphas[timesteps][:, None, None, None]
        noised = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        conditioning: Conditioning = self.empty_prompt[[0] * len(latents)]
        with self.model.capture_features(tuple(self.taps)) as features:
            self.model.denoise(noised, timesteps, conditioning)
        return [feature.float() for feature in features], tuple(latents.shape[-2:])

    @torch.no_grad()
    def _embedding(self, trainee: Trainee, timesteps: Tensor) -> Tensor | None:
        if trainee.recipe.timestep_convention == "none":
            return None
        return self.model.embed_timestep(timesteps.float()).float()

    def _targets(self, trainee: Trainee, labels: Pictures, size: tuple[int, int]) -> Tensor:
        recipe = trainee.recipe
        scaled = (size[0] * recipe.output_scale, size[1] * recipe.output_scale)
        return label_targets(
            labels.to(self.model.device), scaled, recipe.value_range, recipe.target_resampling
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, dict[str, float]]:
        """Root mean squared error of held-out readouts by fraction of the schedule.

        In units of the value range (0 black, 1 white), with `baseline`, the error of always
        saying the mean label of the training images.
        """
        result: dict[str, dict[str, float]] = {trainee.recipe.name: {} for trainee in self.trainees}
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(self.validation_latents.shape, generator=generator)
        for fraction in METRIC_FRACTIONS:
            sums = {trainee.recipe.name: 0.0 for trainee in self.trainees}
            for start in range(0, len(noise), 32):
                part = slice(start, start + 32)
                latents = self.validation_latents[part].to(self.model.device)
                timesteps = torch.full(
                    (len(latents),), round(fraction * len(self.alphas)), device=latents.device
                )
                features, size = self._features(latents, noise[part].to(latents), timesteps)
                for trainee in self.trainees:
                    labels = self.validation_labels[trainee.recipe.label][part]
                    target = self._targets(trainee, labels, size)
                    readout = trainee.trained(features, self._embedding(trainee, timesteps), size)
                    error = (readout - target).square().mean(dim=(1, 2, 3))
                    sums[trainee.recipe.name] += float(error.sum())
            for trainee in self.trainees:
                low, high = trainee.recipe.value_range
                mean = sums[trainee.recipe.name] / len(noise)
                result[trainee.recipe.name][f"rmse_t{fraction}"] = mean**0.5 / (high - low)
        for trainee in self.trainees:
            result[trainee.recipe.name]["rmse_baseline"] = self._baseline(trainee)
        return {
            name: {key: round(value, 4) for key, value in metrics.items()}
            for name, metrics in result.items()
        }

    def _baseline(self, trainee: Trainee) -> float:
        h, w = self.latents.shape[-2:]
        size = (h, w)
        mean = self._targets(trainee, self.train_labels[trainee.recipe.label][:2000], size).mean(0)
        target = self._targets(trainee, self.validation_labels[trainee.recipe.label], size)
        low, high = trainee.recipe.value_range
        return float((target - mean).square().mean().sqrt()) / (high - low)

    def save(self, directory: Path, family: str, metrics: dict[str, dict[str, float]]) -> None:
        """Write fp16 safetensors and manifests that the service serves at once."""
        for trainee in self.trainees:
            save_head(directory, family, trainee, self.taps, metrics[trainee.recipe.name])

    def _checkpoint(self) -> None:
        self.run_directory.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "generator": self.generator.get_state(),
            "recipes": [trainee.recipe.hash for trainee in self.trainees],
            "trainees": [trainee.state_dict() for trainee in self.trainees],
        }
        partial = self.run_directory / "heads.pt.partial"
        torch.save(state, partial)
        partial.replace(self.run_directory / "heads.pt")

    def _resume(self) -> None:
        path = self.run_directory / "heads.pt"
        if not path.is_file():
            return
        state = torch.load(path, map_location=self.model.device, weights_only=True)
        if state["recipes"] != [trainee.recipe.hash for trainee in self.trainees]:
            raise ValueError(f"{path} is of other recipes; choose another run directory")
        self.step = state["step"]
        self.generator.set_state(state["generator"].cpu())
        for trainee, saved in zip(self.trainees, state["trainees"], strict=True):
            trainee.load_state_dict(saved)


def encode_images(model: BaseModel, images: Pictures, batch_size: int = 32) -> Latents:
    """Latents of all images, once, on the CPU: the posterior's mean."""
    parts = [
        model.encode(images[start : start + batch_size].float() / 127.5 - 1).cpu()
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts)
