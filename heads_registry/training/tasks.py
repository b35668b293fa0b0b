"""What is different between the kinds of heads: the examples they draw, their loss, their measure.

A task holds pictures, and draws examples: rows of pictures that belong together (one of a spatial
head, a pair of frames, an anchor with a positive and a negative). The loop does the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from heads_registry.targets import label_targets
from heads_registry.training.data import LabelledImages, Pictures
from heads_registry.training.groups import SHARED_POINTS, Grouped
from heads_registry.training.losses import (
    appearance_distance,
    balanced_mse,
    correspondence_loss,
    element_balanced_mse,
    groups_contrast,
    groups_hinge,
    mse,
    triplet_hinge,
)
from heads_registry.training.measures import pair_pck, same_different_accuracy
from heads_registry.training.recipe import HeadRecipe, NegativesRecipe

HELD_OUT_GROUPS = 64
"""Videos or people, at most."""

Readouts = Float[Tensor, "batch pictures channels height width"]
Measured = dict[str, Float[Tensor, " batch"]]


@dataclass(frozen=True)
class Examples:
    """A batch: which pictures, and for pairs which points match (fractions of the picture)."""

    rows: Int[Tensor, "batch pictures"]
    points: Float[Tensor, "batch points 2 2"] | None = None
    valid: Bool[Tensor, "batch points"] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Examples:
        return Examples(
            self.rows[part],
            None if self.points is None else self.points[part],
            None if self.valid is None else self.valid[part],
        )


class Task(Protocol):
    """Data and loss of one kind of head."""

    images: Pictures
    validation: Examples
    examples: int

    def draw(self, count: int, generator: torch.Generator) -> Examples:
        """A batch of training examples."""

    def loss(self, recipe: HeadRecipe, readouts: Readouts, examples: Examples) -> Tensor:
        """The scalar to minimise."""

    def measure(self, recipe: HeadRecipe, readouts: Readouts, examples: Examples) -> Measured:
        """Numbers of every example, for `summarise`."""

    def summarise(self, recipe: HeadRecipe, measured: dict[str, np.ndarray]) -> dict[str, float]:
        """Measures of all validation examples → metrics."""


@dataclass
class SpatialTask:
    """Images and label images (section 4.2); the last ones are held out."""

    data: LabelledImages
    held_out: int = 256
    images: Pictures = field(init=False)
    validation: Examples = field(init=False)
    examples: int = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.data)
        held_out = min(self.held_out, count // 5 or 1)
        if count - held_out < 1:
            raise ValueError("one image is not enough: one of them is held out")
        self.examples = count - held_out
        self.images = self.data.images
        self.validation = Examples(torch.arange(self.examples, count)[:, None])

    def draw(self, count: int, generator: torch.Generator) -> Examples:
        """Images at random."""
        return Examples(torch.randint(self.examples, (count, 1), generator=generator))

    def targets(self, recipe: HeadRecipe, readouts: Readouts, examples: Examples) -> Tensor:
        """The labels as readouts should say them."""
        assert recipe.label is not None
        labels = self.data.labels[recipe.label][examples.rows[:, 0]].to(readouts.device)
        size = (readouts.shape[-2], readouts.shape[-1])
        return label_targets(labels, size, recipe.value_range, recipe.target_resampling)

    def loss(self, recipe: HeadRecipe, readouts: Readouts, examples: Examples) -> Tensor:
        """The recipe's loss of readout and label."""
        target = self.targets(recipe, readouts, examples)
        if recipe.loss == "mse":
            return mse(readouts[:, 0], target)
        balanced = balanced_mse if recipe.loss == "balanced_mse" else element_balanced_mse
        return balanced(readouts[:, 0], target, recipe.value_range)

    def measure(self, recipe: HeadRecipe, readouts: Readouts, examples: Examples) -> Measured:
        """Squared error, and that of always saying the mean training label."""
        target = self.targets(recipe, readouts, examples)
        some = Examples(torch.arange(min(2000, self.examples))[:, None])
        mean = self.targets(recipe, readouts[:1], some).mean(dim=0)
        low, high = recipe.value_range
        return {
            "rmse": _squares(readouts[:, 0] - target) / (high - low) ** 2,
            "baseline": _squares(mean - target) / (high - low) ** 2,
        }

    def summarise(self, recipe: HeadRecipe, measured: dict[str, np.ndarray]) -> dict[str, float]:
        """Root mean squared errors, in units of the value range (0 black, 1 white)."""
        return {name: float(values.mean()) ** 0.5 for name, values in measured.items()}


