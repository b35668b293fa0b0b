"""The cache of loaded models, heads and adapters: least recently used goes first, by bytes."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from heads_registry.adapters import LoadedAdapter, load_adapter
from heads_registry.base_model import BaseModel
from heads_registry.catalogue import Catalogue
from heads_registry.device import resolve_dtype
from heads_registry.loading import check_fit, load_head
from heads_registry.manifest import HeadManifest
from heads_registry.networks import ReadoutHead
from worker.faces import FaceDetector, load_detector
from worker.reference_cache import ReferenceCache

__all__ = ["LoadedAdapter", "LoadedHead", "ModelCache"]

LoadFaces = Callable[[str], FaceDetector]
"""A model's own detector by name, "" where it has none → the one to use."""
DEFAULT_REFERENCE_BYTES = 2**30
"""Memory for reference trajectories where no cache is given."""


Key = tuple[str, str]
"""A model's name, and the id of one of its adapters; empty: the model itself."""


@dataclass(frozen=True)
class LoadedHead:
    """A head ready to use, with its manifest."""

    manifest: HeadManifest
    network: ReadoutHead


class ModelCache:
    """Loads models, heads and adapters once and keeps them while they fit into `budget_bytes`.

    A model takes its heads and adapters with it when it goes. What was asked for last is never
    dropped, with its model, even where that alone is larger than the budget. A `dtype` of None is
    what suits the device and each model.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        budget_bytes: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = torch.float32,
        references: ReferenceCache | None = None,
        load_faces: LoadFaces = load_detector,
    ) -> None:
        if references is None:  # an empty one is falsy
            references = ReferenceCache(DEFAULT_REFERENCE_BYTES)
        self.references = references
        self.catalogue = catalogue
        self.budget_bytes = budget_bytes
        self.device = torch.device(device)
        self.dtype = dtype
        self._loaded: OrderedDict[Key, BaseModel | LoadedAdapter] = OrderedDict()
        self._heads: dict[tuple[str, str], LoadedHead] = {}
        self._load_faces = load_faces
        self._faces: dict[str, FaceDetector] = {}

    def model(self, name: str) -> BaseModel:
        """The model of that name, loaded or from the cache.

        Raises:
            UnknownModel: it is not in the catalogue.
            ModelLoadError: its files cannot be loaded.
        """
        model = self._loaded.get((name, ""))
        if not isinstance(model, BaseModel):
            manifest = self.catalogue.model(name)
            dtype = self.dtype or resolve_dtype("auto", self.device, manifest.cpu_dtype)
            model = BaseModel.load(manifest, self.device, dtype)
        self._use((name, ""), model)
        return model

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
            network = load_head(manifest, self.device, model.latent_dtype)
            self._heads[key] = LoadedHead(manifest, network)
        return self._heads[key]

    def adapter(self, model_name: str, adapter_name: str) -> LoadedAdapter:
        """A ControlNet or T2I-Adapter that fits the model, loaded or from the cache.

        Raises:
            UnknownAdapter, IncompatibleAdapter: see `Catalogue.adapter`.
            AdapterLoadError: its files are missing, altered or not of its type.
            AdapterMismatch: it does not fit the model's U-Net.
        """
        model = self.model(model_name)
        manifest = self.catalogue.adapter(self.catalogue.model(model_name), adapter_name)
        key = (model_name, manifest.id)
        adapter = self._loaded.get(key)
        if not isinstance(adapter, LoadedAdapter):
            adapter = load_adapter(manifest, model)
        self._use(key, adapter)
        return adapter

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
        return tuple(name for name, adapter in self._loaded if not adapter)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in the cache."""
        heads = sum(
            parameter.numel() * parameter.element_size()
            for head in self._heads.values()
            for parameter in head.network.parameters()
        )
        return heads + sum(part.nbytes for part in self._loaded.values())

    def keep_only(self, name: str) -> None:
        """Drop every other model, and what the allocator keeps of earlier runs."""
        for other in set(self.loaded) - {name}:
            self._drop((other, ""))
        self._release()

    def clear(self) -> None:
        """Drop everything, as after running out of memory."""
        self._loaded.clear()
        self._heads.clear()
        self.references.clear()
        self._release()

    def _use(self, key: Key, part: BaseModel | LoadedAdapter) -> None:
        """Remember a part as the last used, and make room for it."""
        self._loaded[key] = part
        self._loaded.move_to_end(key)
        kept = {key, (key[0], "")}
        while self.nbytes > self.budget_bytes:
            oldest = next((other for other in self._loaded if other not in kept), None)
            if oldest is None:
                return
            self._drop(oldest)
            self._release()

    def _drop(self, key: Key) -> None:
        """Forget an adapter; or a model, with its heads and adapters."""
        name, adapter = key
        if adapter:
            del self._loaded[key]
            return
        self._loaded = OrderedDict((k, part) for k, part in self._loaded.items() if k[0] != name)
        self._heads = {k: head for k, head in self._heads.items() if k[0] != name}

    def _release(self) -> None:
        gc.collect()  # what a failed run left in cycles
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
