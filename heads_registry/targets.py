"""Control images as targets: fitted to the picture, brought to the readout's size and range.

One function for the labels that heads are trained on and the controls that guide sampling, so
that a head is asked for what it has learned to say.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

Target = Float[Tensor, "batch channels height width"]
Fit = Literal["cover", "contain", "stretch"]
Resampling = Literal["area", "bicubic", "nearest"]

_PIL_FILTERS = {
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


def fit_image(image: Image.Image, width: int, height: int, fit: Fit = "cover") -> Image.Image:
    """A control image cut or padded to the aspect of a width × height picture, not resized.

    ``cover`` keeps the largest centred part of that aspect, ``contain`` pads with black (no
    control signal), ``stretch`` leaves the image whole and lets the resampling distort it.
    """
    image = image.convert("RGB")
    if fit == "stretch":
        return image
    scale = (min if fit == "cover" else max)(image.width / width, image.height / height)
    box_width, box_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (image.width - box_width) // 2, (image.height - box_height) // 2
    # crop() pads with black where the box reaches outside.
    return image.crop((left, top, left + box_width, top + box_height))


def image_target(
    image: Image.Image,
    size: tuple[int, int],
    value_range: tuple[float, float],
    resampling: Resampling = "area",
) -> Float[Tensor, "channels height width"]:
    """A fitted control image → a target of `size` (h, w), black and white at `value_range`."""
    resized = image.convert("RGB").resize((size[1], size[0]), _PIL_FILTERS[resampling])
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    return _to_range(pixels.float() / 255, value_range)


def label_targets(
    labels: UInt8[Tensor, "batch 3 height width"],
    size: tuple[int, int],
    value_range: tuple[float, float],
    resampling: Resampling = "area",
) -> Target:
    """`image_target` for a batch of label images of the picture's own aspect."""
    pixels = labels.float() / 255
    if resampling == "area":
        pixels = F.adaptive_avg_pool2d(pixels, size)
    elif resampling == "nearest":
        pixels = F.interpolate(pixels, size=size, mode="nearest")
    else:
        pixels = F.interpolate(
            pixels, size=size, mode="bicubic", align_corners=False, antialias=True
        ).clamp(0, 1)
    return _to_range(pixels, value_range)


def readout_image(
    readout: Float[Tensor, "channels height width"], value_range: tuple[float, float]
) -> UInt8[np.ndarray, "height width 3"]:
    """A three-channel readout as a picture: `value_range` becomes black and white."""
    low, high = value_range
    pixels = ((readout.float() - low) / (high - low)).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def _to_range(pixels: Tensor, value_range: tuple[float, float]) -> Tensor:
    low, high = value_range
    return low + (high - low) * pixels
