"""Manifests of models, readout heads and adapters, and what can be wrong with one; torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]


class RegistryError(Exception):
    """Base of everything that can be wrong with the registry."""


class ManifestError(RegistryError):
    """A manifest is not valid YAML or breaks its schema."""


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    _path: Path = PrivateAttr()

    @property
    def directory(self) -> Path:
        """Where the manifest lies; relative paths in it start here."""
        return self._path.parent

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read one manifest.

        Raises:
            ManifestError: not YAML, or a field is unknown, missing or out of range.
        """
        try:
            manifest = cls.model_validate(yaml.safe_load(path.read_text()))
        except yaml.YAMLError as error:
            raise ManifestError(f"{path}: not valid YAML: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "(top level)"
            raise ManifestError(f"{path}: {where}: {first['msg']}") from error
        manifest._path = path.resolve()
        return manifest


class _Pretrained(_Manifest):
    """What diffusers' `from_pretrained` loads."""

    source: str = Field(
        description="a directory (relative to this manifest, './…' or absolute) or a hub id"
    )
    revision: str | None = None
    variant: str | None = Field(None, description="file variant on the hub, such as fp16")
    sha256: dict[str, Sha256] = Field(
        default_factory=dict, description="weights file → hash, for what is shipped"
    )

    @property
    def weights_identity(self) -> str:
        """Which weights these are, whatever else the manifest says: for keys of caches."""
        return self.model_dump_json(include={"name", "source", "revision", "variant", "sha256"})

    @property
    def location(self) -> str:
        """What `from_pretrained` is given: an absolute directory, or the hub id as it stands."""
        if self.source.startswith((".", "/")):
            return str((self.directory / self.source).resolve())
        return self.source


class GuidanceDefaults(BaseModel):
    """Defaults that a manifest proposes; request > head manifest > task > model manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    weight: float | None = Field(None, ge=0, le=10, description="rg_weight, section 8.1")
    span: tuple[Fraction, Fraction] | None = Field(
        None, description="rg_ratio, section 8.1: [start, end) as fractions of the steps"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.span is not None and self.span[0] >= self.span[1]:
            raise ValueError("span must be [start, end] with start < end")
        return self


class TaskDefaults(GuidanceDefaults):
    """What a model wants of a task, where table 1 of the paper does not suit it."""

    guidance_scale: float | None = Field(None, ge=1, le=50)
    eta: Fraction | None = None
    form: Literal["one_pass", "two_pass"] | None = None
    branch: Literal["unconditional", "conditional", "both"] | None = None


class HeadManifest(_Manifest):
    """What a readout head is: everything needed to rebuild its network, feed it and judge it."""

    name: Name
    title: str
    description: str = ""
    kind: Literal["spatial", "correspondence", "appearance", "identity"]
    signal: Literal["pose", "depth", "edge", "other"] = Field(
        "other", description="what a spatial head shows; `pose` accepts OpenPose key points"
    )
    base_model: Name = Field(description="base-model family; fine-tuned checkpoints of it count")
    weights: str = Field(description="safetensors file, relative to this manifest")
    sha256: Sha256
    feature_taps: tuple[str, ...] = Field(
        min_length=1, description="module paths in the U-Net whose outputs are the features"
    )
    feature_channels: tuple[int, ...]
    projection_channels: int = Field(gt=0, description="P of figure 12; 384 for SD1.5 and SDXL")
    num_norm_groups: int = Field(32, gt=0)
    time_embedding_channels: int = Field(gt=0)
    output_channels: int | None = Field(
        None, description="of the spatial output head; null: the aggregated map is the readout"
    )
    output_activation: Literal["tanh", "none"] = "tanh"
    output_scale: Literal[1, 2, 4] = Field(
        1, description="readout size ÷ latent size; the paper's heads have 1"
    )
    value_range: tuple[float, float] = Field(
        (-1.0, 1.0), description="readout values that stand for black and white of a control image"
    )
    target_resampling: Literal["area", "bicubic", "nearest"] = Field(
        "area", description="how a control image is brought to the readout's size"
    )
    timestep_convention: Literal["timestep", "reversed", "none"] = Field(
        "timestep",
        description="what the time embedding embeds: the DDIM timestep t, 1000 - t (the authors' "
        "training counts generation steps, REFERENCE 2.4), or nothing",
    )
    update_scale: float | None = Field(
        None, gt=0, description="latent change of one update at weight 1; null: the model's"
    )
    defaults: GuidanceDefaults = GuidanceDefaults()
    licence: str
    source: str = ""
    recipe_hash: str = Field("", description="sha256 of the training recipe")
    metrics: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.feature_taps) != len(self.feature_channels):
            raise ValueError("feature_taps and feature_channels must have the same length")
        if (self.kind == "spatial") != (self.output_channels is not None):
            raise ValueError("output_channels is given for spatial heads and for no others")
        if self.value_range[0] >= self.value_range[1]:
            raise ValueError("value_range must be (low, high) with low < high")
        return self

    @property
    def id(self) -> str:
        """Unique name: ``family/head``."""
        return f"{self.base_model}/{self.name}"

    @property
    def weights_path(self) -> Path:
        """The safetensors file."""
        return self.directory / self.weights


class SamplingDefaults(BaseModel):
    """A model's own sampling defaults, as in the paper's table 1 unless it says otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    num_inference_steps: int = Field(100, ge=1, le=1000)
    guidance_scale: float = Field(7.5, ge=1, le=50)
    eta: Fraction = 0.0
    negative_prompt: str = ""
    weight: float = Field(0.5, ge=0, le=10)
    span: tuple[Fraction, Fraction] = (0.0, 0.5)
    form: Literal["one_pass", "two_pass"] = "two_pass"
    branch: Literal["unconditional", "conditional", "both"] = "unconditional"
    update_rule: Literal["elementwise", "rms", "unnormalized", "timestep_rescaled"] = "elementwise"
    adapter_gradient: Literal["constant", "full"] = "constant"


class ModelManifest(_Pretrained):
    """What a base model is, where it comes from, and the defaults and limits it is served with."""

    name: Name
    title: str
    description: str = ""
    family: Name = Field(description="heads trained on this family fit")
    pipeline: Literal["stable-diffusion", "stable-diffusion-xl"]
    height: int = Field(512, gt=0)
    width: int = Field(512, gt=0)
    size_multiple: int = Field(8, gt=0, description="height and width must be multiples of it, px")
    min_size: int = Field(64, gt=0)
    max_size: int = Field(1024, gt=0)
    max_images: int = Field(8, ge=1, le=64, description="largest num_images of one request")
    max_prompt_chars: int = Field(2000, ge=1)
    cpu_dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="what `auto` means on a CPU; null: bfloat16 where the hardware multiplies it "
        "fast, which small models gain nothing from",
    )
    face_detector: str | None = Field(
        None, description="finds faces for identity without boxes, see worker/faces.py; null: none"
    )
    update_scale: float = Field(
        0.02, gt=0, description="latent change of one update at weight 1 (the paper's 2e-2)"
    )
    defaults: SamplingDefaults = SamplingDefaults()
    tasks: dict[Literal["spatial", "drag", "appearance", "identity"], TaskDefaults] = Field(
        default_factory=dict, description="defaults of single tasks; relative controls' weights too"
    )
    licence: str
    metrics: dict[str, Any] = Field(default_factory=dict)


