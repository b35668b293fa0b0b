"""Contact sheets: grids of images with captions, as PNG; knows pictures only."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def write_sheet(
    path: Path,
    images: np.ndarray,
    captions: Sequence[str] = (),
    columns: int = 8,
    tile_px: int = 128,
) -> None:
    """Writes (count, height, width, 3) uint8 images as a grid, each with its caption below."""
    text_px = 44 if captions else 0
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * tile_px, rows * (tile_px + text_px)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = index % columns * tile_px, index // columns * (tile_px + text_px)
        tile = Image.fromarray(image).resize((tile_px, tile_px), Image.Resampling.BICUBIC)
        sheet.paste(tile, (left, top))
        if index < len(captions):
            lines = textwrap.wrap(captions[index], 26)[:4]
            draw.multiline_text(
                (left + 2, top + tile_px), "\n".join(lines), "black", font_size=9, spacing=1
            )
    temporary = path.with_suffix(".tmp")
    sheet.save(temporary, format="PNG")
    temporary.rename(path)
