"""Manifests of models, readout heads and adapters, and the catalogue of them; torch-free.

A *registry directory* holds ``models/*.yaml``, ``heads/*.yaml`` and ``adapters/*.yaml`` with their
weights beside them. The built-in one ships the demo model; users name more of them in
``READOUT_REGISTRY_DIRS``. Errors:

    RegistryError
    ├── ManifestError         a manifest is not valid YAML or breaks its schema; says where
    ├── UnknownModel          no model of that name is installed
    ├── UnknownHead           no head of that name is installed for the model's family
    ├── IncompatibleHead      the head belongs to another base-model family
    ├── UnknownAdapter        no adapter of that name is installed for the model's family
    └── IncompatibleAdapter   the adapter belongs to another base-model family
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

BUILTIN_DIR = Path(__file__).parent / "builtin"
"""The registry directory that ships with the package: the mannequin demo model and its heads."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]


class RegistryError(Exception):
    """Base of everything that can be wrong with the registry."""


class ManifestError(RegistryError):
    """A manifest is not valid YAML or breaks its schema."""


class UnknownModel(RegistryError):
    """No model of that name is installed."""


class UnknownHead(RegistryError):
    """No head of that name is installed for the model's family."""


class IncompatibleHead(RegistryError):
    """The head belongs to another base-model family than the model asked for."""


class UnknownAdapter(RegistryError):
    """No adapter of that name is installed for the model's family."""


class IncompatibleAdapter(RegistryError):
    """The adapter belongs to another base-model family than the model asked for."""


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


M = TypeVar("M", ModelManifest, HeadManifest, AdapterManifest)
Part = TypeVar("Part", HeadManifest, AdapterManifest)


class Catalogue:
    """Every model, head and adapter in a list of registry directories; later ones win by name."""

    def __init__(self, directories: Iterable[Path] = (BUILTIN_DIR,)) -> None:
        """Read all manifests.

        Raises:
            ManifestError: one of them is broken, or a directory does not exist.
        """
        self.models: dict[str, ModelManifest] = {}
        self._heads: dict[str, HeadManifest] = {}
        self._adapters: dict[str, AdapterManifest] = {}
        for directory in directories:
            if not directory.is_dir():
                raise ManifestError(f"{directory}: no such registry directory")
            for model in _load_all(ModelManifest, directory / "models"):
                self.models[model.name] = model
            for head in _load_all(HeadManifest, directory / "heads"):
                self._heads[head.id] = head
            for adapter in _load_all(AdapterManifest, directory / "adapters"):
                self._adapters[adapter.id] = adapter

    @property
    def adapters(self) -> tuple[AdapterManifest, ...]:
        """All adapters, by id."""
        return tuple(self._adapters[key] for key in sorted(self._adapters))

    @property
    def heads(self) -> tuple[HeadManifest, ...]:
        """All heads, by id."""
        return tuple(self._heads[key] for key in sorted(self._heads))

    def model(self, name: str) -> ModelManifest:
        """The model of that name.

        Raises:
            UnknownModel: names what is installed.
        """
        if name not in self.models:
            installed = ", ".join(sorted(self.models)) or "none"
            raise UnknownModel(f"no model {name!r} is installed; installed: {installed}")
        return self.models[name]

    def heads_for(self, model: ModelManifest) -> tuple[HeadManifest, ...]:
        """Every head of the model's family."""
        return tuple(head for head in self.heads if head.base_model == model.family)

    def head(self, model: ModelManifest, name: str) -> HeadManifest:
        """The head that `name` (``pose`` or ``family/pose``) means for `model`.

        Raises:
            UnknownHead: names the heads that fit the model.
            IncompatibleHead: such a head exists, for another family.
        """
        head, told, other = _find("head", self._heads, model, name)
        if head is not None:
            return head
        raise IncompatibleHead(told) if other else UnknownHead(told)

    def adapters_for(self, model: ModelManifest) -> tuple[AdapterManifest, ...]:
        """Every adapter of the model's family."""
        return tuple(adapter for adapter in self.adapters if adapter.base_model == model.family)

    def adapter(self, model: ModelManifest, name: str) -> AdapterManifest:
        """The adapter that `name` (``canny`` or ``family/canny``) means for `model`.

        Raises:
            UnknownAdapter: names the adapters that fit the model.
            IncompatibleAdapter: such an adapter exists, for another family.
        """
        adapter, told, other = _find("adapter", self._adapters, model, name)
        if adapter is not None:
            return adapter
        raise IncompatibleAdapter(told) if other else UnknownAdapter(told)


def _find(
    what: str, installed: dict[str, Part], model: ModelManifest, name: str
) -> tuple[Part | None, str, bool]:
    """The part of the model's family; or why there is none, and whether another family has it."""
    part_id = name if "/" in name else f"{model.family}/{name}"
    part = installed.get(part_id)
    if part is not None and part.base_model == model.family:
        return part, "", False
    parts = [installed[key] for key in sorted(installed)]
    fitting = ", ".join(one.name for one in parts if one.base_model == model.family) or "none"
    bare = part_id.rpartition("/")[2]
    others = [one.base_model for one in parts if one.name == bare]
    if part is not None or others:
        told = (
            f"{what} {name!r} belongs to the {' and '.join(others)} family, but model "
            f"{model.name!r} is of family {model.family!r}; {what}s that fit: {fitting}"
        )
        return None, told, True
    told = f"no {what} {name!r} is installed for model {model.name!r}; {what}s that fit: {fitting}"
    return None, told, False


def _load_all(kind: type[M], directory: Path) -> list[M]:
    return [kind.load(path) for path in sorted(directory.glob("*.yaml"))]
