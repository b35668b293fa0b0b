"""The cache of loaded base models and readout heads: least recently used goes first, by bytes."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from heads_registry.base_model import BaseModel
from heads_registry.loading import check_fit, load_head
from heads_registry.manifest import Catalogue, HeadManifest
from heads_registry.networks import ReadoutHead
from worker.device import resolve_device, resolve_dtype
from worker.faces import FaceDetector, load_detector
from worker.reference_cache import ReferenceCache

__all__ = ["LoadedHead", "ModelCache", "resolve_device", "resolve_dtype"]

LoadFaces = Callable[[str], FaceDetector]
"""A model's own detector by name, "" where it has none → the one to use."""
DEFAULT_REFERENCE_BYTES = 2**30
"""Memory for reference trajectories where no cache is given."""


@dataclass(frozen=True)
class LoadedHead:
    """A head ready to use, with its manifest."""

    manifest: HeadManifest
    network: ReadoutHead


class ModelCache:
    """Loads models and heads once and keeps them while they fit into `budget_bytes`.

    A model takes its heads with it when it goes. The model in use is never dropped, even where it
    alone is larger than the budget.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        budget_bytes: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        references: ReferenceCache | None = None,
        load_faces: LoadFaces = load_detector,
    ) -> None:
        self.references = references or ReferenceCache(DEFAULT_REFERENCE_BYTES)
        self.catalogue = catalogue
        self.budget_bytes = budget_bytes
        self.device = torch.device(device)
        self.dtype = dtype
        self._models: OrderedDict[str, BaseModel] = OrderedDict()
        self._heads: dict[tuple[str, str], LoadedHead] = {}
        self._load_faces = load_faces
        self._faces: dict[str, FaceDetector] = {}

    def model(self, name: str) -> BaseModel:
        """The model of that name, loaded or from the cache.

        Raises:
            UnknownModel: it is not in the catalogue.
            ModelLoadError: its files cannot be loaded.
        """
        if name not in self._models:
            self._models[name] = BaseModel.load(self.catalogue.model(name), self.device, self.dtype)
        self._models.move_to_end(name)
        self._drop_oldest()
        return self._models[name]

    def head(self, model_name: str, head_name: str) -> LoadedHead:
        """A head that fits the model, loaded or from the cache.

        Raises:
            UnknownHead, IncompatibleHead: see `Catalogue.head`.
            WeightsError: its weights are missing, altered or of another shape.
        """
        model = self.model(model_name)
        manifest = self.catalogue.head(self.catalogue.model(model_name), head_name)
        key = (model_name, manifest.id)
        if key not in self._heads:
            check_fit(manifest, model.unet)
            self._heads[key] = LoadedHead(manifest, load_head(manifest, self.device))
        return self._heads[key]

    def face_detector(self, model_name: str) -> FaceDetector:
        """What finds faces in the model's pictures, loaded or from the cache.

        Raises:
            NoFaceDetector: there is none, or what it needs is not installed.
        """
        name = self.catalogue.model(model_name).face_detector or ""
        if name not in self._faces:
            self._faces[name] = self._load_faces(name)
        return self._faces[name]

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the models in the cache, least recently used first."""
        return tuple(self._models)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in the cache."""
        heads = sum(
            parameter.numel() * parameter.element_size()
            for head in self._heads.values()
            for parameter in head.network.parameters()
        )
        return heads + sum(model.nbytes for model in self._models.values())

    def keep_only(self, name: str) -> None:
        """Drop every other model, and what the allocator keeps of earlier runs."""
        self._models = OrderedDict((key, m) for key, m in self._models.items() if key == name)
        self._heads = {key: head for key, head in self._heads.items() if key[0] == name}
        self._release()

    def clear(self) -> None:
        """Drop everything, as after running out of memory."""
        self._models.clear()
        self._heads.clear()
        self.references.clear()
        self._release()

    def _drop_oldest(self) -> None:
        while len(self._models) > 1 and self.nbytes > self.budget_bytes:
            name, _ = self._models.popitem(last=False)
            self._heads = {key: head for key, head in self._heads.items() if key[0] != name}
            self._release()

    def _release(self) -> None:
        gc.collect()  # what a failed run left in cycles
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