@dataclass
class CorrespondenceTask:
    """Pairs of frames and the points that both show (section 4.3); the last videos are held out."""

    videos: Grouped
    points: int = 128
    held_out: int = HELD_OUT_GROUPS
    pairs_each: int = 4
    images: Pictures = field(init=False)
    validation: Examples = field(init=False)
    examples: int = field(init=False)

    def __post_init__(self) -> None:
        self.images = self.videos.images
        self.examples = _training_groups(self.videos, self.held_out)
        self._pairs = [_pairs(tracks) for tracks in self.videos.tracks]
        held_out = torch.arange(self.examples, len(self.videos)).repeat_interleave(self.pairs_each)
        self.validation = self.pairs(held_out, torch.Generator().manual_seed(1))

    def draw(self, count: int, generator: torch.Generator) -> Examples:
        """Videos at random, two frames of each, and points that both show."""
        return self.pairs(torch.randint(self.examples, (count,), generator=generator), generator)

    def pairs(self, videos: Int[Tensor, " batch"], generator: torch.Generator) -> Examples:
        """One pair of each of these videos."""
        rows = torch.zeros(len(videos), 2, dtype=torch.long)
        points = torch.zeros(len(videos), self.points, 2, 2)
        valid = torch.zeros(len(videos), self.points, dtype=torch.bool)
        for index, video in enumerate(videos.tolist()):
            pairs = self._pairs[video]
            frames = pairs[int(torch.randint(len(pairs), (1,), generator=generator))]
            frames = frames[torch.randperm(2, generator=generator)]
            rows[index] = torch.tensor(self.videos.groups[video])[frames]
            tracks = self.videos.tracks[video][:, frames]
            shared = torch.nonzero((tracks[..., 2] > 0.5).all(dim=1))[:, 0]
            chosen = shared[torch.randperm(len(shared), generator=generator)[: self.points]]
            points[index, : len(chosen)] = tracks[chosen, :, :2]
            valid[index, : len(chosen)] = True
        return Examples(rows, points, valid)

    def loss(self, recipe: HeadRecipe, readouts: Readouts, examples: Examples) -> Tensor:
        """Symmetric cross-entropy of the matched points."""
        assert examples.points is not None
        assert examples.valid is not None
        cells = point_cells(examples.points.to(readouts), *readouts.shape[-2:])
        valid = examples.valid.to(readouts.device)
        return correspondence_loss(
            readouts[:, 0], readouts[:, 1], cells[..., 0], cells[..., 1], valid, recipe.temperature
        )

    def measure(self, recipe: HeadRecipe, readouts: Readouts, examples: Examples) -> Measured:
        """PCK@0.1 of each pair."""
        assert examples.points is not None
        assert examples.valid is not None
        share = pair_pck(readouts[:, 0], readouts[:, 1], examples.points, examples.valid)
        return {"pck@0.1": 100 * share}

    def summarise(self, recipe: HeadRecipe, measured: dict[str, np.ndarray]) -> dict[str, float]:
        """Mean over the pairs, per cent."""
        return {name: float(values.mean()) for name, values in measured.items()}


