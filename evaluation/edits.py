"""Pictures of drags and variations for the measures: public requests, resolved as the gateway does
and executed as the worker does, kept on disk one by one."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from evaluation.generate import BATCH_SIZE, MODEL, placement
from evaluation.measures import Pictures
from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from jobs.request import GenerationRequest, StoredImage
from service.resolve import Doors, resolve
from service.schemas import GenerationParameters, ImageSource
from worker.execute import execute_together, shared_plan
from worker.models import LoadedHead, ModelCache
from worker.reference_cache import ReferenceCache

RAW = "raw/"
Asked = dict[str, Any]
"""The body of a POST /v1/generations."""


class RawFeatures(nn.Module):
    """In place of a head: one tap of the U-Net at the latents' size, as DIFT compares pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing_weights = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(
        self, features: Sequence[Tensor], _embedding: Tensor | None, size: tuple[int, int]
    ) -> Tensor:
        """The only feature, brought to `size` bilinearly."""
        return F.interpolate(features[0], size=size, mode="bilinear", align_corners=False)


class Models(ModelCache):
    """Also gives raw features as heads: `raw/TAP/KIND` is the TAP-th tap of the KIND head."""

    def head(self, model_name: str, head_name: str) -> LoadedHead:
        """A head, or raw features in its place."""
        if not head_name.startswith(RAW):
            return super().head(model_name, head_name)
        _, tap, kind = head_name.split("/")
        manifest = super().head(model_name, kind).manifest
        changes = {
            "sha256": head_name,
            "update_scale": None,
            "feature_taps": (manifest.feature_taps[int(tap)],),
            "timestep_convention": "none",
        }
        network: Any = RawFeatures()
        return LoadedHead(manifest.model_copy(update=changes), network)


@dataclass(frozen=True)
class Edited:
    """Pictures of requests.

    Attributes:
        pictures: (requests, 3, size, size) in [0, 1].
        psnr_db: (requests,) of the inverted references' reconstructions; NaN: none.
    """

    pictures: Pictures
    psnr_db: np.ndarray


class EditStudio:
    """Makes and keeps the pictures of requests; a second call reads them from disk."""

    def __init__(
        self,
        cache: Path,
        registry: Path = BUILTIN_DIR,
        model: str = MODEL,
        num_inference_steps: int | None = None,
    ) -> None:
        self.cache, self.model = cache, model
        self.steps = {"num_inference_steps": num_inference_steps}
        catalogue = Catalogue(dict.fromkeys([BUILTIN_DIR, registry]))
        self.models = Models(catalogue, 2**33, *placement(), references=ReferenceCache(2**31))
        self._images: dict[str, tuple[StoredImage, Image.Image]] = {}

    def upload(self, picture: Tensor) -> str:
        """The id of a picture, (3, size, size) in [0, 1], as if it had been uploaded."""
        array = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        image, file = Image.fromarray(array), io.BytesIO()
        image.save(file, "PNG")
        sha256 = hashlib.sha256(file.getvalue()).hexdigest()
        stored = StoredImage(
            upload_id=f"upl_{sha256[:24]}",
            key=sha256,
            sha256=sha256,
            width=image.width,
            height=image.height,
        )
        self._images[stored.upload_id] = stored, image
        return stored.upload_id

    def resolved(self, asked: Asked, raw_tap: int | None = None) -> GenerationRequest:
        """The effective request, as the gateway makes it; `raw_tap` in place of the heads."""

        def take_image(source: ImageSource, _pointer: str) -> StoredImage:
            assert source.upload_id is not None
            return self._images[source.upload_id][0]

        def find_record(_name: str) -> Any:
            raise AssertionError("no measure names an earlier generation")

        doors = Doors(self.models.catalogue, self.model, take_image, find_record)
        request = resolve(
            GenerationParameters.model_validate_json(json.dumps(self.steps | asked)), doors
        )
        if raw_tap is None:
            return request
        controls = tuple(
            control.model_copy(update={"head": f"{RAW}{raw_tap}/{control.head.split('/')[-1]}"})
            for control in request.controls
        )
        return request.model_copy(update={"controls": controls})

    def pictures(
        self, asked: Sequence[Asked], label: str = "", raw_tap: int | None = None
    ) -> Edited:
        """The pictures of requests, one each."""
        requests = [self.resolved(one, raw_tap) for one in asked]
        paths = [self.cache / f"{self._key(request)}.npz" for request in requests]
        missing = [row for row, path in enumerate(paths) if not path.is_file()]
        bar = tqdm(total=len(requests), initial=len(requests) - len(missing), desc=label)
        while missing:
            plan = shared_plan(requests[missing[0]])
            batch = [row for row in missing if shared_plan(requests[row]) == plan][:BATCH_SIZE]
            self._make([requests[row] for row in batch], [paths[row] for row in batch])
            missing = [row for row in missing if row not in batch]
            bar.update(len(batch))
        bar.close()
        stored = [np.load(path) for path in paths]
        pictures = np.stack([one["picture"] for one in stored])
        return Edited(
            torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255,
            np.array([float(one["psnr_db"]) for one in stored]),
        )

    def load_image(self, stored: StoredImage) -> Image.Image:
        """What the worker fetches."""
        return self._images[stored.upload_id][1]

    def _make(self, requests: list[GenerationRequest], paths: list[Path]) -> None:
        self.cache.mkdir(parents=True, exist_ok=True)
        done = execute_together(requests, self.models, self.load_image, lambda *_: None)
        for execution, path in zip(done, paths, strict=True):
            (image,) = execution.images
            psnr_db = execution.reference_psnr_db
            psnr_db = np.nan if psnr_db is None else psnr_db
            with path.with_suffix(".part").open("wb") as file:
                np.savez(file, picture=np.array(image), psnr_db=psnr_db)
            path.with_suffix(".part").replace(path)

    def _key(self, request: GenerationRequest) -> str:
        """A short name of all that makes the picture."""
        model = self.models.catalogue.model(request.model)
        heads = [self.models.head(request.model, control.head) for control in request.controls]
        made_of = [
            model.sha256,
            model.update_scale,
            request.model_dump(mode="json"),
            [(head.manifest.sha256, head.manifest.update_scale) for head in heads],
        ]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:24]


def plain(prompt: str, seed: int, **fields: Any) -> Asked:
    """A picture without controls."""
    return {"task": "text_to_image", "prompt": prompt, "seed": seed, "eta": 0.0} | fields
