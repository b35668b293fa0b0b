"""Measures of obedience and of what it cost; pure functions of pictures, verdicts and truths."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Points = Float[Tensor, "batch points 2"]
Pictures = Float[Tensor, "batch 3 height width"]

RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP = 2, 5, 8, 11
RIGHT_KNEE, LEFT_KNEE = 9, 12


def percentage_of_correct_keypoints(
    predicted: Points, truth: Points, counted: Bool[Tensor, "batch points"], alpha: float
) -> Float[Tensor, " batch"]:
    """PCK of section 5: the share of points within alpha × the size of the predicted pose's box.

    Args:
        predicted, truth: (x, y) as fractions of a square picture.
        counted: which points the control holds.
        alpha: threshold; the box's size is its longer side, over the counted points.
    """
    distance = (predicted - truth).norm(dim=2)
    large = torch.where(counted[..., None], predicted, -torch.inf).amax(dim=1)
    small = torch.where(counted[..., None], predicted, torch.inf).amin(dim=1)
    size = (large - small).amax(dim=1, keepdim=True)
    correct = (distance <= alpha * size) & counted
    return correct.sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def background_spread(pictures: Pictures) -> float:
    """Standard deviation over pictures of the colour of their borders; low: they collapsed.

    The mean over the border cells above the bottom row, and over channels, of pictures in [0, 1]
    reduced to 8×8.
    """
    small = torch.nn.functional.adaptive_avg_pool2d(pictures, 8)
    border = torch.ones(8, 8, dtype=torch.bool)
    border[1:-1, 2:-2] = False
    border[-1] = False
    return float(small[:, :, border].std(dim=0).mean())


def map_error(
    predicted: Float[Tensor, "batch h w"], truth: Float[Tensor, "batch h w"]
) -> Float[Tensor, " batch"]:
    """Root mean squared error of each picture."""
    return (predicted - truth).square().mean(dim=(1, 2)).sqrt()


def garment_colours(
    pictures: Pictures, keypoints: Points
) -> tuple[Float[Tensor, "batch 3"], Float[Tensor, "batch 3"]]:
    """Median sRGB of the torso and of the thighs, at points between the judge's key points."""
    torso = []
    for down in (0.25, 0.4, 0.55, 0.7):
        for across in (0.3, 0.5, 0.7):
            shoulder = torch.lerp(keypoints[:, RIGHT_SHOULDER], keypoints[:, LEFT_SHOULDER], across)
            hip = torch.lerp(keypoints[:, RIGHT_HIP], keypoints[:, LEFT_HIP], across)
            torso.append(torch.lerp(shoulder, hip, down))
    thighs = [
        torch.lerp(keypoints[:, hip], keypoints[:, knee], down)
        for hip, knee in ((RIGHT_HIP, RIGHT_KNEE), (LEFT_HIP, LEFT_KNEE))
        for down in (0.3, 0.45, 0.6, 0.75)
    ]
    return _median_colour(pictures, torso), _median_colour(pictures, thighs)


def _median_colour(pictures: Pictures, points: list[Tensor]) -> Float[Tensor, "batch 3"]:
    grid = torch.stack(points, dim=1)[:, :, None] * 2 - 1
    colours = torch.nn.functional.grid_sample(pictures, grid, align_corners=False)
    return colours[..., 0].median(dim=2).values


def to_lab(colours: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """sRGB in [0, 1] → CIE L*a*b* (D65)."""
    linear = torch.where(
        colours <= 0.04045, colours / 12.92, ((colours.clamp(min=0) + 0.055) / 1.055) ** 2.4
    )
    matrix = torch.tensor(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = linear @ matrix.T / torch.tensor([0.95047, 1.0, 1.08883])
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-9) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


class ColourClassifier:
    """Names the palette colour that a garment's colour is nearest to, fitted on clean renders.

    Each named colour is the mean and the covariance, in Lab, of that colour as it appears under
    the world's light; the nearest by Mahalanobis distance wins.
    """

    def __init__(self, colours: Float[Tensor, "n 3"], names: list[str]) -> None:
        lab = to_lab(colours)
        self.names = sorted(set(names))
        array = np.array(names)
        self.means, self.inverses, self.log_dets = [], [], []
        for name in self.names:
            samples = lab[torch.from_numpy(array == name)]
            covariance = torch.cov(samples.T) + 4.0 * torch.eye(3)
            self.means.append(samples.mean(dim=0))
            self.inverses.append(torch.linalg.inv(covariance))
            self.log_dets.append(torch.logdet(covariance))

    def __call__(self, colours: Float[Tensor, "n 3"]) -> list[str]:
        """The name of each colour, sRGB in [0, 1]."""
        lab = to_lab(colours)
        scores = []
        for mean, inverse, log_det in zip(self.means, self.inverses, self.log_dets, strict=True):
            centred = lab - mean
            scores.append((centred @ inverse * centred).sum(dim=1) + log_det)
        return [self.names[index] for index in torch.stack(scores, dim=1).argmin(dim=1)]
