"""Training data as users keep it: folders of images, metadata.jsonl, tracks.jsonl (docs/data.md).

metadata.jsonl   one JSON object an image: {"file_name": "images/7.png", …}. Spatial heads need
                 "labels" (or "keypoints", for poses), videos "video", faces "identity"; other
                 keys are ignored here
tracks.jsonl     one JSON object a video: its frames and the points followed through them

Everything is checked before training starts, and held in memory as uint8.

DataError        names the file and the line of the first row that cannot be used
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from heads_registry.manifest import RegistryError
from heads_registry.targets import fit_image
from openpose import draw_pose, known_points

Pictures = UInt8[Tensor, "items 3 height width"]


class DataError(RegistryError):
    """A row of the training data cannot be used."""


@dataclass(frozen=True)
class Row:
    """A line of a *.jsonl file and where it stands, for messages."""

    values: dict[str, Any]
    where: str

    def text(self, key: str) -> str:
        """A value that has to be a string.

        Raises:
            DataError: it is missing or something else.
        """
        value = self.values.get(key)
        if not isinstance(value, str):
            raise DataError(f"{self.where}: {key} is missing or not a string")
        return value


@dataclass(frozen=True)
class Folder:
    """A data folder and the size that pictures are brought to, px."""

    path: Path
    width: int
    height: int

    def rows(self, name: str = "metadata.jsonl", limit: int | None = None) -> Iterator[Row]:
        """The rows of one of its files.

        Raises:
            DataError: no such file, no rows, or a line that is no JSON object.
        """
        path = self.path / name
        if not path.is_file():
            raise DataError(f"{path}: no such file; see docs/data.md for the format")
        count = 0
        with path.open() as lines:
            for number, line in enumerate(lines, 1):
                if limit is not None and count >= limit:
                    return
                if line.strip():
                    count += 1
                    yield _parse(line, f"{path}:{number}")
        if count == 0:
            raise DataError(f"{path}: no rows")

    def picture(self, file_name: str, where: str) -> UInt8[np.ndarray, "height width 3"]:
        """An image file, cut to the model's aspect and resized.

        Raises:
            DataError: missing, unreadable, or outside the folder.
        """
        return self.fit(self.open(file_name, where))

    def fit(self, image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
        """An image, cut to the model's aspect and resized."""
        fitted = fit_image(image, self.width, self.height)
        if fitted.size != (self.width, self.height):
            fitted = fitted.resize((self.width, self.height), Image.Resampling.BOX)
        return np.array(fitted)

    def open(self, file_name: str, where: str) -> Image.Image:
        """An image file as RGB.

        Raises:
            DataError: missing, unreadable, or outside the folder.
        """
        path = self.path / file_name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise DataError(f"{where}: {file_name} lies outside the folder")
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except FileNotFoundError as error:
            raise DataError(f"{where}: no such file: {file_name}") from error
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise DataError(f"{where}: cannot read {file_name}: {error}") from error


@dataclass(frozen=True)
class LabelledImages:
    """Images and, by label name, label images of the same size."""

    images: Pictures
    labels: dict[str, Pictures]

    def __len__(self) -> int:
        return len(self.images)


def load_labelled_images(
    directory: Path, labels: Sequence[str], width: int, height: int, limit: int | None = None
) -> LabelledImages:
    """Read images and their label images; a missing `pose` label is drawn from key points.

    Raises:
        DataError: see `Folder`; or a row has neither the label nor key points.
    """
    folder = Folder(directory, width, height)
    images: list[np.ndarray] = []
    columns: dict[str, list[np.ndarray]] = {name: [] for name in labels}
    for row in folder.rows(limit=limit):
        image = folder.open(row.text("file_name"), row.where)
        images.append(folder.fit(image))
        for name in labels:
            columns[name].append(_label(folder, row, name, image.size))
    return LabelledImages(stack(images), {name: stack(column) for name, column in columns.items()})


def stack(pictures: Sequence[np.ndarray]) -> Pictures:
    """(height, width, 3) arrays → one (items, 3, height, width) tensor."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _label(folder: Folder, row: Row, name: str, size: tuple[int, int]) -> np.ndarray:
    files = row.values.get("labels") or {}
    if not isinstance(files, dict):
        raise DataError(f"{row.where}: labels must be an object: name → file")
    if isinstance(files.get(name), str):
        return folder.picture(files[name], row.where)
    if name == "pose" and "keypoints" in row.values:
        return folder.fit(_skeleton(row, size))
    raise DataError(f"{row.where}: no label {name!r}; the row has {sorted(files)}")


def _skeleton(row: Row, size: tuple[int, int]) -> Image.Image:
    try:
        people = np.asarray(row.values["keypoints"], np.float32).reshape(-1, 18, 3)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{row.where}: keypoints must be a list of people, each 18 points [x, y, visible]"
        ) from error
    return draw_pose(known_points(people.tolist()), *size)


def _parse(line: str, where: str) -> Row:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{where}: a JSON object is expected")
    return Row(values, where)
