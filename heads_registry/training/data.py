"""Training data as users keep it: a folder of images, label images and metadata.jsonl.

metadata.jsonl        one JSON object an image: {"file_name": "images/7.png",
                      "labels": {"pose": "labels/pose/7.png"}, …}; other keys are ignored here
images/, labels/…/    files of any size; they are cut to the model's aspect and resized

DataError             names the file and the line of the first row that cannot be used
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from heads_registry.manifest import RegistryError
from heads_registry.targets import fit_image

Pictures = UInt8[Tensor, "items 3 height width"]


class DataError(RegistryError):
    """A row of the training data cannot be used."""


@dataclass(frozen=True)
class LabelledImages:
    """Images and, by label name, label images of the same size, all in memory as uint8."""

    images: Pictures
    labels: dict[str, Pictures]

    def __len__(self) -> int:
        return len(self.images)

    def split(self, validation: int) -> tuple[LabelledImages, LabelledImages]:
        """All but the last `validation` items, and those."""
        return self._slice(slice(0, -validation)), self._slice(slice(-validation, None))

    def _slice(self, part: slice) -> LabelledImages:
        return LabelledImages(
            self.images[part], {name: label[part] for name, label in self.labels.items()}
        )


def load_labelled_images(
    directory: Path, labels: list[str], width: int, height: int, limit: int | None = None
) -> LabelledImages:
    """Read a folder, every row checked before training starts.

    Raises:
        DataError: no metadata.jsonl, a row that is not JSON, a missing or unreadable file or
            label; names the line.
    """
    metadata = directory / "metadata.jsonl"
    if not metadata.is_file():
        raise DataError(f"{metadata}: no such file; see docs/data.md for the format")
    images: list[np.ndarray] = []
    columns: dict[str, list[np.ndarray]] = {name: [] for name in labels}
    with metadata.open() as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if limit is not None and len(images) >= limit:
                break
            where = f"{metadata}:{number}"
            row = _parse(line, where)
            images.append(_read(directory, row.get("file_name"), width, height, where))
            for name in labels:
                file_name = row.get("labels", {}).get(name)
                if file_name is None:
                    raise DataError(
                        f"{where}: no label {name!r}; the row has {sorted(row.get('labels', {}))}"
                    )
                columns[name].append(_read(directory, file_name, width, height, where))
    if not images:
        raise DataError(f"{metadata}: no rows")
    return LabelledImages(
        _stack(images), {name: _stack(column) for name, column in columns.items()}
    )


def _parse(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object is expected")
    return row


def _read(directory: Path, file_name: object, width: int, height: int, where: str) -> np.ndarray:
    if not isinstance(file_name, str):
        raise DataError(f"{where}: file_name is missing")
    path = directory / file_name
    try:
        with Image.open(path) as image:
            fitted = fit_image(image, width, height)
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file: {file_name}") from error
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{where}: cannot read {file_name}: {error}") from error
    if fitted.size != (width, height):
        fitted = fitted.resize((width, height), Image.Resampling.BOX)
    return np.array(fitted)


def _stack(arrays: list[np.ndarray]) -> Pictures:
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
