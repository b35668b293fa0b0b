from __future__ import annotations

import math

import numpy as np
import torch

from heads_registry.training.measures import (
    best_threshold,
    match_points,
    matched_share,
    pair_pck,
    same_different_accuracy,
)


def waves(shift: float = 0.0, size: int = 16) -> torch.Tensor:
    """Smooth features that are different everywhere, moved to the right by a share of the map."""
    centres = (torch.arange(size) + 0.5) / size
    x, y = (centres - shift)[None, :].expand(size, -1), centres[:, None].expand(-1, size)
    parts = [function(math.pi * axis) for axis in (x, y) for function in (torch.sin, torch.cos)]
    return torch.stack(parts)


def test_points_are_found_where_the_features_have_moved_to() -> None:
    points = torch.tensor([[0.3, 0.4], [0.52, 0.71], [0.41, 0.22]])
    found = match_points(waves(), waves(0.25), points)
    assert (found - (points + torch.tensor([0.25, 0.0]))).abs().max() < 0.02


def test_pck_counts_within_the_box_of_the_true_points() -> None:
    truth = torch.tensor([[0.2, 0.2], [0.7, 0.4], [0.5, 0.3]])  # 0.5 wide: 0.05 counts
    off = torch.tensor([[0.04, 0.0], [0.06, 0.0], [0.0, -0.045]])
    assert matched_share(truth + off, truth, 0.1) == float(np.float32(2 / 3))


def test_points_that_do_not_count_are_left_out() -> None:
    points = torch.tensor([[0.3, 0.4], [0.52, 0.71], [0.9, 0.9]])
    moved = points + torch.tensor([0.25, 0.0])
    moved[2] = 0.0
    pair = torch.stack([points, moved], dim=1)[None]
    maps = waves()[None], waves(0.25)[None]
    assert pair_pck(*maps, pair, torch.tensor([[True, True, False]])).tolist() == [1.0]
    assert pair_pck(*maps, pair, torch.tensor([[True, True, True]]))[0] < 1


def test_the_threshold_divides_what_can_be_divided_and_is_judged_on_other_pairs() -> None:
    same, different = np.array([0.1, 0.2, 0.15, 0.25]), np.array([0.5, 0.4, 0.6, 0.7])
    assert 0.25 < best_threshold(same, different) < 0.4
    assert same_different_accuracy(same, different) == 1.0
    rng = np.random.default_rng(0)
    assert abs(same_different_accuracy(rng.random(2000), rng.random(2000)) - 0.5) < 0.05
