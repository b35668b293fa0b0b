"""What the measures of relative heads share: held-out videos and faces, heads and raw features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heads_registry.base_model import BaseModel
from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from heads_registry.loading import load_head
from heads_registry.training.frozen import FrozenFeatures, cached_latents
from heads_registry.training.groups import Grouped
from heads_registry.training.negatives import anchor_rows, make_negatives
from heads_registry.training.recipe import HeadRecipe
from heads_registry.training.tasks import (
    CorrespondenceTask,
    Examples,
    Readouts,
    Task,
    TripletTask,
)
from world.captions import caption
from world.faces import face_scene, lookalikes
from world.matches import point_tracks
from world.render import Render, render
from world.scene import sample_scene
from world.videos import video_scenes

RECIPES = Path("heads_registry/training/recipes")
FRAMES = 4
POINTS = 64
SHOTS = 3
PICTURES_AT_ONCE = 32

Reader = Callable[[list[Tensor], Tensor, tuple[int, int]], Tensor]
"""Features, timesteps and the latents' size → a feature map."""


def videos_of(seeds: Sequence[int], size: int, cuts: bool = True) -> Grouped:
    """One video a seed, of `FRAMES` frames: every one from a camera of its own, or one shot."""
    grouped = Grouped(torch.empty(0), [], [], [], [])
    pictures: list[Render] = []
    for seed in seeds:
        frames = [render(scene, size) for scene in video_scenes(sample_scene(seed), FRAMES, cuts)]
        grouped.groups.append(list(range(len(pictures), len(pictures) + FRAMES)))
        tracks, _ = point_tracks(frames, POINTS, np.random.default_rng(seed))
        fractions = tracks / np.array([size, size, 1], np.float32)
        fractions[..., :2] = np.nan_to_num(fractions[..., :2]).clip(0, 1 - 1e-6)
        grouped.tracks.append(torch.from_numpy(fractions))
        grouped.captions.extend(frame.caption for frame in frames)
        pictures += frames
    return Grouped(_stack(pictures), grouped.groups, [], grouped.captions, grouped.tracks)


def faces_of(seeds: Sequence[int], size: int, same_skin: bool = False) -> Grouped:
    """Two people of one look a seed, `SHOTS` pictures of each."""
    grouped = Grouped(torch.empty(0), [], [], [], [])
    pictures: list[Render] = []
    for seed in seeds:
        for person, identity in enumerate(lookalikes(seed, 2, same_skin)):
            scenes = [face_scene(seed, identity, person, shot) for shot in range(SHOTS)]
            grouped.groups.append(list(range(len(pictures), len(pictures) + SHOTS)))
            grouped.looks.append(str(seed))
            grouped.captions.extend(caption(scene) for scene in scenes)
            pictures += [render(scene, size) for scene in scenes]
    return Grouped(_stack(pictures), grouped.groups, grouped.looks, grouped.captions, [])


def _stack(pictures: Sequence[Render]) -> Tensor:
    arrays = np.stack([picture.rgb for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


class HeadBench:
    """The demo model and its relative heads, on pictures that they have never seen."""

    def __init__(self, model: str, cache: Path, registry: Path = BUILTIN_DIR) -> None:
        self.cache = cache
        self.catalogue = Catalogue([registry])
        self.manifest = self.catalogue.model(model)

    @cached_property
    def model(self) -> BaseModel:
        """The frozen model."""
        return BaseModel.load(self.manifest)

    @cached_property
    def frozen(self) -> FrozenFeatures:
        """Its features."""
        return FrozenFeatures(self.model, self.manifest.width, self.manifest.height)

    def head(self, name: str) -> Reader:
        """A head as a reader.

        Raises:
            UnknownHead: it has not been trained.
        """
        manifest = self.catalogue.head(self.manifest, name)
        network = load_head(manifest)

        def read(features: list[Tensor], timesteps: Tensor, size: tuple[int, int]) -> Tensor:
            embedding = self.frozen.embedding(manifest.timestep_convention, timesteps)
            said: Tensor = network(features, embedding, size)
            return said

        return read

    def tap(self, index: int) -> Reader:
        """One tap's raw features at the latents' size, as a reader."""

        def read(features: list[Tensor], _timesteps: Tensor, size: tuple[int, int]) -> Tensor:
            return F.interpolate(features[index], size=size, mode="bilinear", align_corners=False)

        return read

    @torch.no_grad()
    def readouts(
        self, task: Task, examples: Examples, fraction: float, readers: Sequence[Reader]
    ) -> Iterator[tuple[Examples, list[Readouts]]]:
        """Batches of examples and what each reader says of them, from one pass of the U-Net.

        Each picture has its own noise, the same for all readers; examples share the timestep.
        """
        latents = cached_latents(self.model, task.images, self.cache)
        size = (latents.shape[-2], latents.shape[-1])
        generator = torch.Generator().manual_seed(round(1000 * fraction))
        count = max(1, PICTURES_AT_ONCE // examples.rows.shape[1])
        for start in range(0, len(examples), count):
            part = examples[start : start + count]
            rows = part.rows.flatten()
            timesteps = torch.full((len(rows),), max(1, round(fraction * 1000)))
            noise = torch.randn(len(rows), *latents.shape[1:], generator=generator)
            noised = self.frozen.add_noise(latents[rows], noise, timesteps)
            features = self.frozen.features(noised, timesteps)
            said = [reader(features, timesteps, size) for reader in readers]
            yield part, [maps.unflatten(0, part.rows.shape) for maps in said]

    def pairs(self, seeds: Sequence[int], each: int) -> tuple[CorrespondenceTask, Examples]:
        """`each` pairs of frames of each video, the videos in order."""
        task = CorrespondenceTask(videos_of(seeds, self.manifest.width), POINTS)
        videos = torch.arange(len(seeds)).repeat_interleave(each)
        return task, task.pairs(videos, torch.Generator().manual_seed(2))

    def quadruplets(self, kind: str, grouped: Grouped) -> tuple[TripletTask, Examples]:
        """Anchors, positives, edits (as in training) and others, of all groups."""
        recipe = HeadRecipe.load(RECIPES / f"mannequin-{kind}.yaml")
        rows = anchor_rows(grouped, 1)
        edits = make_negatives(
            self.model, grouped, rows, recipe.negatives, self.cache / "negatives", seed=1
        )
        task = TripletTask(grouped, rows, edits, identity=kind == "identity")
        return task, task.quadruplets(range(len(grouped)))

    def distances(
        self, task: TripletTask, examples: Examples, fraction: float, reader: Reader
    ) -> dict[str, np.ndarray]:
        """Of the anchors to positives, edits and others."""
        recipe = HeadRecipe(name="x", title="x", kind="appearance")
        parts = [
            task.measure(recipe, said[0], part)
            for part, said in self.readouts(task, examples, fraction, [reader])
        ]
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
