"""How good readouts are, per example; pure functions, shared by training and evaluation."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from heads_registry.networks import Readout

Points = Float[Tensor, "points 2"]

SUBCELLS = 4
"""Into how many parts, in each direction, a cell is divided when a match is looked for."""


def match_points(
    source: Float[Tensor, "channels h w"], target: Float[Tensor, "channels h w"], points: Points
) -> Points:
    """For points of one picture, the most similar places of another, by cosine.

    Both maps are read with bilinear interpolation: the source at the points, the target on a grid
    of `SUBCELLS` places a cell in each direction.

    Args:
        source, target: feature maps.
        points: x and y as fractions of the picture.

    Returns:
        x and y of the matches, as fractions of the picture.
    """
    grid = (points[None, :, None] * 2 - 1).to(source)
    queries = F.grid_sample(source[None], grid, padding_mode="border", align_corners=False)
    fine = F.interpolate(target[None], scale_factor=SUBCELLS, mode="bilinear", align_corners=False)
    height, width = fine.shape[-2:]
    similarity = F.normalize(queries[0, :, :, 0], dim=0).T @ F.normalize(fine[0].flatten(1), dim=0)
    best = similarity.argmax(dim=1)
    return torch.stack([(best % width + 0.5) / width, (best // width + 0.5) / height], dim=1)


def matched_share(predicted: Points, truth: Points, alpha: float = 0.1) -> float:
    """PCK: the share of points within alpha × the longer side of the box around the true points."""
    size = (truth.amax(dim=0) - truth.amin(dim=0)).max()
    correct = (predicted - truth).norm(dim=1) <= alpha * size
    return float(correct.float().mean())


def pair_pck(
    source: Readout,
    target: Readout,
    points: Float[Tensor, "batch points 2 2"],
    valid: Bool[Tensor, "batch points"],
    alpha: float = 0.1,
) -> Float[Tensor, " batch"]:
    """PCK of each pair of pictures.

    Args:
        source, target: feature maps.
        points: (batch, points, picture, [x, y]) as fractions of the picture.
        valid: which points count; at least one a pair.
        alpha: threshold, see `matched_share`.
    """
    shares = []
    for index in range(len(source)):
        chosen = points[index][valid[index]].to(source)
        found = match_points(source[index], target[index], chosen[:, 0])
        shares.append(matched_share(found, chosen[:, 1], alpha))
    return torch.tensor(shares)


def best_threshold(same: np.ndarray, different: np.ndarray) -> float:
    """The distance below which two pictures are best called the same.

    Of all that give the most right answers, where both kinds weigh equally, the middle one.
    """
    values = np.unique(np.concatenate([same, different]))
    cuts = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    same_right = np.searchsorted(np.sort(same), cuts, side="left") / len(same)
    different_right = 1 - np.searchsorted(np.sort(different), cuts, side="left") / len(different)
    right = same_right + different_right
    best = np.flatnonzero(right >= right.max() - 1e-12)
    return float(cuts[best[len(best) // 2]])


def same_different_right(same: np.ndarray, different: np.ndarray, threshold: float) -> np.ndarray:
    """1 where a pair is called rightly, all the same pairs first, then the different ones."""
    return np.concatenate([same < threshold, different >= threshold]).astype(float)


def same_different_accuracy(same: np.ndarray, different: np.ndarray) -> float:
    """Share of right same/different answers; each half's threshold is chosen on the other half."""
    halves = [(same[start::2], different[start::2]) for start in (0, 1)]
    if any(len(part) == 0 for half in halves for part in half):
        return float("nan")
    right = [
        same_different_right(*half, best_threshold(*other))
        for half, other in (halves, halves[::-1])
    ]
    return float(np.concatenate(right).mean())