class AdapterDefaults(BaseModel):
    """How strongly and when an adapter acts where the request does not say."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    scale: float = Field(1.0, ge=0, le=10)
    span: tuple[Fraction, Fraction] = (0.0, 1.0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.span[0] >= self.span[1]:
            raise ValueError("span must be [start, end] with start < end")
        return self


class AdapterManifest(_Pretrained):
    """A ControlNet or a T2I-Adapter: what it is, where it is, and what it takes."""

    name: Name
    title: str
    description: str = ""
    type: Literal["controlnet", "t2i_adapter"]
    base_model: Name = Field(description="base-model family; fine-tuned checkpoints of it count")
    conditioning: Literal["pose", "depth", "edge", "other"] = Field(
        description="what its image shows; `pose` accepts OpenPose key points"
    )
    resampling: Literal["area", "bicubic", "nearest"] = Field(
        "bicubic", description="how an image is brought to the picture's size"
    )
    size_multiple: int = Field(
        1, gt=0, description="height and width must be multiples of it, px, beside the model's"
    )
    max_scale: float = Field(2.0, gt=0, le=10, description="largest `scale` of a request")
    defaults: AdapterDefaults = AdapterDefaults()
    licence: str
    metrics: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.defaults.scale > self.max_scale:
            raise ValueError("defaults.scale must not be above max_scale")
        return self

    @property
    def id(self) -> str:
        """Unique name: ``family/adapter``."""
        return f"{self.base_model}/{self.name}"
