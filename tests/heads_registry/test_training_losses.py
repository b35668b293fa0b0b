"""Laws of the losses, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heads_registry.training.losses import (
    MARGIN,
    appearance_distance,
    balanced_mse,
    correspondence_loss,
    mse,
    triplet_hinge,
)


def maps(count: int, seed: int = 0, channels: int = 3, size: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(
            2, channels, size, size, generator=generator, dtype=torch.float64
        ).requires_grad_()
        for _ in range(count)
    ]


def points(count: int, cells: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    source, target = torch.randint(cells, (2, 2, count), generator=generator)
    return source, target, torch.ones(2, count, dtype=torch.bool)


def test_every_loss_passes_gradcheck() -> None:
    first, second, third = maps(3, channels=2, size=2)
    matched = points(3, cells=4)
    assert torch.autograd.gradcheck(mse, (first, second))
    assert torch.autograd.gradcheck(
        lambda readout: balanced_mse(readout, second.detach().clamp(min=-0.3), (-0.3, 3.0)), first
    )
    assert torch.autograd.gradcheck(
        lambda a, b: correspondence_loss(a, b, *matched), (first, second)
    )
    assert torch.autograd.gradcheck(appearance_distance, (first, second))
    assert torch.autograd.gradcheck(triplet_hinge, (first, second, third))


def test_gathering_rows_first_gives_what_the_whole_matrix_gives() -> None:
    source, target = maps(2)
    source_cells, target_cells, valid = points(5)
    losses = []
    for a, b, p, q in zip(source, target, source_cells, target_cells, strict=True):
        whole = torch.cosine_similarity(a.flatten(1).T[:, None], b.flatten(1).T[None], dim=2) / 0.07
        forth = torch.nn.functional.cross_entropy(whole[p], q)
        losses.append((forth + torch.nn.functional.cross_entropy(whole.T[q], p)) / 2)
    torch.testing.assert_close(
        correspondence_loss(source, target, source_cells, target_cells, valid),
        torch.stack(losses).mean(),
    )


def test_correspondence_is_symmetric_and_points_that_do_not_count_change_nothing() -> None:
    source, target = maps(2)
    first, second, valid = points(5)
    loss = correspondence_loss(source, target, first, second, valid)
    torch.testing.assert_close(correspondence_loss(target, source, second, first, valid), loss)
    padded = [
        torch.cat([cells, torch.zeros(2, 3, dtype=torch.long)], 1) for cells in (first, second)
    ]
    longer = torch.cat([valid, torch.zeros(2, 3, dtype=torch.bool)], 1)
    torch.testing.assert_close(correspondence_loss(source, target, *padded, longer), loss)


def test_a_pair_without_points_does_not_count_and_does_not_make_nan() -> None:
    source, target = maps(2)
    first, second, valid = points(5)
    alone = correspondence_loss(source[:1], target[:1], first[:1], second[:1], valid[:1])
    valid[1] = False
    torch.testing.assert_close(correspondence_loss(source, target, first, second, valid), alone)
    valid[0] = False
    nothing = correspondence_loss(source, target, first, second, valid)
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert source.grad is not None
    assert not source.grad.isnan().any()


def test_matching_features_that_point_apart_cost_nothing() -> None:
    features = torch.eye(9, dtype=torch.float64).reshape(1, 9, 3, 3)
    cells = torch.arange(9)[None]
    valid = torch.ones(1, 9, dtype=torch.bool)
    assert float(correspondence_loss(features, features, cells, cells, valid)) < 1e-5
    wrong = correspondence_loss(features, features, cells, cells.roll(1), valid)
    assert float(wrong) == pytest.approx(1 / 0.07, abs=1e-4)


def test_distance_is_symmetric_scale_free_and_between_0_and_2() -> None:
    first, second = maps(2)
    distance = appearance_distance(first, second)
    torch.testing.assert_close(appearance_distance(second, first), distance)
    torch.testing.assert_close(appearance_distance(3 * first, second), distance)
    zero = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(appearance_distance(first, first), zero)
    torch.testing.assert_close(appearance_distance(first, -first), zero + 2)


def test_the_hinge_is_flat_where_the_margin_is_kept_and_straight_elsewhere() -> None:
    anchor, other = maps(2)
    kept = triplet_hinge(anchor, anchor.detach(), -anchor.detach())
    kept.backward()
    assert float(kept.detach()) == 0
    assert anchor.grad is not None
    assert not anchor.grad.any()
    torch.testing.assert_close(
        triplet_hinge(anchor, other, other), torch.tensor(MARGIN, dtype=torch.float64)
    )
    violated = triplet_hinge(anchor, -anchor, anchor)
    torch.testing.assert_close(violated, torch.tensor(MARGIN + 2, dtype=torch.float64))
