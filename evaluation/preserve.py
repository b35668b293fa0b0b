"""Keeping an appearance or a face: cases from held-out scenes, and measures of what was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evaluation.attributes import (
    FACES,
    PEOPLE,
    Boxes,
    FaceFinder,
    Recogniser,
    agreement,
    crop_faces,
    load_recogniser,
)
from evaluation.edits import Asked, EditStudio, plain
from evaluation.judge import Judge, confidence, load_judge
from evaluation.measures import Pictures
from world.captions import caption
from world.scene import sample_scene

SEEDS = 4
"""Pictures of each reference."""
FIRST_SEED = 6000
CLOTHES_AND_LOOKS = ("clothes", "looks")


def controlled(kind: str, **given: Any) -> Asked:
    """A control; what is None is left to the defaults."""
    return {"type": kind} | {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Variations:
    """References and pictures of others that should look like them, `SEEDS` a reference.

    Attributes:
        prompts: of the pictures: the reference's without a word about clothes and looks.
        references: {prompt, seed} of each picture.
        seeds: of the pictures.
    """

    prompts: list[str]
    references: list[Asked]
    seeds: list[int]

    @classmethod
    def of(cls, scenes: Sequence[int]) -> Variations:
        """Full figures."""
        found = cls([], [], [])
        for index, seed in enumerate(scenes):
            scene = sample_scene(seed, kind="figure")
            reference = {"prompt": caption(scene, pose=False), "seed": FIRST_SEED + 10 * index}
            for offset in range(1, SEEDS + 1):
                found.prompts.append(caption(scene, pose=False, drop=CLOTHES_AND_LOOKS))
                found.references.append(reference)
                found.seeds.append(reference["seed"] + offset)
        return found

    def asked(
        self, weight: float | None = None, span: tuple[float, float] | None = None, **fields: Any
    ) -> list[Asked]:
        """The requests; what is None is left to the defaults."""
        control = controlled("appearance", weight=weight, span=span and list(span))
        return [
            {"task": "appearance", "prompt": prompt, "reference": reference, "seed": seed}
            | {"controls": [control]}
            | fields
            for prompt, reference, seed in zip(
                self.prompts, self.references, self.seeds, strict=True
            )
        ]

    def reference_pictures(self, studio: EditStudio) -> Pictures:
        """Of each picture, its reference."""
        asked = [plain(**reference) for reference in self.references]
        first = studio.pictures(asked[::SEEDS], "references").pictures
        return first.repeat_interleave(SEEDS, dim=0)


class AppearanceScorer:
    """The recogniser of people and the judge of their pose."""

    def __init__(self) -> None:
        self.people: Recogniser = load_recogniser(PEOPLE)
        self.judge: Judge = load_judge()

    @torch.no_grad()
    def __call__(self, pictures: Pictures, references: Pictures) -> dict[str, np.ndarray]:
        """One number a reference: agreement of each attribute and of all, %; `spread` of the key
        points over seeds, px of 512; `person`, the judge's confidence, %."""
        agreed = agreement(self.people(pictures).named(), self.people(references).named())
        verdict = self.judge(pictures)
        sure = confidence(verdict.heatmaps).mean(dim=1).numpy()
        found = {name: by_reference(100 * values) for name, values in agreed.items()}
        spread = pose_spread(verdict.keypoints.unflatten(0, (-1, SEEDS)))
        return found | {"person": by_reference(100 * sure), "spread": 512 * spread.numpy()}


def by_reference(values: np.ndarray) -> np.ndarray:
    """Means over the pictures of each reference."""
    return values.reshape(-1, SEEDS).mean(axis=1)


def pose_spread(points: Float[Tensor, "references seeds 18 2"]) -> Float[Tensor, " references"]:
    """Standard deviation of key points over seeds, root mean square over points, both axes."""
    return points.var(dim=1).sum(dim=-1).mean(dim=1).sqrt()


def slopes(weights: Sequence[float], columns: Sequence[np.ndarray]) -> np.ndarray:
    """Of each reference, the least-squares slope of its agreement over the weights."""
    centred = np.array(weights) - np.mean(weights)
    slope: np.ndarray = centred @ np.stack(columns) / np.square(centred).sum()
    return slope


