"""Objectives: the distance between a readout and its target, one number an item; pure functions."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from heads_registry.networks import Readout


def spatial_distance(readout: Readout, target: Readout) -> Float[Tensor, " batch"]:
    """d(r, r̂) of section 3.2 for spatially aligned heads: the mean squared error of each item.

    In squared readout units; its square root is what results report as a control's distance.
    The authors' code first maps both to the latents' range over the whole batch, a common factor
    which the normalised update removes and which made an item depend on its neighbours.
    """
    return (readout - target).square().mean(dim=(1, 2, 3))
