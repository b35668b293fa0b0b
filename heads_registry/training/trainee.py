"""One head in training: its network, optimizer and moving average; and how it is saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from heads_registry.base_model import BaseModel
from heads_registry.loading import sha256_of
from heads_registry.networks import ReadoutHead
from heads_registry.training.losses import balanced_mse, mse
from heads_registry.training.recipe import HeadRecipe


@dataclass
class Trainee:
    """One head in training."""

    recipe: HeadRecipe
    head: ReadoutHead
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler

    @property
    def trained(self) -> ReadoutHead:
        """The weights to keep: their moving average where there is one."""
        return self.average.module if self.average is not None else self.head

    def loss(self, readout: Tensor, target: Tensor) -> Float[Tensor, ""]:
        """The recipe's loss."""
        if self.recipe.loss == "mse":
            return mse(readout, target)
        return balanced_mse(readout, target, self.recipe.value_range)

    @classmethod
    def create(cls, recipe: HeadRecipe, taps: dict[str, int], model: BaseModel) -> Self:
        """An untrained head for a model's taps (module path → channels), on the model's device."""
        head = ReadoutHead(
            feature_channels=tuple(taps.values()),
            projection_channels=recipe.projection_channels,
            time_embedding_channels=model.unet.time_embedding.linear_2.out_features,
            num_norm_groups=recipe.num_norm_groups,
            output_channels=recipe.output_channels,
            output_scale=recipe.output_scale,
        ).to(model.device)
        average = (
            AveragedModel(head, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
            if recipe.ema_decay
            else None
        )
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, total_steps=recipe.max_steps, pct_start=0.05
        )
        return cls(recipe, head, average, optimizer, schedule)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a stopped training needs to go on."""
        return {
            "head": self.head.state_dict(),
            "average": self.average and self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.head.load_state_dict(state["head"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def save_head(
    directory: Path,
    family: str,
    trainee: Trainee,
    taps: dict[str, int],
    metrics: dict[str, float],
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
    manifest = {
        "name": recipe.name,
        "title": recipe.title,
        "description": recipe.description,
        "kind": recipe.kind,
        "signal": recipe.signal,
        "base_model": family,
        "weights": weights.name,
        "sha256": sha256_of(weights),
        "feature_taps": list(taps),
        "feature_channels": list(taps.values()),
        "projection_channels": recipe.projection_channels,
        "num_norm_groups": recipe.num_norm_groups,
        "time_embedding_channels": trainee.head.time_embedding_channels,
        "output_channels": recipe.output_channels,
        "output_scale": recipe.output_scale,
        "value_range": list(recipe.value_range),
        "target_resampling": recipe.target_resampling,
        "timestep_convention": recipe.timestep_convention,
        "update_scale": recipe.update_scale,
        "licence": recipe.licence,
        "source": "python -m heads_registry.training",
        "recipe_hash": recipe.hash,
        "metrics": metrics,
    }
    path = weights.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    return path