@dataclass
class TripletTask:
    """Anchor, positive (same video or person) and negative (sections 4.3, 9.1).

    Negatives are the anchors edited by the base model, and where `others` is not 0 pictures of
    other groups as well, of the same look where the data name looks.

    Args:
        data: the pictures and their groups.
        anchors, negatives: rows that have an edit, and the edits.
        plan: the share of other groups in the loss, and what an example has of them.
        held_out: groups that are held out, at most; whole looks are.
        identity: measure same/different answers, too.
    """

    data: Grouped
    anchors: list[int]
    negatives: Pictures
    plan: NegativesRecipe = field(default_factory=NegativesRecipe)
    held_out: int = HELD_OUT_GROUPS
    identity: bool = False
    images: Pictures = field(init=False)
    validation: Examples = field(init=False)
    examples: int = field(init=False)

    def __post_init__(self) -> None:
        self.images = torch.cat([self.data.images, self.negatives])
        edits = {row: len(self.data.images) + index for index, row in enumerate(self.anchors)}
        self._anchors = [
            [(row, edits[row]) for row in group if row in edits] for group in self.data.groups
        ]
        self.examples = check_others(self.data, self.plan, self.held_out)
        self._alike: dict[str, list[int]] = defaultdict(list)
        for group, look in enumerate(self.data.looks):
            self._alike[look].append(group)
        self.validation = self.quadruplets(range(self.examples, len(self.data)))

    def draw(self, count: int, generator: torch.Generator) -> Examples:
        """Groups at random; of each an anchor's edit, the anchor, and others of its pictures; then
        as many pictures of each of some other groups, where the recipe wants them."""
        rows, size = [], self.plan.group_pictures if self.plan.others else 2
        for group in torch.randint(self.examples, (count,), generator=generator).tolist():
            anchor, edit = _one(self._anchors[group], generator)
            pictures = [anchor, *self._some(group, size - 1, generator, but=anchor)]
            for other in self._others(group, generator) if self.plan.others else ():
                pictures += self._some(other, size, generator)
            rows.append([edit, *pictures])
        return Examples(torch.tensor(rows))

    def quadruplets(self, groups: Iterable[int]) -> Examples:
        """Anchor, positive, edit and other of each anchor of these groups; always the same."""
        generator = torch.Generator().manual_seed(1)
        rows = [
            [
                anchor,
                *self._some(group, 1, generator, but=anchor),
                edit,
                self._other(group, generator),
            ]
            for group in groups
            for anchor, edit in self._anchors[group]
        ]
        return Examples(torch.tensor(rows))

    def _some(
        self, group: int, count: int, generator: torch.Generator, but: int | None = None
    ) -> list[int]:
        """Different pictures of a group; where it has too few, some of them again."""
        rest = [row for row in self.data.groups[group] if row != but]
        order = torch.randperm(len(rest), generator=generator).tolist()
        return [rest[order[index % len(rest)]] for index in range(count)]

    def _others(self, group: int, generator: torch.Generator) -> list[int]:
        """Different other groups: of the same look, then of any look of the same part of the data.

        Those of the same look are the hard ones; the others keep hair and hat a part of who it is.
        """
        looks, count = self.data.looks, self.plan.other_groups
        alike = [other for other in self._alike[looks[group]] if other != group] if looks else []
        chosen = _shuffled(alike, generator)[:count]
        if len(chosen) < count:
            training = group < self.examples
            part = range(self.examples) if training else range(self.examples, len(self.data))
            rest = [other for other in part if other != group and other not in alike]
            chosen += _shuffled(rest, generator)[: count - len(chosen)]
        return chosen or [group]

    def _other(self, group: int, generator: torch.Generator) -> int:
        """A picture of another group."""
        return self._some(self._others(group, generator)[0], 1, generator)[0]

    def loss(self, recipe: HeadRecipe, readouts: Readouts, examples: Examples) -> Tensor:
        """Hinge of anchor, positive and edit, and all comparisons with different groups: the hinge
        of all triplets, or their contrast, to which the edit is one more group.

        To other groups, anchor and positive are the same: two pictures of what they are not.
        """
        size = self.plan.group_pictures
        edit, anchor, positive = readouts[:, :3].unbind(dim=1)
        loss = triplet_hinge(anchor, positive, edit, recipe.margin)
        if not self.plan.others:
            return loss
        groups = [index // size for index in range(readouts.shape[1] - 1)]
        if self.plan.temperature is None:
            other = groups_hinge(readouts[:, 1:], groups, recipe.margin)
        else:
            other = groups_contrast(readouts, [-1, *groups], self.plan.temperature)
        return torch.lerp(loss, other, self.plan.others)

    def measure(self, recipe: HeadRecipe, readouts: Readouts, examples: Examples) -> Measured:
        """Distances of the anchor to the positive, to its edit and to another group's picture."""
        names = ("positive", "edit", "other")
        return {
            name: appearance_distance(readouts[:, 0], readouts[:, index])
            for index, name in enumerate(names, 1)
        }

    def summarise(self, recipe: HeadRecipe, measured: dict[str, np.ndarray]) -> dict[str, float]:
        """How often the positive is nearer than the edit, and than another group's picture."""
        positive, edit, other = (measured[name] for name in ("positive", "edit", "other"))
        metrics = {
            "triplet_accuracy": float((positive < edit).mean()),
            "other_accuracy": float((positive < other).mean()),
        }
        if self.identity:
            metrics["same_different_accuracy"] = same_different_accuracy(positive, other)
        return metrics


def point_cells(points: Tensor, height: int, width: int) -> Tensor:
    """Fractions of the picture (…, [x, y]) → indices y · w + x of the cells that hold them."""
    column = (points[..., 0] * width).long().clamp(0, width - 1)
    line = (points[..., 1] * height).long().clamp(0, height - 1)
    return line * width + column


def _squares(difference: Tensor) -> Tensor:
    return difference.square().mean(dim=(1, 2, 3))


def _shuffled(values: list[int], generator: torch.Generator) -> list[int]:
    return [values[index] for index in torch.randperm(len(values), generator=generator).tolist()]


def _one(values: list, generator: torch.Generator):
    return values[int(torch.randint(len(values), (1,), generator=generator))]


def _pairs(tracks: Float[Tensor, "points frames 3"]) -> Int[Tensor, "pairs 2"]:
    seen = (tracks[..., 2] > 0.5).float()
    shared = (seen.T @ seen) >= SHARED_POINTS
    return torch.nonzero(shared.triu(diagonal=1))


def check_others(data: Grouped, plan: NegativesRecipe, held_out: int = HELD_OUT_GROUPS) -> int:
    """How many groups are trained on, if each has as many others as an example is to have.

    Raises:
        ValueError: too few groups, or too few others.
    """
    count = _training_groups(data, held_out)
    if plan.others and count - 1 < plan.other_groups:
        raise ValueError(
            f"negatives.other_groups is {plan.other_groups}, but each video or person has only "
            f"{count - 1} others to be compared with, besides those that are held out: give more, "
            "or a smaller other_groups"
        )
    return count


def _training_groups(data: Grouped, held_out: int) -> int:
    """How many of the groups, from the first on, are trained on; looks are not divided."""
    count = len(data)
    first = count - min(held_out, count // 5 or 1)
    while data.looks and 0 < first < count and data.looks[first - 1] == data.looks[first]:
        first -= 1
    if first < 1:
        raise ValueError(
            f"{count} groups (videos, people) are not enough: some are held out, and looks are "
            "not divided"
        )
    return first
