"""Pictures to files: tensors to images, formats, and the parameters inside a PNG."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from heads_registry.base_model import Pixels
from jobs.request import OutputOptions

PARAMETERS_KEY = "readout"
"""Keyword of the PNG text chunk with the picture's parameters, JSON."""
MEDIA_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}


def to_images(pixels: Pixels) -> list[Image.Image]:
    """Pixels in [-1, 1], (batch, 3, height, width) → 8-bit RGB images, rounded to nearest."""
    scaled = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    arrays: list[np.ndarray] = list(scaled.permute(0, 2, 3, 1).cpu().numpy())
    return [Image.fromarray(array) for array in arrays]


def feature_image(readout: Float[Tensor, "channels h w"]) -> Image.Image:
    """A relative head's map as a picture: its three principal components as red, green, blue.

    Each component fills the range from black to white; of its two signs the one whose largest
    weight is positive is shown, so that the same map always looks the same.
    """
    channels, h, w = readout.shape
    pixels = readout.detach().double().cpu().reshape(channels, h * w)
    centred = pixels - pixels.mean(dim=1, keepdim=True)
    axes = torch.linalg.eigh(centred @ centred.T).eigenvectors.flip(1)[:, :3]
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    shown = axes.T @ centred
    low, high = shown.amin(dim=1, keepdim=True), shown.amax(dim=1, keepdim=True)
    levels = ((shown - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.reshape(-1, h, w).permute(1, 2, 0).numpy())


def encode_image(
    image: Image.Image, output: OutputOptions, parameters: dict[str, Any] | None = None
) -> bytes:
    """An image in the request's format; a PNG may carry `parameters` in a text chunk.

    JPEG and WebP (lossless here) carry none.
    """
    buffer = io.BytesIO()
    if output.format == "png":
        info = PngInfo()
        if output.embed_parameters and parameters is not None:
            info.add_itxt(PARAMETERS_KEY, json.dumps(parameters, sort_keys=True))
        image.save(buffer, "PNG", pnginfo=info)
    elif output.format == "webp":
        image.save(buffer, "WEBP", lossless=True)
    else:
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
