"""Pictures for the measures: the engine on held-out scenes, batch after batch, cached on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from heads_registry.device import resolve_device
from heads_registry.targets import image_target
from worker.adapters import AdapterInput
from worker.guidance import ReadoutTarget
from worker.models import ModelCache
from worker.objectives import spatial_distance
from worker.plan import AdapterGradient
from worker.sampler import Branch, Form, SampleItem, SamplingPlan, UpdateRule, sample
from world.captions import caption
from world.labels import as_bytes, depth_image, edge_image, openpose_image
from world.render import Render, render
from world.scene import sample_scene

Signal = Literal["pose", "depth", "edge"]
MODEL = "mannequin-64"
SIZE = 64
"""Of its pictures, px."""
BATCH_SIZE = 32 if torch.cuda.is_available() else 8


@dataclass(frozen=True)
class Condition:
    """One way of making the pictures; everything that is not a default of the model is here."""

    model: str = MODEL
    signal: Signal | None = None
    weight: float | None = None
    span: tuple[float, float] | None = None
    form: Form | None = None
    branch: Branch | None = None
    update_rule: UpdateRule | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    eta: float = 1.0
    pose_words: bool = False
    adapter: str | None = None
    adapter_gradient: AdapterGradient | None = None


@dataclass(frozen=True)
class Scenes:
    """Held-out scenes of one person: renders and what the measures need of them."""

    seeds: list[int]
    renders: list[Render]

    @classmethod
    def of(cls, seeds: Sequence[int], size: int = SIZE) -> Scenes:
        """Render the scenes of these seeds as full figures."""
        return cls(list(seeds), [render(sample_scene(seed, kind="figure"), size) for seed in seeds])

    def first(self, count: int) -> Scenes:
        """The first `count` of them."""
        return Scenes(self.seeds[:count], self.renders[:count])

    @property
    def keypoints(self) -> torch.Tensor:
        """(scenes, 18, 3): x and y as fractions of the picture, and visibility."""
        size = self.renders[0].rgb.shape[0]
        points = torch.from_numpy(np.stack([picture.keypoints[0] for picture in self.renders]))
        points[..., :2] /= size
        return points

    @property
    def pictures(self) -> torch.Tensor:
        """(scenes, 3, size, size) in [0, 1]: the renders themselves."""
        arrays = np.stack([picture.rgb for picture in self.renders])
        return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255

    def control(self, index: int, signal: Signal) -> Image.Image:
        """A scene's control image."""
        picture = self.renders[index]
        if signal == "depth":
            return Image.fromarray(as_bytes(depth_image(picture.depth)))
        if signal == "edge":
            return Image.fromarray(as_bytes(edge_image(picture)))
        return Image.fromarray(openpose_image(picture.keypoints, picture.rgb.shape[0]))


def placement() -> tuple[torch.device, torch.dtype]:
    """A GPU where there is one; float32 on all devices, so that figures agree."""
    return resolve_device("auto"), torch.float32


