"""Recipes: how a head is trained, as validated YAML; their hash goes into the head's manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from heads_registry.manifest import Fraction, GuidanceDefaults, ManifestError, Name

Kind = Literal["spatial", "correspondence", "appearance", "identity"]


class NegativesRecipe(BaseModel):
    """How hard negatives are made: the anchor, noised and denoised by the base model (SDEdit)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strength: tuple[float, ...] = Field(
        (0.5, 0.6, 0.7, 0.8),
        min_length=1,
        description="share of the schedule that is noised and denoised again; one is drawn for "
        "each negative",
    )
    num_inference_steps: int = Field(50, ge=1, le=1000)
    guidance_scale: float = Field(7.5, ge=1, le=50)
    caption: Literal["own", "other", "none"] = Field(
        "own", description="the prompt: the picture's caption, another picture's, or empty"
    )
    per_group: int = Field(
        2, ge=1, description="anchors a video, or a person, that have a negative; spread evenly"
    )
    others: Fraction = Field(
        0.0,
        description="share of the loss whose negatives are no edits, but pictures of other videos, "
        "or of other people",
    )
    other_groups: int = Field(
        1,
        ge=1,
        description="how many other videos or people an example has, where `others` > 0: those of "
        "the same look first, where the data say who has it",
    )
    group_pictures: int = Field(
        2, ge=2, description="pictures of each video or person in an example, where `others` > 0"
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="of a softmax over all pictures of an example, edit included, in the place of "
        "the hinge of all triplets of different groups, where `others` > 0; null: the hinge",
    )

    @model_validator(mode="after")
    def _strengths(self) -> Self:
        if not all(0 < strength <= 1 for strength in self.strength):
            raise ValueError("strength must lie in (0, 1]")
        return self


class HeadRecipe(BaseModel):
    """How a head is trained (section 4); heads differ by data and loss only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    title: str
    description: str = ""
    kind: Kind
    signal: Literal["pose", "depth", "edge", "other"] = "other"
    label: str | None = Field(
        None, description="spatial: key of the label image in the data's metadata.jsonl"
    )
    loss: Literal["mse", "balanced_mse", "element_balanced_mse"] | None = Field(
        None,
        description="spatial; balanced: null and non-null regions weigh equally (4.2); "
        "element_balanced: as the authors' code does it, channel by channel",
    )
    value_range: tuple[float, float] = (-1.0, 1.0)
    target_resampling: Literal["area", "bicubic", "nearest"] = "area"
    output_channels: int = Field(3, gt=0, description="spatial")
    output_scale: Literal[1, 2, 4] = 1
    points: int = Field(128, gt=0, description="correspondence: points of a pair, at most")
    temperature: float = Field(0.07, gt=0, description="correspondence: of the softmax")
    margin: float = Field(0.5, gt=0, description="appearance and identity: of the hinge")
    negatives: NegativesRecipe = NegativesRecipe()
    timestep_convention: Literal["timestep", "reversed", "none"] = "timestep"
    timesteps: tuple[Fraction, Fraction] = Field(
        (0.0, 1.0),
        description="fractions of the schedule, 0 clean and 1 noise, between which pictures are "
        "noised in training; guidance's span runs the other way, from the first step, all noise",
    )
    projection_channels: int = Field(384, gt=0)
    num_norm_groups: int = Field(32, gt=0)
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="adamw8bit: bitsandbytes', where it is installed, else adamw"
    )
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="cosine: a short warm-up, then down to 0 at the end"
    )
    max_steps: int = Field(5000, gt=0)
    batch_size: int = Field(
        8, gt=0, description="images, pairs or examples with negatives of a step"
    )
    accumulation_steps: int = Field(1, gt=0, description="parts that a step is computed in")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="0: no moving average of the weights")
    seed: int = 0
    update_scale: float | None = None
    defaults: GuidanceDefaults = GuidanceDefaults()
    licence: str = "Apache-2.0"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == "spatial") != (self.label is not None and self.loss is not None):
            raise ValueError("label and loss are given for spatial heads and for no others")
        if self.kind != "spatial" and self.output_scale != 1:
            raise ValueError("output_scale is of spatial heads")
        if self.timesteps[0] >= self.timesteps[1]:
            raise ValueError("timesteps must rise: [from, to] with 0 ≤ from < to ≤ 1")
        if self.batch_size % self.accumulation_steps:
            raise ValueError("batch_size must be a multiple of accumulation_steps")
        if self.projection_channels % 4 or self.projection_channels // 4 % self.num_norm_groups:
            raise ValueError("projection_channels / 4 must be a multiple of num_norm_groups")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a recipe.

        Raises:
            ManifestError: no such file, not YAML, or a field is unknown, missing or out of range.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text()))
        except OSError as error:
            raise ManifestError(f"{path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ManifestError(f"{path}: not valid YAML: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "recipe"
            raise ManifestError(f"{path}: {where}: {first['msg']}") from error

    @property
    def hash(self) -> str:
        """SHA-256 of the recipe's canonical JSON, of what differs from the defaults.

        So that a new field with a default leaves the hashes of old recipes as they are.
        """
        text = self.model_dump_json(exclude_defaults=True)
        return hashlib.sha256(text.encode()).hexdigest()
