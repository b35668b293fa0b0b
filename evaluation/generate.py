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

from heads_registry.manifest import BUILTIN_DIR, Catalogue
from heads_registry.targets import image_target
from openpose import draw_pose
from worker.guidance import ReadoutTarget
from worker.models import ModelCache
from worker.objectives import spatial_distance
from worker.sampler import Branch, Form, SampleItem, SamplingPlan, UpdateRule, sample
from world.captions import caption
from world.labels import as_bytes, depth_image, edge_image
from world.render import Render, render
from world.scene import sample_scene

Signal = Literal["pose", "depth", "edge"]
BATCH_SIZE = 8


@dataclass(frozen=True)
class Condition:
    """One way of making the pictures; everything that is not a default of the model is here."""

    model: str = "mannequin-64"
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

    def key(self, seeds: Sequence[int], fingerprint: str) -> str:
        """A short name of the pictures that this condition makes of these scenes."""
        text = json.dumps([asdict(self), list(seeds), fingerprint])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Scenes:
    """Held-out scenes of one person: renders and what the measures need of them."""

    seeds: list[int]
    renders: list[Render]

    @classmethod
    def of(cls, seeds: Sequence[int], size: int) -> Scenes:
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
        size = picture.rgb.shape[0]
        people = [
            [(float(x), float(y)) if visible > 0 else None for x, y, visible in person]
            for person in picture.keypoints
        ]
        return draw_pose(people, size, size)


class Studio:
    """Makes and keeps the pictures of conditions; a second call reads them from disk."""

    def __init__(self, cache: Path, registry: Path = BUILTIN_DIR) -> None:
        self.cache = cache
        self.models = ModelCache(Catalogue(dict.fromkeys([BUILTIN_DIR, registry])), 2**33)

    def pictures(self, condition: Condition, scenes: Scenes) -> torch.Tensor:
        """(scenes, 3, size, size) in [0, 1]; picture i has noise seed i."""
        path = self.cache / f"{condition.key(scenes.seeds, self._fingerprint(condition))}.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures = self._generate(condition, scenes)
            np.save(path, (pictures * 255).round().to(torch.uint8).numpy())
        return torch.from_numpy(np.load(path)).float() / 255

    def _generate(self, condition: Condition, scenes: Scenes) -> torch.Tensor:
        model = self.models.model(condition.model)
        plan = self.plan(condition)
        parts = []
        label = f"{condition.signal or 'unguided'} {condition.form or ''} w={condition.weight}"
        for start in tqdm(range(0, len(scenes.seeds), BATCH_SIZE), desc=label, mininterval=5):
            rows = range(start, min(start + BATCH_SIZE, len(scenes.seeds)))
            items = [
                SampleItem(
                    caption(scenes.renders[row].scene, pose=condition.pose_words),
                    seed=row,
                    targets=self._targets(condition, scenes, row),
                )
                for row in rows
            ]
            parts.append(model.decode(sample(model, items, plan).latents).cpu())
        return (torch.cat(parts) + 1) / 2

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
        )
        names = ("form", "branch", "update_rule", "num_inference_steps", "guidance_scale")
        changes = {name: getattr(condition, name) for name in names}
        return replace(plan, **{k: value for k, value in changes.items() if value is not None})

    def _targets(self, condition: Condition, scenes: Scenes, row: int) -> tuple[ReadoutTarget, ...]:
        if condition.signal is None:
            return ()
        model = self.models.model(condition.model)
        manifest = self.models.catalogue.model(condition.model)
        head = self.models.head(condition.model, condition.signal)
        own, fallback = head.manifest.defaults, manifest.defaults
        _, h, w = model.latent_shape(manifest.height, manifest.width)
        scale = head.manifest.output_scale
        target = image_target(
            scenes.control(row, condition.signal),
            (h * scale, w * scale),
            head.manifest.value_range,
            head.manifest.target_resampling,
        )
        weight = condition.weight if condition.weight is not None else own.weight
        return (
            ReadoutTarget(
                head=head.network,
                taps=head.manifest.feature_taps,
                timestep_convention=head.manifest.timestep_convention,
                target=target,
                objective=spatial_distance,
                weight=weight if weight is not None else fallback.weight,
                span=condition.span or own.span or fallback.span,
                update_scale=head.manifest.update_scale or manifest.update_scale,
            ),
        )

    def _fingerprint(self, condition: Condition) -> str:
        """Changes with the manifests, and so with the weights and the defaults."""
        catalogue = self.models.catalogue
        manifest = catalogue.model(condition.model)
        texts = [manifest.model_dump_json()]
        if condition.signal is not None:
            head = catalogue.head(manifest, condition.signal)
            texts.append(head.model_dump_json(exclude={"metrics"}))
        return hashlib.sha256("".join(texts).encode()).hexdigest()
