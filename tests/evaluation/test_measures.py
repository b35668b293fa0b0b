from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluation.judge import Judge, soft_argmax
from evaluation.measures import (
    ColourClassifier,
    background_spread,
    garment_colours,
    map_error,
    percentage_of_correct_keypoints,
    to_lab,
)
from evaluation.statistics import bootstrap, mean, mean_ratio


def test_pck_counts_points_within_the_share_of_the_poses_box() -> None:
    truth = torch.zeros(1, 4, 2)
    truth[0, :, 1] = torch.tensor([0.1, 0.3, 0.6, 0.9])
    predicted = truth.clone()
    predicted[0, 1, 0] += 0.05  # box size is 0.8: within 0.1, outside 0.05
    predicted[0, 3, 0] += 0.5  # not counted
    counted = torch.tensor([[True, True, True, False]])
    predicted[0, 2, 1] = truth[0, 2, 1]
    for alpha, expected in ((0.05, 2 / 3), (0.2, 1.0)):
        score = percentage_of_correct_keypoints(predicted, truth, counted, alpha)
        assert float(score) == pytest.approx(expected)


def test_collapsed_backgrounds_have_no_spread() -> None:
    same = torch.full((5, 3, 64, 64), 0.4)
    assert background_spread(same) == pytest.approx(0, abs=1e-6)
    assert background_spread(torch.rand(5, 3, 1, 1).expand(-1, -1, 64, 64)) > 0.1


def test_lab_of_known_colours() -> None:
    lab = to_lab(torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0]]))
    expected = torch.tensor([[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]])
    torch.testing.assert_close(lab, expected, atol=0.1, rtol=0)


def test_garments_are_read_where_the_key_points_say() -> None:
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, 0, 16:32] = 1
    picture[:, 2, 32:56] = 1
    points = torch.zeros(1, 18, 2)
    for index, y in {2: 0.27, 5: 0.27, 8: 0.48, 11: 0.48, 9: 0.85, 12: 0.85}.items():
        points[0, index] = torch.tensor([0.4 if index in (2, 8, 9) else 0.6, y])
    shirt, trousers = garment_colours(picture, points)
    assert shirt[0].tolist() == pytest.approx([1, 0, 0], abs=0.01)
    assert trousers[0].tolist() == pytest.approx([0, 0, 1], abs=0.01)


def test_the_nearest_colour_wins() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = {"red": (0.8, 0.1, 0.1), "blue": (0.1, 0.2, 0.8)}
    colours = torch.cat(
        [torch.tensor(c) + 0.05 * torch.randn(50, 3, generator=generator) for c in centres.values()]
    ).clamp(0, 1)
    classifier = ColourClassifier(colours, ["red"] * 50 + ["blue"] * 50)
    assert classifier(torch.tensor([[0.7, 0.15, 0.1], [0.2, 0.2, 0.9]])) == ["red", "blue"]


def test_the_judge_points_at_the_peak() -> None:
    heatmaps = torch.full((1, 18, 32, 32), -10.0)
    heatmaps[..., 8, 24] = 10
    assert soft_argmax(heatmaps)[0, 0].tolist() == pytest.approx([24.5 / 32, 8.5 / 32], abs=1e-3)
    verdict = Judge()(torch.rand(2, 3, 64, 64))
    assert verdict.keypoints.shape == (2, 18, 2)
    assert map_error(verdict.depth, verdict.depth).tolist() == [0, 0]


def test_intervals_hold_the_truth_and_pairs_stay_pairs() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(5, 1, 200)
    interval = bootstrap(mean, values, draws=500)
    assert interval.low < 5 < interval.high
    ratio = bootstrap(mean_ratio, 2 * values, values, draws=200)
    assert (ratio.low, ratio.high) == (pytest.approx(2), pytest.approx(2))
