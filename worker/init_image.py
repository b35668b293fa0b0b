"""An init image on the device: clean latents to start from, what is repainted, and the last paste.

latents   the VAE posterior's mean of the fitted picture
repaint   cells of the latents with a pixel that is at least half white in the mask
finished  mask · drawn + (1 - mask) · picture, in pixels: a grey edge mixes both
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from heads_registry.base_model import BaseModel, Pixels
from heads_registry.targets import Fit, fit_image
from jobs.request import GenerationRequest, InitImage
from worker.controls import LoadImage

HALF_WHITE = 128
"""Where diffusers' inpainting puts the border between black and white too."""


class InvalidMask(Exception):
    """A mask that repaints nothing."""


@dataclass(frozen=True, eq=False)
class Beginning:
    """What a request's pictures start from.

    Attributes:
        picture: the init image at the request's size.
        mask: the mask at that size, white is repainted; None: there is none.
        latents: (channels, h, w) of the picture, on the device.
        repaint: (1, h, w) of the latents; None: everywhere.
        facts: what tells it from others, in the keys of references that start from it.
    """

    picture: Image.Image
    mask: Image.Image | None
    latents: Float[Tensor, "channels h w"]
    repaint: Bool[Tensor, "1 h w"] | None
    facts: dict[str, Any]

    def finished(self, drawn: Image.Image) -> Image.Image:
        """A drawn picture with the init image's own pixels where the mask is black."""
        if self.mask is None:
            return drawn
        return Image.composite(drawn, self.picture, self.mask)


def beginning(
    request: GenerationRequest, model: BaseModel, load_image: LoadImage
) -> Beginning | None:
    """A request's init image, fitted and encoded; None: it has none.

    Raises:
        InvalidMask: the mask repaints nothing.
    """
    init = request.init_image
    if init is None:
        return None
    size = (request.width, request.height)
    picture = picture_of(load_image(init.image), size, init.fit)
    mask = None
    repaint = None
    if init.mask is not None:
        mask = fit_image(load_image(init.mask), *size, init.fit).convert("L")
        mask = mask.resize(size, Image.Resampling.BILINEAR)
        repaint = _repainted(mask, model.vae_scale_factor).to(model.device)
    return Beginning(
        picture, mask, model.encode(pixels_of(picture))[0], repaint, _facts(init, request)
    )


def picture_of(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """An image as a picture of `size` (width, height)."""
    return fit_image(image, *size, fit).resize(size, Image.Resampling.BICUBIC)


def pixels_of(picture: Image.Image) -> Pixels:
    """(1, 3, height, width) in [-1, 1]."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    return pixels.float() / 127.5 - 1


def _repainted(mask: Image.Image, factor: int) -> Bool[Tensor, "1 h w"]:
    white = torch.from_numpy(np.array(mask) >= HALF_WHITE).float()[None]
    repaint = F.max_pool2d(white, factor) > 0
    if not repaint.any():
        raise InvalidMask(
            "the mask has no white in the picture, so nothing would be repainted; paint white what "
            "is to change"
        )
    return repaint


def _facts(init: InitImage, request: GenerationRequest) -> dict[str, Any]:
    mask = init.mask.sha256 if init.mask else None
    return {
        "image": init.image.sha256,
        "fit": init.fit,
        "mask": mask,
        "first_step": request.first_step,
    }
