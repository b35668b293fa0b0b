"""Scores of pictures against the scenes whose controls they were to follow."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.generate import Scenes
from evaluation.judge import MAP_SIZE, load_judge
from evaluation.measures import (
    ColourClassifier,
    Pictures,
    garment_colours,
    map_error,
    percentage_of_correct_keypoints,
)
from openpose import known_points
from world.labels import depth_image, edge_image
from world.seeds import JUDGE

COLOUR_SCENES = range(JUDGE.start + 5_000_000, JUDGE.start + 5_000_600)
"""Clean renders on which the names of colours are learned."""


class Scorer:
    """The judge and the colour classifier, loaded once."""

    def __init__(self) -> None:
        self.judge = load_judge()

    @cached_property
    def colours(self) -> tuple[ColourClassifier, ColourClassifier]:
        """Classifiers of shirts and of trousers, fitted on clean renders seen by the judge."""
        scenes = Scenes.of(COLOUR_SCENES)
        found = garment_colours(scenes.pictures, self.judge(scenes.pictures).keypoints)
        shirts, trousers = zip(
            *(outfit_of(scenes, row) for row in range(len(scenes.seeds))), strict=True
        )
        return (
            ColourClassifier(found[0], list(shirts)),
            ColourClassifier(found[1], list(trousers)),
        )

    @torch.no_grad()
    def __call__(self, pictures: Pictures, scenes: Scenes) -> dict[str, np.ndarray]:
        """One row a picture: PCK in per cent, errors of depth and edges, colours right (0 or 1).

        Key points count where the control holds them: inside the picture, those of the face only
        where they are seen.
        """
        verdict = self.judge(pictures)
        truth = scenes.keypoints
        counted = _held(truth)
        scores = {
            f"pck@{alpha}": 100
            * percentage_of_correct_keypoints(
                verdict.keypoints, truth[..., :2], counted, alpha
            ).numpy()
            for alpha in (0.05, 0.1, 0.2)
        }
        renders = scenes.renders
        depth = _maps([depth_image(picture.depth) for picture in renders])
        edges = _maps([edge_image(picture) for picture in renders])
        scores["depth_rmse"] = map_error(verdict.depth, depth).numpy()
        scores["edge_rmse"] = map_error(verdict.edges, edges).numpy()
        found = garment_colours(pictures, verdict.keypoints)
        asked = zip(*(outfit_of(scenes, row) for row in range(len(scenes.seeds))), strict=True)
        for name, classifier, colours, wanted in zip(
            ("shirt", "trousers"), self.colours, found, asked, strict=True
        ):
            named = classifier(colours)
            scores[name] = np.array(
                [a == b for a, b in zip(named, wanted, strict=True)], np.float64
            )
        return scores


def outfit_of(scenes: Scenes, row: int) -> tuple[str, str]:
    """The colours' names of the person's shirt and trousers."""
    outfit = scenes.renders[row].scene.people[0].outfit
    return outfit.shirt, outfit.trousers


def _held(keypoints: Tensor) -> Tensor:
    """(pictures, 18): which key points the skeletons have."""
    people = known_points(keypoints.tolist())
    return torch.tensor([[point is not None for point in person] for person in people])


def _maps(maps: list[np.ndarray]) -> Tensor:
    stacked = torch.from_numpy(np.stack(maps)).float()
    return F.adaptive_avg_pool2d(stacked[:, None], MAP_SIZE)[:, 0]
