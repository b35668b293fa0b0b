"""The configuration of a training run, read from YAML; knows neither tensors nor files of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Frozen; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Strict):
    """Which packed renders are trained on."""

    folder: Path
    count: int = Field(100_000, gt=0)
    """Images, from the first seed of the world's training range on."""
    validation_count: int = Field(256, gt=0)
    latent_count: int = Field(100_000, gt=0)
    """How many of the images are encoded for the U-Net."""
    workers: int = Field(2, ge=1)
    faces: Path | None = None
    """Packed tight crops of faces that the U-Net sees beside the images, always without a caption:
    what the identity head is shown."""
    faces_count: int = Field(20_000, gt=0)


class PlanConfig(Strict):
    """How long a stage trains and how its learning rate runs."""

    samples: int = Field(gt=0)
    """The schedule ends after so many samples or after `minutes`, whatever comes first."""
    minutes: float | None = Field(None, gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(0.03, ge=0, lt=1)
    """Part of the schedule over which the learning rate rises; then it falls as a cosine."""
    final_factor: float = Field(0.01, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)
    checkpoint_minutes: float = Field(4.0, gt=0)
    sheet_minutes: float = Field(5.0, gt=0)


class VaeConfig(Strict):
    """AutoencoderKL; the downsampling factor is 2 ** (levels - 1)."""

    plan: PlanConfig
    channels: tuple[int, ...]
    layers_per_block: int = 1
    norm_num_groups: int = 8
    latent_channels: int = 4
    l2_weight: float = 2.0
    gradient_weight: float = 0.7
    kl_weight: float = 1e-4
    head_weight: float = Field(8.0, ge=0)
    """How much more the pixels of heads count: at 64 pixels a face is 1 % of the picture."""


class TextConfig(Strict):
    """CLIPTextModel and its pre-training."""

    plan: PlanConfig
    width: int = 128
    layers: int = 3
    heads: int = 4
    max_length: int = 32


class UnetConfig(Strict):
    """UNet2DConditionModel of SD1.5's topology: 4 levels of 2 layers, so 12 decoder resnets."""

    plan: PlanConfig
    channels: tuple[int, int, int, int]
    attention: tuple[bool, bool, bool, bool] = (False, True, True, False)
    """Which levels have cross-attention, from the finest on."""
    layers_per_block: int = 2
    head_width: int = 32
    norm_num_groups: int = 16
    text_learning_rate_factor: float = 0.3
    min_snr_gamma: float = 5.0
    head_weight: float = Field(4.0, ge=0)
    """How much more the latents of heads count."""
    empty_caption_probability: float = 0.1
    without_pose_probability: float = 0.2
    """How often a caption without words of the pose is shown."""
    ema_decay: float = 0.999


class RunConfig(Strict):
    """One demo base model from renders to weights."""

    image_size: int
    start: Path | None = None
    """A folder that `export` wrote: its networks, of these widths, are trained on."""
    seed: int = 0
    threads: int = Field(2, ge=1)
    processes: int = Field(1, ge=1)
    """Processes that train autoencoder and U-Net on parts of each batch; on shared cores two of
    one thread are much faster than one of two threads."""
    compile: bool = False
    """torch.compile of the U-Net: about 1.5 times as fast on CPU, minutes to compile."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    data: DataConfig
    vae: VaeConfig
    text: TextConfig
    unet: UnetConfig

    def with_minutes(self, stage: str, minutes: float) -> RunConfig:
        """The same run with another wall-clock plan of one stage.

        Args:
            stage: "vae", "text" or "unet".
        """
        part = getattr(self, stage, None)
        plan = getattr(part, "plan", None)
        if not isinstance(part, Strict) or not isinstance(plan, PlanConfig):
            raise ValueError(f"{stage} has no plan")
        plan = plan.model_copy(update={"minutes": minutes})
        return self.model_copy(update={stage: part.model_copy(update={"plan": plan})})

    @property
    def latent_size(self) -> int:
        """Side of the latents."""
        return self.image_size // 2 ** (len(self.vae.channels) - 1)


class AdapterData(Strict):
    """Packed renders with their poses."""

    folder: Path
    count: int = Field(gt=0)
    validation_count: int = Field(16, multiple_of=8)
    """The last of them, which are not trained on but drawn for the sheets."""
    workers: int = Field(2, ge=1)


class AdaptersConfig(Strict):
    """A ControlNet and a T2I-Adapter of a demo base model, which stays frozen."""

    model: str
    """A model of the built-in registry."""
    image_size: int
    seed: int = 0
    threads: int = Field(1, ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    data: AdapterData
    early_samples: int = Field(gt=0)
    """The early checkpoint is the averaged weights after so many samples."""
    controlnet: PlanConfig
    t2i_adapter: PlanConfig
    embedding_channels: tuple[int, ...]
    """Of ControlNet's conditioning embedding, which halves the control image once a level after the
    first: as often as the autoencoder does."""
    ema_decay: float = 0.998
    empty_caption_probability: float = 0.1
    without_pose_probability: float = 0.5
    """How often the caption leaves the pose to the control image."""
    sheet_steps: int = Field(25, ge=1)
    weight_limit: float = 5.0
    """Of the noise prediction's error: min(1 / ᾱ, limit), so that structure counts."""


def load_config(path: str | Path) -> RunConfig:
    """Reads a YAML configuration; unknown fields raise pydantic's ValidationError."""
    return RunConfig.model_validate(yaml.safe_load(Path(path).read_text()))
