from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluation.preserve import SEEDS, Variations, box_masks, corners, pose_spread, slopes
from world.seeds import TEST


def test_pose_spread_is_of_the_seeds_of_a_reference() -> None:
    points = torch.rand(3, 1, 18, 2).expand(3, SEEDS, 18, 2).clone()
    assert pose_spread(points).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    points[1] += 0.1 * torch.tensor([-1.0, 1, -1, 1])[:, None, None]
    expected = (2 * 0.01 * 4 / 3) ** 0.5
    assert pose_spread(points).tolist() == pytest.approx([0, expected, 0], abs=1e-6)


def test_slopes_are_of_each_reference() -> None:
    columns = [np.array([10.0, 50.0]), np.array([20.0, 50.0]), np.array([30.0, 50.0])]
    assert slopes((0.0, 0.5, 1.0), columns) == pytest.approx([20, 0])


def test_a_box_as_asked_is_the_box_that_is_measured() -> None:
    box = torch.tensor([0.5, 0.25, 0.5])
    assert corners(box) == {"x0": 0.25, "y0": 0.0, "x1": 0.75, "y1": 0.5}
    mask = box_masks(box[None], 8)[0]
    assert mask[:4, 2:6].all()
    assert int(mask.sum()) == 16


def test_variations_say_nothing_of_clothes_and_looks() -> None:
    cases = Variations.of(TEST[:2])
    assert len(set(cases.seeds)) == len(cases.prompts) == 2 * SEEDS
    for prompt, reference in zip(cases.prompts, cases.references, strict=True):
        assert "shirt" in reference["prompt"]
        assert not {"shirt", "trousers", "hair", "hat", "cap"} & set(prompt.split())
    assert len({reference["seed"] for reference in cases.references}) == 2
    assert set(cases.seeds).isdisjoint(r["seed"] for r in cases.references)
