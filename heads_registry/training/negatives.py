"""Hard negatives of relative heads: anchors that the base model itself has edited (section 4.3).

SDEdit noises a picture and denoises it again: what comes out has the anchor's layout and another
surface, or another face. They are made once, and kept as PNG beside the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from heads_registry.base_model import BaseModel
from heads_registry.training.data import Pictures, stack
from heads_registry.training.groups import Grouped
from heads_registry.training.recipe import NegativesRecipe

BATCH = 16


def anchor_rows(grouped: Grouped, per_group: int) -> list[int]:
    """The pictures that get a negative: `per_group` of each group, spread evenly."""
    rows: list[int] = []
    for group in grouped.groups:
        count = min(per_group, len(group))
        rows += [
            group[round(index * (len(group) - 1) / max(1, count - 1))] for index in range(count)
        ]
    return rows


def make_negatives(
    model: BaseModel,
    grouped: Grouped,
    rows: Sequence[int],
    recipe: NegativesRecipe,
    cache: Path,
    seed: int = 0,
) -> Pictures:
    """The edits of pictures `rows`, from `cache` where they are there already.

    Strength, prompt and noise of an edit depend on the seed and its place in `rows` alone, so a
    run that was stopped goes on and gives the same.
    """
    folder = cache / _key(model, grouped, rows, recipe, seed)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    strengths = rng.choice(recipe.strength, len(rows))
    captions = _prompts(grouped, rows, recipe, rng)
    missing = [index for index in range(len(rows)) if not _file(folder, index).is_file()]
    with tqdm(total=len(missing), desc="negatives", mininterval=5, disable=not missing) as bar:
        for strength in recipe.strength:
            wanted = [index for index in missing if strengths[index] == strength]
            for start in range(0, len(wanted), BATCH):
                part = wanted[start : start + BATCH]
                pixels = grouped.images[[rows[index] for index in part]].float() / 127.5 - 1
                edited = model.edit(
                    pixels,
                    [captions[index] for index in part],
                    strength,
                    recipe.num_inference_steps,
                    recipe.guidance_scale,
                    [seed * 1_000_003 + index for index in part],
                )
                _save(edited, [_file(folder, index) for index in part])
                bar.update(len(part))
    return stack([np.array(Image.open(_file(folder, index))) for index in range(len(rows))])


def _prompts(
    grouped: Grouped, rows: Sequence[int], recipe: NegativesRecipe, rng: np.random.Generator
) -> list[str]:
    if recipe.caption == "none":
        return [""] * len(rows)
    own = [grouped.captions[row] for row in rows]
    if recipe.caption == "own":
        return own
    return [own[int(other)] for other in rng.integers(len(rows), size=len(rows))]


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _save(pictures: torch.Tensor, paths: Sequence[Path]) -> None:
    arrays = ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    for picture, path in zip(arrays.permute(0, 2, 3, 1).numpy(), paths, strict=True):
        partial = path.with_suffix(".partial")
        Image.fromarray(picture).save(partial, format="PNG")
        partial.replace(path)


OF_THE_LOSS = {"others", "other_groups", "group_pictures", "temperature"}
"""Of the recipe's fields, those that do not change the edits."""


def _key(
    model: BaseModel, grouped: Grouped, rows: Sequence[int], recipe: NegativesRecipe, seed: int
) -> str:
    digest = hashlib.sha256()
    manifest = model.manifest.weights_identity if model.manifest else ""
    captions = "\n".join(grouped.captions[row] for row in rows)
    for text in (manifest, recipe.model_dump_json(exclude=OF_THE_LOSS), str(seed), captions):
        digest.update(text.encode() + b"\0")
    digest.update(grouped.images[list(rows)].numpy().tobytes())
    return digest.hexdigest()[:16]
