"""Pictures to files: tensors to images, formats, and the parameters inside a PNG."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

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
