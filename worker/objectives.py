"""Objectives: the distance between a readout and its target, one number an item; pure functions.

A readout is what a head says of the item, (batch, channels, h, w). The target of a spatial head is
a control image in readout units; that of a relative head (section 4.3) is the same head's readout
of a reference at the same timestep, a feature map compared by its cosine. Points are in pixels of
the map, (y, x), whole numbers at the pixels' centres; boxes are (x0, y0, x1, y1) in pixels of the
map, x1 and y1 exclusive.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Real
from torch import Tensor

from heads_registry.networks import Readout

Points = Real[Tensor, "points 2"]
Box = tuple[int, int, int, int]
Distance = Float[Tensor, " batch"]


def spatial_distance(readout: Readout, target: Readout) -> Distance:
    """d(r, r̂) of section 3.2 for spatially aligned heads: the mean squared error of each item.

    In squared readout units; its square root is what results report as a control's distance.
    The authors' code first maps both to the latents' range over the whole batch, a common factor
    which the normalised update removes and which made an item depend on its neighbours.
    """
    return (readout - target).square().mean(dim=(1, 2, 3))


def correspondence_distance(
    readout: Readout, reference: Readout, source: Points, destination: Points
) -> Distance:
    """Section 4.3, dragging: -½ mean s(source → destination) + ½ mean s(source → source).

    s = (cosine + 1) / 2 compares the reference at `source` with the item at the other point. The
    first term asks the content to arrive, the second, anti-ghosting, to leave. In [-½, ½].

    Only the points' features are gathered and compared, which gives what a matrix of all pairs of
    pixels would give at those points, nearly for free. Deviation: points between pixels are read
    bilinearly, where the authors' code rounds them (ADR 7).
    """
    wanted = _gather(reference, source)
    arrived = _similarity(wanted, _gather(readout, destination))
    stayed = _similarity(wanted, _gather(readout, source))
    return 0.5 * (stayed.mean(dim=1) - arrived.mean(dim=1))


def correspondence_error(
    readout: Readout, reference: Readout, source: Points, destination: Points
) -> Distance:
    """1 - mean s(source → destination): what results report of a drag; 0 has arrived."""
    arrived = _similarity(_gather(reference, source), _gather(readout, destination))
    return 1 - arrived.mean(dim=1)


def appearance_distance(
    readout: Readout, reference: Readout, region: Bool[Tensor, "h w"] | None = None
) -> Distance:
    """Section 4.3: the mean over pixels, or those of a region, of 1 - cosine; in [0, 2]."""
    distance = 1 - F.cosine_similarity(readout, reference, dim=1)
    if region is None:
        return distance.mean(dim=(1, 2))
    return distance[:, region].mean(dim=1)


def boxed_distance(
    readout: Readout, reference: Readout, boxes: Sequence[tuple[Box, Box]]
) -> Distance:
    """`appearance_distance` between boxes: each pair is one of the reference and one of the item.

    Section 9.1, faces: both crops are brought to the size of the whole map, bilinearly, as in the
    authors' code; the mean over the pairs.
    """
    total = torch.stack(
        [appearance_distance(_crop(readout, own), _crop(reference, its)) for its, own in boxes]
    )
    return total.mean(dim=0)


def _gather(readout: Readout, points: Points) -> Float[Tensor, "batch channels points"]:
    """The map at the points, bilinearly; its border is repeated outside. By indices, whose gradient
    is the same in every run, which `grid_sample`'s on a GPU is not; without a copy to the GPU."""
    h, w = readout.shape[-2:]
    y, x = points[:, 0].clamp(0, h - 1), points[:, 1].clamp(0, w - 1)
    top, left = y.floor().long(), x.floor().long()
    bottom, right = (top + 1).clamp(max=h - 1), (left + 1).clamp(max=w - 1)
    down, across = (y - top).to(readout.dtype), (x - left).to(readout.dtype)
    at_left = torch.lerp(readout[:, :, top, left], readout[:, :, bottom, left], down)
    at_right = torch.lerp(readout[:, :, top, right], readout[:, :, bottom, right], down)
    return torch.lerp(at_left, at_right, across)


def _similarity(
    first: Float[Tensor, "batch channels points"], second: Float[Tensor, "batch channels points"]
) -> Float[Tensor, "batch points"]:
    return (F.cosine_similarity(first, second, dim=1) + 1) / 2


def _crop(readout: Readout, box: Box) -> Readout:
    left, top, right, bottom = box
    crop = readout[:, :, top:bottom, left:right]
    return F.interpolate(crop, size=readout.shape[-2:], mode="bilinear", align_corners=False)
