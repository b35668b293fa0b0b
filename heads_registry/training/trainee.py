"""One head in training: its network, optimizer and moving average; and how it is saved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from heads_registry.base_model import BaseModel
from heads_registry.loading import load_head, sha256_of
from heads_registry.manifest import HeadManifest
from heads_registry.networks import ReadoutHead
from heads_registry.training.recipe import HeadRecipe

WARM_UP = 0.05
"""Share of the training in which the learning rate rises."""


def learning_rate_factor(schedule: str, progress: float) -> float:
    """Learning rate ÷ its peak, at a share of the training: 1, or up linearly and down a cosine."""
    if schedule == "constant":
        return 1.0
    if progress < WARM_UP:
        return 0.04 + 0.96 * progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP))))


@dataclass
class Trainee:
    """One head in training; `started_from` is the SHA-256 of the weights it began with, if any."""

    recipe: HeadRecipe
    head: ReadoutHead
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    started_from: str | None = None

    @property
    def trained(self) -> ReadoutHead:
        """The weights to keep: their moving average where there is one."""
        return self.average.module if self.average is not None else self.head

    @classmethod
    def create(
        cls,
        recipe: HeadRecipe,
        taps: dict[str, int],
        model: BaseModel,
        start: HeadManifest | None = None,
    ) -> Self:
        """A head for a model's taps (module path → channels), on the model's device.

        Untrained: its weights depend on the recipe's seed alone, and the global generators stay as
        they were. With `start` it has that head's weights.

        Raises:
            WeightsError: the weights of `start` cannot be used.
            ValueError: they are of other widths than the recipe asks for.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            head = ReadoutHead(
                feature_channels=tuple(taps.values()),
                projection_channels=recipe.projection_channels,
                time_embedding_channels=model.unet.time_embedding.linear_2.out_features,
                num_norm_groups=recipe.num_norm_groups,
                output_channels=recipe.output_channels if recipe.kind == "spatial" else None,
                output_scale=recipe.output_scale,
            ).to(model.device)
        if start is not None:
            try:
                head.load_state_dict(load_head(start).state_dict())
            except RuntimeError as error:
                raise ValueError(
                    f"the installed head {recipe.name!r} is of other widths than its recipe asks "
                    f"for: {str(error).splitlines()[-1].strip()}"
                ) from error
        average = (
            AveragedModel(head, multi_avg_fn=_moving_average(recipe.ema_decay))
            if recipe.ema_decay
            else None
        )
        optimizer = optimizer_class(recipe, model.device)(
            head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        return cls(recipe, head, average, optimizer, start and start.sha256)

    def step(self, progress: float) -> None:
        """Apply the gradients, at the learning rate of that share of the training."""
        factor = learning_rate_factor(self.recipe.schedule, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.head)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a stopped training needs to go on."""
        return {
            "head": self.head.state_dict(),
            "average": self.average and self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.head.load_state_dict(state["head"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average whose decay rises to `decay` as (1 + n) / (10 + n).

    A constant decay of 0.995 would still hold a fifth of the untrained weights after 300 steps.
    """

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        done = float(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + done) / (10 + done)))

    return torch.no_grad()(update)


def optimizer_class(
    recipe: HeadRecipe, device: torch.device
) -> Callable[..., torch.optim.Optimizer]:
    """AdamW, or bitsandbytes' 8-bit one where the recipe asks for it, it is there, and on a GPU."""
    if recipe.optimizer == "adamw8bit" and device.type == "cuda":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            return torch.optim.AdamW
        return AdamW8bit
    return torch.optim.AdamW


def save_head(
    directory: Path,
    family: str,
    trainee: Trainee,
    taps: dict[str, int],
    metrics: dict[str, Any],
) -> Path:
    """Save one head as fp16 safetensors and its manifest; returns the manifest path."""
    recipe = trainee.recipe
    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / f"{family}-{recipe.name}.safetensors"
    state = {
        name: tensor.half().contiguous().cpu()
        for name, tensor in trainee.trained.state_dict().items()
    }
    save_file(state, weights)
    spatial = {
        "signal": recipe.signal,
        "output_channels": recipe.output_channels,
        "output_scale": recipe.output_scale,
        "value_range": list(recipe.value_range),
        "target_resampling": recipe.target_resampling,
    }
    manifest = {
        "name": recipe.name,
        "title": recipe.title,
        "description": recipe.description,
        "kind": recipe.kind,
        "base_model": family,
        "weights": weights.name,
        "sha256": sha256_of(weights),
        "feature_taps": list(taps),
        "feature_channels": list(taps.values()),
        "projection_channels": recipe.projection_channels,
        "num_norm_groups": recipe.num_norm_groups,
        "time_embedding_channels": trainee.head.time_embedding_channels,
        **(spatial if recipe.kind == "spatial" else {}),
        "timestep_convention": recipe.timestep_convention,
        "update_scale": recipe.update_scale,
        "defaults": recipe.defaults.model_dump(mode="json", exclude_none=True),
        "licence": recipe.licence,
        "source": "readout train head",
        "recipe_hash": recipe.hash,
        "metrics": metrics,
    }
    path = weights.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    return path
