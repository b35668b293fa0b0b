"""The catalogue of what is installed: models, readout heads and adapters, by name; torch-free.

A *registry directory* holds ``models/*.yaml``, ``heads/*.yaml`` and ``adapters/*.yaml`` with their
weights beside them. The built-in one ships the demo model; users name more of them in
``READOUT_REGISTRY_DIRS``. Errors, beside `ManifestError`:

    RegistryError
    ├── UnknownModel          no model of that name is installed
    ├── UnknownHead           no head of that name is installed for the model's family
    ├── IncompatibleHead      the head belongs to another base-model family
    ├── UnknownAdapter        no adapter of that name is installed for the model's family
    └── IncompatibleAdapter   the adapter belongs to another base-model family
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from heads_registry.manifest import (
    AdapterManifest,
    HeadManifest,
    ManifestError,
    ModelManifest,
    RegistryError,
)

BUILTIN_DIR = Path(__file__).parent / "builtin"
"""The registry directory that ships with the package: the mannequin demo model and its heads."""

M = TypeVar("M", ModelManifest, HeadManifest, AdapterManifest)
Part = TypeVar("Part", HeadManifest, AdapterManifest)


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
        return _find("head", self._heads, model, name, UnknownHead, IncompatibleHead)

    def adapters_for(self, model: ModelManifest) -> tuple[AdapterManifest, ...]:
        """Every adapter of the model's family."""
        return tuple(adapter for adapter in self.adapters if adapter.base_model == model.family)

    def adapter(self, model: ModelManifest, name: str) -> AdapterManifest:
        """The adapter that `name` (``canny`` or ``family/canny``) means for `model`.

        Raises:
            UnknownAdapter: names the adapters that fit the model.
            IncompatibleAdapter: such an adapter exists, for another family.
        """
        return _find("adapter", self._adapters, model, name, UnknownAdapter, IncompatibleAdapter)


def _find(
    what: str,
    installed: dict[str, Part],
    model: ModelManifest,
    name: str,
    unknown: type[RegistryError],
    incompatible: type[RegistryError],
) -> Part:
    """The part of the model's family, or the error that says why there is none."""
    part_id = name if "/" in name else f"{model.family}/{name}"
    part = installed.get(part_id)
    if part is not None and part.base_model == model.family:
        return part
    parts = [installed[key] for key in sorted(installed)]
    fitting = ", ".join(one.name for one in parts if one.base_model == model.family) or "none"
    bare = part_id.rpartition("/")[2]
    others = [one.base_model for one in parts if one.name == bare]
    if part is not None or others:
        raise incompatible(
            f"{what} {name!r} belongs to the {' and '.join(others)} family, but model "
            f"{model.name!r} is of family {model.family!r}; {what}s that fit: {fitting}"
        )
    raise unknown(
        f"no {what} {name!r} is installed for model {model.name!r}; {what}s that fit: {fitting}"
    )


def _load_all(kind: type[M], directory: Path) -> list[M]:
    return [kind.load(path) for path in sorted(directory.glob("*.yaml"))]
