"""DDIM's coefficients as tensors on the device, and its step; the host never waits for them."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float
from torch import Tensor

from heads_registry.base_model import Latents


class DDIMSchedule:
    """The timesteps of one run and, for each, what DDIM needs (Song et al. 2021, equations 12, 16).

    Args:
        scheduler: diffusers' DDIMScheduler with its timesteps set; betas and spacing are its.
        eta: stochasticity, 0 deterministic, 1 as DDPM.
        device: where the latents are.
    """

    def __init__(self, scheduler: DDIMScheduler, eta: float, device: torch.device) -> None:
        last = scheduler.config.num_train_timesteps - 1
        timesteps = scheduler.timesteps.long().cpu().clamp(max=last)  # 1000 steps would reach 1000
        step = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        previous = timesteps - step
        alphas = scheduler.alphas_cumprod.double()
        alpha = alphas[timesteps]
        alpha_previous = torch.where(
            previous >= 0, alphas[previous.clamp(min=0)], scheduler.final_alpha_cumprod.double()
        )
        variance = (1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous)
        sigma = eta * variance.clamp(min=0).sqrt()
        direction = (1 - alpha_previous - sigma**2).clamp(min=0).sqrt()

        self.prediction_type: str = scheduler.config.prediction_type
        self.num_train_timesteps: int = scheduler.config.num_train_timesteps
        self.timesteps = timesteps.float().to(device)
        self.alpha = alpha.float().to(device)
        self.alpha_previous = alpha_previous.float().to(device)
        self.sigma = sigma.float().to(device)
        self.direction = direction.float().to(device)
        self.is_stochastic = eta > 0

    def __len__(self) -> int:
        return len(self.timesteps)

    def noise_pred(self, model_output: Latents, latents: Latents, step_index: int) -> Latents:
        """ε from the model's output, whatever it predicts (ε, or v of Salimans & Ho 2022)."""
        return self._noise_pred(model_output, latents, self.alpha[step_index])

    def _noise_pred(self, model_output: Latents, latents: Latents, alpha: Tensor) -> Latents:
        if self.prediction_type == "v_prediction":
            return alpha.sqrt() * model_output + (1 - alpha).sqrt() * latents
        return model_output

    def pred_original_sample(
        self, latents: Latents, noise_pred: Latents, step_index: int
    ) -> Latents:
        """x̂₀ = (x_t - √(1-ᾱ) ε) / √ᾱ."""
        alpha = self.alpha[step_index]
        return (latents - (1 - alpha).sqrt() * noise_pred) / alpha.sqrt()

    def step(
        self,
        latents: Latents,
        noise_pred: Latents,
        step_index: int,
        variance_noise: Float[Tensor, "batch channels h w"] | None,
    ) -> Latents:
        """x_{t-1} = √ᾱ' x̂₀ + √(1-ᾱ'-σ²) ε + σ z."""
        original = self.pred_original_sample(latents, noise_pred, step_index)
        latents = (
            self.alpha_previous[step_index].sqrt() * original
            + self.direction[step_index] * noise_pred
        )
        if variance_noise is not None:
            latents = latents + self.sigma[step_index] * variance_noise
        return latents

    def inverse_step(self, latents: Latents, model_output: Latents, step_index: int) -> Latents:
        """x_t of x_{t-1}: what `step` without noise would have come from, were ε the same.

        Args:
            latents: x_{t-1}, of the less noisy end of step `step_index`.
            model_output: the model's, for them.
            step_index: of the step that is undone.
        """
        here, there = self.alpha_previous[step_index], self.alpha[step_index]
        noise_pred = self._noise_pred(model_output, latents, here)
        original = (latents - (1 - here).sqrt() * noise_pred) / here.sqrt()
        return there.sqrt() * original + (1 - there).sqrt() * noise_pred