@dataclass(frozen=True)
class Portraits:
    """Portraits of one person, and of others who should get that face; two a reference.

    Attributes:
        prompts, seeds: of the pictures. references: {prompt, seed} of each.
        faces: the references' pictures. originals: the pictures without guidance.
        boxes: (reference's, picture's) of the faces.
    """

    prompts: list[str]
    seeds: list[int]
    references: list[Asked]
    faces: Pictures
    originals: Pictures
    boxes: tuple[Boxes, Boxes]

    @classmethod
    def of(cls, scenes: Sequence[int], studio: EditStudio, find: FaceFinder) -> Portraits:
        """A reference a scene, and the clothes and skies of the two scenes that follow it."""
        prompts, seeds, references = [], [], []
        shown = [sample_scene(seed, kind="portrait") for seed in scenes]
        for index, scene in enumerate(shown):
            seed = FIRST_SEED + 1000 + 10 * index
            for offset in (1, 2):
                other = shown[(index + offset) % len(shown)]
                prompts.append(caption(other, pose=False, drop=("looks",)))
                references.append({"prompt": caption(scene, pose=False), "seed": seed})
                seeds.append(seed + offset)
        faces = studio.pictures([plain(**one) for one in references[::2]], "faces").pictures
        asked = [plain(p, seed, eta=1.0) for p, seed in zip(prompts, seeds, strict=True)]
        originals = studio.pictures(asked, "no guidance").pictures
        faces = faces.repeat_interleave(2, dim=0)
        boxes = find(faces), find(originals)
        return cls(prompts, seeds, references, faces, originals, boxes)

    def asked(
        self,
        weight: float | None = None,
        span: tuple[float, float] | None = None,
        around: bool = True,
        **fields: Any,
    ) -> list[Asked]:
        """The requests, with or without the appearance term around the face."""
        requests = []
        for row, prompt in enumerate(self.prompts):
            its, own = (corners(boxes[row]) for boxes in self.boxes)
            timing = {"weight": weight, "span": span and list(span)}
            pair = [{"reference": its, "picture": own}]
            controls = [controlled("identity", boxes=pair, **timing)]
            if around:
                region = {"boxes": [own], "outside": True}
                controls.append(
                    controlled("appearance", towards="original", region=region, **timing)
                )
            common = {"task": "identity", "prompt": prompt, "seed": self.seeds[row]}
            common |= {"reference": self.references[row], "controls": controls}
            requests.append(common | fields)
        return requests


class IdentityScorer:
    """The recogniser of faces, and what finds them."""

    def __init__(self) -> None:
        self.network: Recogniser = load_recogniser(FACES)
        self.find = FaceFinder()

    @torch.no_grad()
    def faces(self, faces: Pictures, others: Pictures) -> dict[str, np.ndarray]:
        """Of pairs of face crops: `distance` of the face parameters and the skin tone, each 0 to 1,
        Euclidean; agreement of each attribute and of all, %."""
        first, second = self.network(faces), self.network(others)
        distance = (first.numbers - second.numbers).norm(dim=1).numpy()
        agreed = agreement(first.named(), second.named())
        return {"distance": distance} | {name: 100 * values for name, values in agreed.items()}

    @torch.no_grad()
    def __call__(self, pictures: Pictures, cases: Portraits) -> dict[str, np.ndarray]:
        """One number a picture: those of `faces`, towards the reference; `drift`, the mean absolute
        change outside the face against no guidance, of 255."""
        found = self.faces(
            crop_faces(pictures, self.find(pictures)), crop_faces(cases.faces, cases.boxes[0])
        )
        change = (pictures - cases.originals).abs().mean(dim=1)
        outside = ~box_masks(cases.boxes[1], change.shape[-1])
        drift = (change * outside).sum(dim=(1, 2)) / outside.sum(dim=(1, 2)).clamp(min=1)
        return found | {"drift": 255 * drift.numpy()}


def corners(box: Tensor) -> dict[str, float]:
    """A square as the API writes it, inside the picture."""
    x, y, side = box.tolist()
    ends = {"x0": x - side / 2, "y0": y - side / 2, "x1": x + side / 2, "y1": y + side / 2}
    return {name: min(max(value, 0.0), 1.0) for name, value in ends.items()}


def box_masks(boxes: Boxes, size: int) -> Bool[Tensor, "batch size size"]:
    """Pixels whose centres lie in the squares."""
    centres = (torch.arange(size) + 0.5) / size
    inside = (centres - boxes[:, :2, None]).abs() <= boxes[:, 2, None, None] / 2
    return inside[:, 1, :, None] & inside[:, 0, None, :]
