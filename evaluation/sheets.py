"""Contact sheets of the measures' pictures, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from evaluation.measures import Pictures

SIZE = 160
Marks = Sequence[tuple[float, float, str]]
"""x, y as fractions of the picture, colour."""


def contact_sheet(rows: Sequence[Pictures], path: Path, marks: Sequence[Marks] = ()) -> None:
    """Save rows of pictures; the marks of a column are rings on each of its pictures."""
    sheet = Image.new("RGB", (SIZE * len(rows[0]), SIZE * len(rows)))
    draw = ImageDraw.Draw(sheet)
    for top, pictures in enumerate(rows):
        for left, picture in enumerate(pictures):
            array = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            image = Image.fromarray(array).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            sheet.paste(image, (SIZE * left, SIZE * top))
            for x, y, colour in marks[left] if marks else ():
                at = SIZE * (left + x), SIZE * (top + y)
                draw.ellipse([at[0] - 5, at[1] - 5, at[0] + 5, at[1] + 5], outline=colour, width=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
