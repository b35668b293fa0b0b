"""What a batch begins with: noise, or pictures noised to a step; and what inpainting keeps of them.

The start and the replacement are those of diffusers' image-to-image and inpainting pipelines, for
U-Nets that are not told the mask (SDEdit, Meng et al. 2022; the replacement, Lugmayr et al. 2022,
eq. 8). Of a reference its own trajectory is kept, which ends in what it shows; nothing of it is
noised anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from heads_registry.base_model import Latents
from worker.plan import SampleItem
from worker.schedule import DDIMSchedule


class Start:
    """The first latents of a batch.

    Args:
        items: pictures to make.
        noise: (items, channels, h, w), drawn.
        schedule: the whole one.
        first_step: the first of its steps that is run.
    """

    def __init__(
        self, items: Sequence[SampleItem], noise: Latents, schedule: DDIMSchedule, first_step: int
    ) -> None:
        self._noise, self._schedule = noise, schedule
        self._clean = torch.zeros_like(noise)
        self._repaint: Bool[Tensor, "items 1 h w"] | None = None
        self.latents = noise.clone()
        everywhere = torch.ones(1, *noise.shape[2:], dtype=torch.bool, device=noise.device)
        if any(item.repaint is not None for item in items):
            self._repaint = torch.stack([
                everywhere if item.repaint is None else item.repaint.to(noise.device)
                for item in items
            ])  # fmt: skip
        for row, item in enumerate(items):
            if item.start is not None:
                self.latents[row] = item.start.to(noise)
            if item.init is None:
                continue
            self._clean[row] = item.init.to(noise)
            if item.repaint is None or first_step > 0:
                self.latents[row] = self._noised(first_step)[row]
        twins = {
            row: item.twin
            for row, item in enumerate(items)
            if item.repaint is not None and item.init is None and item.twin is not None
        }
        here = {id(twin): twin for twin in twins.values()}  # frames of an animation share one
        here = {key: twin.to(noise) for key, twin in here.items()}
        self._twins = {row: here[id(twin)] for row, twin in twins.items()}
        for row, twin in self._twins.items():
            self.latents[row] = torch.where(self._repaint[row], self.latents[row], twin[first_step])

    def _noised(self, step_index: int) -> Latents:
        """The clean latents at the noise level that enters a step: √ᾱ x₀ + √(1-ᾱ) z."""
        alpha = self._schedule.alpha[step_index]
        return alpha.sqrt() * self._clean + (1 - alpha).sqrt() * self._noise

    def keep(self, latents: Latents, step_index: int) -> Latents:
        """Latents that step `step_index` led to, outside each mask those of what is kept."""
        if self._repaint is None:
            return latents
        state = step_index + 1
        kept = self._clean.clone() if state == len(self._schedule) else self._noised(state)
        for row, twin in self._twins.items():
            kept[row] = twin[state]
        return torch.where(self._repaint, latents, kept)

    def within(self, update: Latents) -> Latents:
        """An update of the latents that moves nothing outside the masks."""
        return update if self._repaint is None else update * self._repaint
