"""What a picture starts from and keeps: latents of an init image or the way of a reference, what is
repainted, and the last paste.

latents     the VAE posterior's mean of the fitted init image
trajectory  the states of the reference that a mask lies on
repaint     cells of the latents with a pixel that is at least half white in the mask
finished    mask · drawn + (1 - mask) · picture, in pixels: a grey edge mixes both
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
from jobs.request import CorrespondenceControl, GenerationRequest, InvertedReference
from worker.controls import LoadImage, cell_of

HALF_WHITE = 128
"""Where diffusers' inpainting puts the border between black and white too."""


class InvalidMask(Exception):
    """A mask that repaints nothing, or not where it would have to."""


@dataclass(frozen=True, eq=False)
class Mask:
    """Where a picture is repainted.

    Attributes:
        image: at the request's size; white is repainted.
        repaint: (1, h, w) of the latents.
        facts: what tells it from others, in the keys of references.
    """

    image: Image.Image
    repaint: Bool[Tensor, "1 h w"]
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Beginning:
    """What a request's pictures start from, and keep where its mask is black.

    Attributes:
        picture: the init image at the request's size, or what the reference shows.
        mask: of the request; None: everything is repainted.
        facts: what tells it from others, in the keys of references that start from it.
        latents: (channels, h, w) of the init image, on the device; None: there is none.
        trajectory: (states, channels, h, w) of the reference; None: there is an init image.
    """

    picture: Image.Image
    mask: Mask | None
    facts: dict[str, Any]
    latents: Float[Tensor, "channels h w"] | None = None
    trajectory: Float[Tensor, "states channels h w"] | None = None

    @property
    def repaint(self) -> Bool[Tensor, "1 h w"] | None:
        """Where the latents are repainted; None: everywhere."""
        return None if self.mask is None else self.mask.repaint

    def finished(self, drawn: Image.Image) -> Image.Image:
        """A drawn picture with the pixels of what is kept where the mask is black."""
        if self.mask is None:
            return drawn
        return Image.composite(drawn, self.picture, self.mask.image)


def mask_of(request: GenerationRequest, model: BaseModel, load_image: LoadImage) -> Mask | None:
    """A request's mask, fitted as the picture is that it lies on; None: it has none.

    Raises:
        InvalidMask: it repaints nothing, or not where a drag ends.
    """
    if request.mask is None:
        return None
    fit: Fit = "stretch"  # a sampled reference has the picture's size
    if request.init_image is not None:
        fit = request.init_image.fit
    elif isinstance(request.reference, InvertedReference):
        fit = request.reference.fit
    size = (request.width, request.height)
    image = fit_image(load_image(request.mask), *size, fit).convert("L")
    image = image.resize(size, Image.Resampling.BILINEAR)
    repaint = _repainted(image, model.vae_scale_factor)
    _check_drags(request, repaint)
    return Mask(image, repaint.to(model.device), {"mask": request.mask.sha256, "fit": fit})


def init_image(
    request: GenerationRequest, mask: Mask | None, model: BaseModel, load_image: LoadImage
) -> Beginning | None:
    """A request's init image, fitted and encoded; None: it has none."""
    init = request.init_image
    if init is None:
        return None
    picture = picture_of(load_image(init.image), (request.width, request.height), init.fit)
    facts = {
        "image": init.image.sha256,
        "fit": init.fit,
        "mask": None if mask is None else mask.facts,
        "first_step": request.first_step,
    }
    return Beginning(picture, mask, facts, latents=model.encode(pixels_of(picture))[0])


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


def _check_drags(request: GenerationRequest, repaint: Bool[Tensor, "1 h w"]) -> None:
    _, h, w = repaint.shape
    for control in request.controls:
        points = control.points if isinstance(control, CorrespondenceControl) else ()
        for index, drag in enumerate(points):
            y, x = cell_of(drag.destination.x, drag.destination.y, (h, w))
            if not repaint[0, y, x]:
                raise InvalidMask(
                    f"pair {index} of the points ends where the mask is black, so nothing can come "
                    "there; paint white where it begins, where it ends and what goes with it"
                )
