"""Contact sheets: rows of pictures, each with its name and prompt beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL_PX = 192
TILE_PX = 128
LINE_PX = 24
GAP_PX = 6
MARGIN_PX = 24
LABEL_PX = 210
HEADER_PX = 78
COLUMNS = ("control", "unguided", "guided", "readout of guided")
PAPER, INK, FAINT = (250, 249, 246), (32, 32, 36), (120, 118, 112)


@dataclass(frozen=True)
class SheetRow:
    """One line of the sheet."""

    name: str
    prompt: str
    note: str
    pictures: tuple[Image.Image, ...]


def contact_sheet(
    rows: Sequence[SheetRow], title: str, columns: Sequence[str] = COLUMNS
) -> Image.Image:
    """All rows under one another, with a wider gap where another name begins."""
    gaps = [MARGIN_PX if _begins(rows, index) else GAP_PX for index in range(len(rows))]
    width = 2 * MARGIN_PX + LABEL_PX + len(columns) * (CELL_PX + GAP_PX) - GAP_PX
    height = HEADER_PX + sum(gaps) + len(rows) * CELL_PX + MARGIN_PX
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _header(draw, title, columns)
    top = HEADER_PX
    for row, gap in zip(rows, gaps, strict=True):
        top += gap
        _label(draw, row, top)
        for column, picture in enumerate(row.pictures):
            cell = picture.convert("RGB").resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
            sheet.paste(cell, (_left(column), top))
        top += CELL_PX
    return sheet


def labelled_grid(rows: Sequence[Sequence[tuple[str, Image.Image]]]) -> Image.Image:
    """Rows of equally many pictures, each with its label above it."""
    step, line = TILE_PX + GAP_PX, TILE_PX + LINE_PX
    size = len(rows[0]) * step - GAP_PX + 2 * MARGIN_PX, len(rows) * line + 2 * MARGIN_PX
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, tiles in enumerate(rows):
        for column, (label, picture) in enumerate(tiles):
            left, top = MARGIN_PX + column * step, MARGIN_PX + row * line + LINE_PX
            tile = picture.convert("RGB").resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
            sheet.paste(tile, (left, top))
            draw.text((left, top - 5), label, INK, ImageFont.load_default(13), anchor="ls")
    return sheet


def _begins(rows: Sequence[SheetRow], index: int) -> bool:
    return index > 0 and rows[index].name != rows[index - 1].name


def _left(column: int) -> int:
    return MARGIN_PX + LABEL_PX + column * (CELL_PX + GAP_PX)


def _header(draw: ImageDraw.ImageDraw, title: str, columns: Sequence[str]) -> None:
    draw.text((MARGIN_PX, 18), title, INK, ImageFont.load_default(20))
    for column, name in enumerate(columns):
        centre = _left(column) + CELL_PX // 2
        draw.text((centre, HEADER_PX - 8), name, FAINT, ImageFont.load_default(15), anchor="ms")


def _label(draw: ImageDraw.ImageDraw, row: SheetRow, top: int) -> None:
    draw.text((MARGIN_PX, top), row.name, INK, ImageFont.load_default(18))
    text = "\n".join(textwrap.wrap(row.prompt, 27)[:7])
    small = ImageFont.load_default(13)
    draw.multiline_text((MARGIN_PX, top + 28), text, INK, small, spacing=5)
    draw.text((MARGIN_PX, top + CELL_PX - 4), row.note, FAINT, small, anchor="ls")
