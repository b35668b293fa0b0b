"""Pictures in groups, as relative heads need them: frames of videos, and faces of people."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from heads_registry.training.data import DataError, Folder, Pictures, Row, stack

SHARED_POINTS = 4
"""Points that two frames must both show for the pair to be trained on."""


@dataclass(frozen=True)
class Grouped:
    """Pictures and the groups that they form: what is one video, or one person.

    Args:
        images: all of them.
        groups: rows of `images`, a list a group; each of at least two.
        looks: a name a group; groups of one look are each other's hard negatives. Empty: none.
        captions: of the images; empty where there is none.
        tracks: of videos, one (points, frames, 3) tensor a group: x and y as fractions of the
            picture, and whether the point is seen. Empty: not followed.
    """

    images: Pictures
    groups: list[list[int]]
    looks: list[str]
    captions: list[str]
    tracks: list[Float[Tensor, "points frames 3"]]

    def __len__(self) -> int:
        return len(self.groups)


def load_videos(
    directory: Path, width: int, height: int, limit: int | None = None, tracks: bool = True
) -> Grouped:
    """Read videos: the frames that tracks.jsonl names, with its tracks; or, for `tracks` False
    and without that file, the rows of metadata.jsonl that share a `video`.

    Args:
        directory, width, height: see `Folder`.
        limit: use only so many videos.
        tracks: whether points must be there.

    Raises:
        DataError: see `Folder`; or a video has fewer than two frames, tracks of another shape, or
            no pair of frames that shares `SHARED_POINTS` points.
    """
    folder = Folder(directory, width, height)
    if not tracks and not (directory / "tracks.jsonl").is_file():
        return _by_key(folder, "video", limit)
    captions = {
        row.text("file_name"): row.values.get("caption", "")
        for row in (folder.rows() if (directory / "metadata.jsonl").is_file() else ())
    }
    images: list[np.ndarray] = []
    grouped = Grouped(torch.empty(0), [], [], [], [])
    for row in folder.rows("tracks.jsonl", limit):
        frames = row.values.get("frames")
        if not isinstance(frames, list) or len(frames) < 2:
            raise DataError(f"{row.where}: frames must be a list of two files or more")
        grouped.groups.append(list(range(len(images), len(images) + len(frames))))
        for name in frames:
            if not isinstance(name, str):
                raise DataError(f"{row.where}: frames must be file names")
            image = folder.open(name, row.where)
            images.append(folder.fit(image))
            grouped.captions.append(str(captions.get(name, "")))
        if tracks:
            grouped.tracks.append(_tracks(row, len(frames), image.size, folder))
    return Grouped(stack(images), grouped.groups, [], grouped.captions, grouped.tracks)


def load_faces(directory: Path, width: int, height: int, limit: int | None = None) -> Grouped:
    """Read face crops: the rows of metadata.jsonl that share an `identity`; `look` is optional.

    Raises:
        DataError: see `Folder`; or fewer than two people, or nobody with two pictures.
    """
    return _by_key(Folder(directory, width, height), "identity", limit)


def _by_key(folder: Folder, key: str, limit: int | None) -> Grouped:
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in folder.rows():
        rows[row.text(key)].append(row)
    images: list[np.ndarray] = []
    grouped = Grouped(torch.empty(0), [], [], [], [])
    for members in list(rows.values())[:limit]:
        if len(members) < 2:
            where, value = members[0].where, members[0].values[key]
            raise DataError(f"{where}: {key} {value!r} has one picture; two are needed at least")
        grouped.groups.append(list(range(len(images), len(images) + len(members))))
        grouped.looks.append(str(members[0].values.get("look", "")))
        for row in members:
            images.append(folder.picture(row.text("file_name"), row.where))
            grouped.captions.append(str(row.values.get("caption", "")))
    looks = grouped.looks if all(grouped.looks) else []
    return Grouped(stack(images), grouped.groups, looks, grouped.captions, [])


def _tracks(
    row: Row, frames: int, size: tuple[int, int], folder: Folder
) -> Float[Tensor, "points frames 3"]:
    tracks = _track_array(row.values.get("tracks"), frames, row.where)
    fitted = _to_fractions(tracks, size, folder.width / folder.height)
    seen = fitted[..., 2] > 0.5
    shared = (seen[:, :, None] & seen[:, None, :]).sum(axis=0)
    np.fill_diagonal(shared, 0)
    if shared.max() < SHARED_POINTS:
        raise DataError(
            f"{row.where}: no two frames share {SHARED_POINTS} visible points; leave the video out"
        )
    return torch.from_numpy(fitted)


def _track_array(values: Any, frames: int, where: str) -> np.ndarray:
    try:
        tracks = np.asarray(values, np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{where}: tracks must be a list of points, each a list of [x, y, visible], one a frame"
        ) from error
    if tracks.ndim != 3 or tracks.shape[1:] != (frames, 3):
        raise DataError(
            f"{where}: tracks have the shape {list(tracks.shape)}; expected is "
            f"[points, {frames}, 3], since there are {frames} frames"
        )
    if not np.isfinite(tracks[tracks[..., 2] > 0.5]).all():
        raise DataError(f"{where}: a visible point is not finite")
    return tracks


def _to_fractions(tracks: np.ndarray, size: tuple[int, int], aspect: float) -> np.ndarray:
    """Pixels of the files → fractions of the picture that `fit_image` (cover) cuts out of them."""
    width, height = size
    box = np.array([min(width, height * aspect), min(height, width / aspect)], np.float32)
    corner = (np.array([width, height], np.float32) - box) / 2
    result = tracks.copy()
    result[..., :2] = (tracks[..., :2] - corner) / box
    inside = ((result[..., :2] >= 0) & (result[..., :2] < 1)).all(axis=-1)
    result[..., 2] = (tracks[..., 2] > 0.5) & inside
    result[..., :2] = np.where(inside[..., None], result[..., :2], 0)
    return result