class Studio:
    """Makes and keeps the pictures of conditions; a second call reads them from disk."""

    def __init__(self, cache: Path, registry: Path = BUILTIN_DIR) -> None:
        self.cache = cache
        catalogue = Catalogue(dict.fromkeys([BUILTIN_DIR, registry]))
        self.models = ModelCache(catalogue, 2**33, *placement())

    def pictures(self, condition: Condition, scenes: Scenes) -> torch.Tensor:
        """(scenes, 3, size, size) in [0, 1]; picture i has noise seed i."""
        starts = range(0, len(scenes.seeds), BATCH_SIZE)
        label = f"{condition.signal or 'unguided'} {condition.form or ''} w={condition.weight}"
        bar = tqdm(starts, desc=label, mininterval=5)
        return torch.cat([self._batch(condition, scenes, start) for start in bar])

    def _batch(self, condition: Condition, scenes: Scenes, start: int) -> torch.Tensor:
        """The pictures of a batch of scenes; a part of more scenes finds what the whole made."""
        rows = range(start, min(start + BATCH_SIZE, len(scenes.seeds)))
        key = self._key(condition, [scenes.seeds[row] for row in rows], start)
        path = self.cache / f"{key}.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures = self.generate(condition, scenes, rows)
            np.save(path, (pictures * 255).round().to(torch.uint8).numpy())
        return torch.from_numpy(np.load(path)).float() / 255

    def generate(self, condition: Condition, scenes: Scenes, rows: range) -> torch.Tensor:
        """Pictures of some of the scenes, computed now."""
        model = self.models.model(condition.model)
        items = [
            SampleItem(
                caption(scenes.renders[row].scene, pose=condition.pose_words),
                seed=row,
                targets=self._targets(condition, scenes, row),
                adapters=self._adapters(condition, scenes, row),
            )
            for row in rows
        ]
        latents = sample(model, items, self.plan(condition)).latents
        return (model.decode(latents).cpu() + 1) / 2

    def plan(self, condition: Condition) -> SamplingPlan:
        """The model's defaults, changed as the condition says."""
        manifest = self.models.catalogue.model(condition.model)
        defaults = manifest.defaults
        plan = SamplingPlan(
            height=manifest.height,
            width=manifest.width,
            num_inference_steps=defaults.num_inference_steps,
            guidance_scale=defaults.guidance_scale,
            eta=condition.eta,
            form=defaults.form,
            branch=defaults.branch,
            update_rule=defaults.update_rule,
            adapter_gradient=defaults.adapter_gradient,
        )
        names = (
            "form", "branch", "update_rule", "num_inference_steps", "guidance_scale",
            "adapter_gradient",
        )  # fmt: skip
        changes = {name: getattr(condition, name) for name in names}
        return replace(plan, **{k: value for k, value in changes.items() if value is not None})

    def _targets(self, condition: Condition, scenes: Scenes, row: int) -> tuple[ReadoutTarget, ...]:
        if condition.signal is None:
            return ()
        model = self.models.model(condition.model)
        manifest = self.models.catalogue.model(condition.model)
        head = self.models.head(condition.model, condition.signal)
        _, h, w = model.latent_shape(manifest.height, manifest.width)
        scale = head.manifest.output_scale
        target = image_target(
            scenes.control(row, condition.signal),
            (h * scale, w * scale),
            head.manifest.value_range,
            head.manifest.target_resampling,
        )
        weight, span = self._strength(condition)
        return (
            ReadoutTarget(
                head=head.network,
                taps=head.manifest.feature_taps,
                timestep_convention=head.manifest.timestep_convention,
                target=target,
                objective=spatial_distance,
                weight=weight,
                span=span,
                update_scale=head.manifest.update_scale or manifest.update_scale,
            ),
        )

    def _adapters(self, condition: Condition, scenes: Scenes, row: int) -> tuple[AdapterInput, ...]:
        """The pose adapter, by its own defaults, on the scene's pose."""
        if condition.adapter is None:
            return ()
        manifest = self.models.catalogue.model(condition.model)
        adapter = self.models.adapter(condition.model, condition.adapter)
        size = (manifest.height, manifest.width)
        image = image_target(scenes.control(row, "pose"), size, (0.0, 1.0))
        defaults = adapter.manifest.defaults
        return (AdapterInput(adapter, image, defaults.scale, defaults.span),)

    def _strength(self, condition: Condition) -> tuple[float, tuple[float, float]]:
        """Weight and span: the condition's, or the head's, or the model's."""
        assert condition.signal is not None
        manifest = self.models.catalogue.model(condition.model)
        own = self.models.catalogue.head(manifest, condition.signal).defaults
        weights = (condition.weight, own.weight, manifest.defaults.weight)
        return (
            next(weight for weight in weights if weight is not None),
            condition.span or own.span or manifest.defaults.span,
        )

    def _key(self, condition: Condition, seeds: Sequence[int], start: int) -> str:
        """A short name of pictures: of all that makes them, and of nothing else."""
        catalogue, plan = self.models.catalogue, self.plan(condition)
        manifest = catalogue.model(condition.model)
        made_of: list[object] = [manifest.sha256, seeds, start, condition.pose_words]
        if condition.signal is None:  # nothing is guided: how it would be does not matter
            plan = replace(plan, form="one_pass", branch="unconditional", update_rule="rms")
        else:
            head = catalogue.head(manifest, condition.signal)
            scale = head.update_scale or manifest.update_scale
            made_of += [head.sha256, scale, *self._strength(condition)]
        shared = asdict(plan)
        gradient = shared.pop("adapter_gradient")
        if condition.adapter is not None:
            adapter = catalogue.adapter(manifest, condition.adapter)
            made_of += [adapter.sha256, adapter.defaults.model_dump()]
            made_of += [gradient] if condition.signal else []
        text = json.dumps([*made_of, shared])
        return hashlib.sha256(text.encode()).hexdigest()[:16]
