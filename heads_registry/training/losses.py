"""Losses of the spatial heads; pure functions of a readout and its target."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from heads_registry.networks import Readout

NULL_TOLERANCE = 2 / 255
"""How far above black, as a fraction of the value range, a pixel still counts as null."""


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
