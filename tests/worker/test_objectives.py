"""Laws of the objectives, in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.guidance import Objective
from worker.objectives import (
    appearance_distance,
    boxed_distance,
    correspondence_distance,
    correspondence_error,
    spatial_distance,
)

SOURCE = torch.tensor([[0, 1], [3, 4], [3, 4]])
DESTINATION = torch.tensor([[2, 2], [0, 0], [4, 1]])
REGION = torch.zeros(5, 6, dtype=torch.bool).index_fill(0, torch.tensor([1, 2]), True)
BOXES = [((0, 0, 3, 2), (1, 1, 6, 5)), ((2, 0, 4, 5), (0, 3, 2, 5))]
RELATIVE: dict[str, Objective] = {
    "correspondence": partial(correspondence_distance, source=SOURCE, destination=DESTINATION),
    "correspondence_error": partial(correspondence_error, source=SOURCE, destination=DESTINATION),
    "appearance": appearance_distance,
    "region": partial(appearance_distance, region=REGION),
    "boxes": partial(boxed_distance, boxes=BOXES),
}
relative = pytest.mark.parametrize("objective", RELATIVE.values(), ids=RELATIVE)


@pytest.fixture
def maps() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 2, 7, 5, 6, generator=generator, dtype=torch.float64)
    return first, second


@pytest.mark.parametrize(
    "objective", [spatial_distance, *RELATIVE.values()], ids=["spatial", *RELATIVE]
)
def test_gradients_are_right_and_items_apart(
    objective: Objective, maps: tuple[Tensor, Tensor]
) -> None:
    readout, reference = maps
    readout = readout.requires_grad_()
    assert torch.autograd.gradcheck(lambda value: objective(value, reference), (readout,))
    together = objective(readout, reference)
    alone = torch.cat([objective(readout[[row]], reference[[row]]) for row in range(2)])
    torch.testing.assert_close(together, alone)
    (gradient,) = torch.autograd.grad(together[0], readout)
    assert not gradient[1].any()


@relative
def test_only_directions_of_features_count(
    objective: Objective, maps: tuple[Tensor, Tensor]
) -> None:
    readout, reference = maps
    rotation = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64)).Q
    plain = objective(readout, reference)
    if objective is not RELATIVE["boxes"]:  # resizing mixes pixels of different lengths
        loud = torch.rand(2, 1, 5, 6, dtype=torch.float64) + 0.5
        torch.testing.assert_close(objective(readout * loud, reference), plain)
    turned = [torch.einsum("ij,bjhw->bihw", rotation, value) for value in maps]
    torch.testing.assert_close(objective(turned[0], turned[1]), plain)


def test_correspondence_is_what_the_matrix_of_all_pairs_says(maps: tuple[Tensor, Tensor]) -> None:
    readout, reference = maps
    flat = [F.normalize(value.flatten(2), dim=1) for value in (reference, readout)]
    similarity = (torch.einsum("bci,bcj->bij", *flat) + 1) / 2
    source, destination = (points[:, 0] * 6 + points[:, 1] for points in (SOURCE, DESTINATION))
    arrived = similarity[:, source, destination].mean(dim=1)
    stayed = similarity[:, source, source].mean(dim=1)
    expected = -0.5 * arrived + 0.5 * stayed
    torch.testing.assert_close(
        correspondence_distance(readout, reference, SOURCE, DESTINATION), expected
    )
    torch.testing.assert_close(
        correspondence_error(readout, reference, SOURCE, DESTINATION), 1 - arrived
    )


def test_a_drag_that_has_arrived_is_at_the_least(maps: tuple[Tensor, Tensor]) -> None:
    """Content at its destination and its opposite where it was: -½."""
    reference = maps[1]
    readout = -reference.clone()
    readout[:, :, 2, 2] = reference[:, :, 0, 1]
    source, destination = SOURCE[:1], DESTINATION[:1]
    assert correspondence_distance(readout, reference, source, destination).tolist() == (
        pytest.approx([-0.5, -0.5])
    )
    assert correspondence_error(readout, reference, source, destination).tolist() == (
        pytest.approx([0, 0], abs=1e-12)
    )


def test_the_order_of_points_and_boxes_does_not_matter(maps: tuple[Tensor, Tensor]) -> None:
    shuffled: dict[str, Objective] = {
        "correspondence": partial(
            correspondence_distance, source=SOURCE.flip(0), destination=DESTINATION.flip(0)
        ),
        "boxes": partial(boxed_distance, boxes=BOXES[::-1]),
    }
    for name, other in shuffled.items():
        torch.testing.assert_close(other(*maps), RELATIVE[name](*maps))


def test_appearance_is_zero_on_itself_and_two_on_its_opposite(
    maps: tuple[Tensor, Tensor],
) -> None:
    readout, other = maps
    for objective in (appearance_distance, partial(appearance_distance, region=REGION)):
        assert objective(readout, readout).tolist() == pytest.approx([0, 0], abs=1e-9)
        assert objective(readout, -readout).tolist() == pytest.approx([2, 2])
    everywhere = torch.ones(5, 6, dtype=torch.bool)
    torch.testing.assert_close(
        appearance_distance(readout, other, everywhere), appearance_distance(readout, other)
    )


def test_what_lies_outside_a_region_or_a_box_has_no_say(maps: tuple[Tensor, Tensor]) -> None:
    readout, reference = maps
    changed = torch.where(REGION, readout, readout + 1)
    torch.testing.assert_close(
        appearance_distance(changed, reference, REGION),
        appearance_distance(readout, reference, REGION),
    )
    box = (0, 1, 6, 3)  # the region again
    torch.testing.assert_close(
        boxed_distance(changed, reference, [(box, box)]),
        boxed_distance(readout, reference, [(box, box)]),
    )
    whole = (0, 0, 6, 5)
    torch.testing.assert_close(
        boxed_distance(readout, reference, [(whole, whole)]),
        appearance_distance(readout, reference),
    )


def test_a_point_between_pixels_is_read_bilinearly(maps: tuple[Tensor, Tensor]) -> None:
    readout, reference = maps
    places = torch.tensor([[1.25, 2.5], [-3.0, 9.0]])
    grid = ((places.flip(1) + 0.5) / torch.tensor([6, 5]) * 2 - 1).double()
    expected = [
        F.grid_sample(
            value, grid[None, :, None].expand(2, -1, -1, -1), padding_mode="border",
            align_corners=False,
        )[..., 0]
        for value in maps
    ]  # fmt: skip
    arrived = (F.cosine_similarity(expected[1][..., :1], expected[0][..., 1:], dim=1) + 1) / 2
    found = correspondence_error(readout, reference, places[:1], places[1:])
    torch.testing.assert_close(found, 1 - arrived[:, 0], rtol=1e-5, atol=1e-6)
