"""Pictures of how a training went: what heads say of held-out examples, and which taps they mix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from heads_registry.networks import ReadoutHead
from heads_registry.targets import readout_image
from heads_registry.training.losses import appearance_distance
from heads_registry.training.measures import match_points
from heads_registry.training.recipe import HeadRecipe
from heads_registry.training.tasks import Examples, Readouts, SpatialTask, Task

TILE = 128
"""Side of a tile of the sheets, px, and height of a line of text under it."""
LINE = 14
POINTS_DRAWN = 12


def preview_sheet(
    task: Task, recipe: HeadRecipe, examples: Examples, readouts: Mapping[float, Readouts]
) -> Image.Image:
    """One line an example: its pictures, then what the head says at each fraction of the schedule.

    Spatial heads: the label and the readouts. Correspondence: points of the first picture and
    where they are found in the second. Triplets: the distances to positive, edit and other.

    Args:
        task, recipe: of the head.
        examples: held-out ones.
        readouts: by fraction of the schedule, of those examples.
    """
    rows = []
    for index in range(len(examples)):
        one = examples[index : index + 1]
        maps = {fraction: values[index : index + 1] for fraction, values in readouts.items()}
        tiles = [_tile(task.images[row].permute(1, 2, 0).numpy()) for row in one.rows[0].tolist()]
        if isinstance(task, SpatialTask):
            rows.append(tiles + _spatial(task, recipe, one, maps))
        elif one.points is not None:
            rows.append([_captioned(tile, "") for tile in tiles] + _matches(tiles, one, maps))
        else:
            rows.append(_distances(tiles, maps))
    return _grid(rows)


def mixing_plot(head: ReadoutHead, taps: Sequence[str]) -> Image.Image:
    """How much of each tap a head mixes (the softmax of section 4.1), as bars."""
    shares = head.mixing_weights.detach().softmax(dim=0).tolist()
    image = Image.new("RGB", (520, 16 + 18 * len(shares)), "white")
    draw = ImageDraw.Draw(image)
    for index, (tap, share) in enumerate(zip(taps, shares, strict=True)):
        top = 8 + 18 * index
        draw.text((8, top + 1), tap, fill="black")
        length = round(240 * share / max(shares))
        draw.rectangle((200, top + 2, 200 + length, top + 14), fill=(70, 110, 180))
        draw.text((206 + length, top + 1), f"{100 * share:.1f} %", fill="black")
    return image


def _spatial(
    task: SpatialTask, recipe: HeadRecipe, one: Examples, maps: Mapping[float, Readouts]
) -> list[Image.Image]:
    targets = task.targets(recipe, next(iter(maps.values())), one)
    pictures = [targets[0].cpu(), *(values[0, 0].cpu() for values in maps.values())]
    return [_tile(readout_image(picture[:3], recipe.value_range)) for picture in pictures]


def _matches(
    tiles: list[Image.Image], one: Examples, maps: Mapping[float, Readouts]
) -> list[Image.Image]:
    assert one.points is not None
    assert one.valid is not None
    points = one.points[0][one.valid[0]][:POINTS_DRAWN]
    drawn = []
    for fraction, values in maps.items():
        found = match_points(values[0, 0].cpu(), values[0, 1].cpu(), points[:, 0])
        pair = Image.new("RGB", (2 * TILE, TILE))
        for side, places in enumerate((points[:, 0], found)):
            tile = tiles[side].copy()
            draw = ImageDraw.Draw(tile)
            for number, (x, y) in enumerate((places * TILE).tolist()):
                colour = Image.new("HSV", (1, 1), (number * 255 // POINTS_DRAWN, 255, 255))
                box = (x - 3, y - 3, x + 3, y + 3)
                draw.ellipse(box, fill=colour.convert("RGB").getpixel((0, 0)), outline="white")
            pair.paste(tile, (side * TILE, 0))
        drawn.append(_captioned(pair, f"t = {fraction:g} T"))
    return drawn


def _distances(tiles: list[Image.Image], maps: Mapping[float, Readouts]) -> list[Image.Image]:
    """Under the anchor the fractions, under the others their distances at them."""
    lines: list[list[str]] = [["t / T: distance to the anchor"]]
    for index in range(1, len(tiles)):
        lines.append(
            [
                f"{fraction:g}: {float(appearance_distance(values[:, 0], values[:, index])):.3f}"
                for fraction, values in maps.items()
            ]
        )
    names = ("anchor", "positive", "edit", "other")
    return [
        _captioned(tile, name, *text) for tile, name, text in zip(tiles, names, lines, strict=True)
    ]


def _tile(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.NEAREST)


def _captioned(tile: Image.Image, *lines: str) -> Image.Image:
    image = Image.new("RGB", (tile.width, tile.height + LINE * len(lines)), "white")
    image.paste(tile, (0, 0))
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((3, tile.height + LINE * number + 1), line, fill="black")
    return image


def _grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    heights = [max(tile.height for tile in row) for row in rows]
    widths = [sum(tile.width + 2 for tile in row) for row in rows]
    sheet = Image.new("RGB", (max(widths), sum(heights) + 2 * len(rows)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for tile in row:
            sheet.paste(tile, (left, top))
            left += tile.width + 2
        top += height + 2
    return sheet


def spread(examples: Examples, count: int) -> Examples:
    """`count` examples, evenly from all."""
    index = torch.linspace(0, len(examples) - 1, min(count, len(examples))).round().long()
    return Examples(
        examples.rows[index],
        None if examples.points is None else examples.points[index],
        None if examples.valid is None else examples.valid[index],
    )
