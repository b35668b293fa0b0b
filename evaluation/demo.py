"""The measures of docs/results.md for the few pictures of one demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from evaluation.generate import Scenes
from evaluation.measures import background_spread
from evaluation.scores import Scorer

MEASURES = {
    "pose": ("pck@0.05", "pck@0.1"),
    "depth": ("depth_rmse",),
    "edge": ("edge_rmse",),
}


def demo_measures(rows: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Obedience and cost of a demo's guided pictures beside its unguided ones.

    Args:
        rows: of the demo's report: signal, scene_seed, guided and unguided images with paths.
        out: the directory that the paths are relative to.

    Returns:
        Per signal and condition the mean of the signal's measures, the share of garments in the
        caption's colour, and the spread of the backgrounds.
    """
    scorer = Scorer()
    result: dict[str, Any] = {}
    for signal, names in MEASURES.items():
        chosen = [row for row in rows if row["signal"] == signal]
        if not chosen:
            continue
        result[signal] = {}
        for condition in ("unguided", "guided"):
            seeds = [row["scene_seed"] for row in chosen for _ in row[condition]["images"]]
            paths = [image["path"] for row in chosen for image in row[condition]["images"]]
            pictures = torch.stack([_read(out / path) for path in paths])
            scores = scorer(pictures, Scenes.of(seeds, pictures.shape[-1]))
            colours = np.stack([scores["shirt"], scores["trousers"]])
            result[signal][condition] = {
                **{name: round(float(scores[name].mean()), 4) for name in names},
                "colours_as_asked": round(float(colours.mean()), 4),
                "background_spread": round(background_spread(pictures), 4),
                "pictures": len(paths),
            }
    return result


def _read(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
