"""Losses of all kinds of heads; pure functions of readouts and what they should be.

Spatial heads say an image (section 4.2). Relative heads say a feature map, and the loss is on
comparisons between the maps of several pictures (section 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from heads_registry.networks import Readout

NULL_TOLERANCE = 2 / 255
"""How far above black, as a fraction of the value range, a pixel still counts as null."""

TEMPERATURE = 0.07
"""Of the correspondence head's softmax; the authors' logit scale is 1/0.07."""

MARGIN = 0.5
"""Of the triplets' hinge."""

Indices = Int[Tensor, "batch points"]
Distance = Float[Tensor, " batch"]


def mse(readout: Readout, target: Readout) -> Float[Tensor, ""]:
    """Mean squared error, for dense signals such as depth."""
    return (readout - target).square().mean()


def balanced_mse(
    readout: Readout, target: Readout, value_range: tuple[float, float]
) -> Float[Tensor, ""]:
    """Mean squared error in which the null and the non-null region weigh equally (section 4.2).

    Null is where every channel is at the range's minimum. Both regions are pooled over the batch;
    where one is empty the other counts alone. The authors' code decides per channel and element,
    so that a red limb is background in green and blue, and gives NaN for an empty foreground.
    """
    low, high = value_range
    null = (target <= low + NULL_TOLERANCE * (high - low)).all(dim=1).float()
    error = (readout - target).square().mean(dim=1)
    parts = []
    for region in (null, 1 - null):
        size = region.sum()
        parts.append(((error * region).sum() / size.clamp(min=1), (size > 0).float()))
    present = parts[0][1] + parts[1][1]
    loss: Tensor = (parts[0][0] + parts[1][0]) / present.clamp(min=1)
    return loss


def element_balanced_mse(
    readout: Readout, target: Readout, value_range: tuple[float, float]
) -> Float[Tensor, ""]:
    """`balanced_mse` as the authors' code has it: null is decided for each channel on its own.

    For comparisons with their heads. Where no element is null, or none is not, the plain mean
    (theirs is NaN in the second case).
    """
    null = target == value_range[0]
    error = (readout - target).square()
    if null.all() or not null.any():
        return error.mean()
    return (error[null].mean() + error[~null].mean()) / 2


def correspondence_loss(
    source: Readout,
    target: Readout,
    source_cells: Indices,
    target_cells: Indices,
    valid: Bool[Tensor, "batch points"],
    temperature: float = TEMPERATURE,
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy of matched points over cosine similarities (section 4.3).

    Each labelled point of one map is a query, every cell of the other map a class, and the logits
    are cosines / temperature. Only the queries' rows of the (cells × cells) similarity matrix are
    computed, which gives the same numbers as gathering them from the whole matrix.

    Args:
        source, target: feature maps of the two pictures of each pair, of one shape.
        source_cells, target_cells: the matched cells, y · w + x.
        valid: which of the points count; pairs have different numbers of them.
        temperature: of the softmax.

    Returns:
        The mean over a pair's points and both directions, then over the pairs that have points;
        0 where none has.
    """
    first = F.normalize(source.flatten(2), dim=1)
    second = F.normalize(target.flatten(2), dim=1)
    forth = _point_entropy(first, second, source_cells, target_cells, temperature)
    back = _point_entropy(second, first, target_cells, source_cells, temperature)
    weight = valid.to(forth.dtype)
    points = weight.sum(dim=1)
    pairs = ((forth + back) / 2 * weight).sum(dim=1) / points.clamp(min=1)
    return pairs.sum() / (points > 0).sum().clamp(min=1)


def _point_entropy(
    queries: Float[Tensor, "batch channels cells"],
    keys: Float[Tensor, "batch channels cells"],
    query_cells: Indices,
    key_cells: Indices,
    temperature: float,
) -> Float[Tensor, "batch points"]:
    index = query_cells[:, None].expand(-1, queries.shape[1], -1)
    rows = torch.gather(queries, 2, index)
    logits = torch.einsum("bcp,bcn->bpn", rows, keys) / temperature
    return F.cross_entropy(logits.flatten(0, 1), key_cells.flatten(), reduction="none").view_as(
        key_cells
    )


def appearance_distance(first: Readout, second: Readout) -> Distance:
    """1 - cosine similarity at every pixel, pooled over the pixels: 0 alike, 2 opposite."""
    return (1 - F.cosine_similarity(first, second, dim=1)).mean(dim=(1, 2))


def triplet_hinge(
    anchor: Readout, positive: Readout, negative: Readout, margin: float = MARGIN
) -> Float[Tensor, ""]:
    """max(0, margin + d(anchor, positive) - d(anchor, negative)), mean over the batch (4.3).

    The authors' code sums over a batch that is always one triplet.
    """
    difference = appearance_distance(anchor, positive) - appearance_distance(anchor, negative)
    return (margin + difference).clamp(min=0).mean()


def groups_hinge(
    readouts: Float[Tensor, "batch pictures channels height width"],
    groups: Sequence[int],
    margin: float = MARGIN,
) -> Float[Tensor, ""]:
    """The hinge of all triplets of an example's pictures: anchor and positive of one group, the
    negative of another; mean over triplets and batch ("batch all", Hermans et al. 2017).

    Args:
        groups: of each picture.
    """
    distances, same = _all_pairs(readouts, groups)
    positives = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    triplets = positives[:, :, None] & ~same[:, None, :]
    difference = distances[:, :, :, None] - distances[:, :, None, :]
    return (margin + difference).clamp(min=0)[:, triplets].mean()


def groups_contrast(
    readouts: Float[Tensor, "batch pictures channels height width"],
    groups: Sequence[int],
    temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of "whose group is it?": for each picture, a softmax of -distance / temperature
    over the others of its example, of which its own group is to have all ("supervised contrastive",
    Khosla et al. 2020, their in-form); mean over the pictures whose group has another, and batch.

    The hinge weighs all triplets inside its margin alike, this the nearest negatives most.

    Args:
        groups: of each picture.
    """
    distances, same = _all_pairs(readouts, groups)
    itself = torch.eye(len(same), dtype=torch.bool, device=same.device)
    logits = (-distances / temperature).masked_fill(itself, -torch.inf)
    asked = (same & ~itself).any(dim=1)
    own = logits.masked_fill(~same, -torch.inf)[:, asked]
    return (logits[:, asked].logsumexp(dim=2) - own.logsumexp(dim=2)).mean()


def _all_pairs(
    readouts: Float[Tensor, "batch pictures channels height width"], groups: Sequence[int]
) -> tuple[Float[Tensor, "batch pictures pictures"], Bool[Tensor, "pictures pictures"]]:
    """`appearance_distance` of all pairs of an example's pictures, and which are of one group."""
    height, width = readouts.shape[-2:]
    unit = F.normalize(readouts, dim=2).flatten(2)
    names = torch.tensor(groups, device=readouts.device)
    distances = 1 - unit @ unit.transpose(1, 2) / (height * width)
    return distances, names[:, None] == names
