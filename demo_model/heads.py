"""Where people's heads are in the training images: small, and what a viewer looks at first."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NECK, RIGHT_EAR, LEFT_EAR = 1, 16, 17


def head_weights(
    keypoints: np.ndarray, size: int, extra: float, device: torch.device | str = "cpu"
) -> Tensor:
    """How much each pixel counts in a loss: 1 + `extra` on heads, scaled to a mean of 1 per image.

    A head is the disc around the middle of the ears that reaches a little beyond the neck.

    Args:
        keypoints: (batch, people, 18, 3), x and y in pixels; missing people are zero.
        size: pixels along a side.

    Returns:
        (batch, 1, size, size) float32, on `device`.
    """
    points = torch.from_numpy(np.array(keypoints, np.float32)).to(device)[..., :2]
    centres = 0.5 * (points[:, :, RIGHT_EAR] + points[:, :, LEFT_EAR])
    radii = 1.1 * (points[:, :, NECK] - centres).norm(dim=2)
    at = torch.arange(size, device=device) + 0.5
    across = (at - centres[..., :1]).square()[:, :, None, :]
    down = (at - centres[..., 1:]).square()[:, :, :, None]
    inside = (across + down <= radii.square()[..., None, None]).any(dim=1, keepdim=True)
    weights = 1.0 + extra * inside
    return weights / weights.mean(dim=(2, 3), keepdim=True)
