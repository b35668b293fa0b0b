"""Recipes: how a head is trained, as validated YAML; their hash goes into the head's manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heads_registry.manifest import ManifestError, Name


class HeadRecipe(BaseModel):
    """A spatial head's recipe (section 4.2); heads differ by data and loss only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    title: str
    description: str = ""
    kind: Literal["spatial"]
    signal: Literal["pose", "depth", "edge", "other"]
    label: str = Field(description="key of the label image in the data's metadata.jsonl")
    loss: Literal["mse", "balanced_mse"] = Field(
        description="balanced: null and non-null regions weigh equally (section 4.2)"
    )
    value_range: tuple[float, float] = (-1.0, 1.0)
    target_resampling: Literal["area", "bicubic", "nearest"] = "area"
    timestep_convention: Literal["timestep", "none"] = "timestep"
    projection_channels: int = Field(384, gt=0)
    num_norm_groups: int = Field(32, gt=0)
    output_channels: int = Field(3, gt=0)
    output_scale: Literal[1, 2, 4] = 1
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_steps: int = Field(5000, gt=0)
    batch_size: int = Field(8, gt=0)
    ema_decay: float = Field(0.0, ge=0, lt=1, description="0: no moving average of the weights")
    seed: int = 0
    update_scale: float | None = None
    licence: str = "Apache-2.0"

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a recipe.

        Raises:
            ManifestError: not YAML, or a field is unknown, missing or out of range.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text()))
        except yaml.YAMLError as error:
            raise ManifestError(f"{path}: not valid YAML: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ManifestError(f"{path}: {where}: {first['msg']}") from error

    @property
    def hash(self) -> str:
        """SHA-256 of the recipe's canonical JSON."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
