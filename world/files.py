"""Datasets as folders of files, in the format that users' own data has: PNG images, PNG labels,
JSON lines; see README.md here."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from world.captions import attributes, caption_variants, seen_from_behind
from world.faces import face_scene, lookalikes
from world.labels import as_bytes, depth_image, edge_image, openpose_image
from world.matches import point_tracks
from world.packed import LABELS
from world.render import Render, render
from world.scene import Kind, sample_scene
from world.videos import video_scenes

TRACK_POINTS = 64


def _save(render_: Render, folder: Path, name: str, labels: Sequence[str]) -> dict:
    """Writes the picture and its label images; returns the metadata row without captions."""
    size = render_.rgb.shape[0]
    file_name = f"images/{name}.png"
    Image.fromarray(render_.rgb).save(folder / file_name)
    written = {}
    for label in labels:
        if label == "pose":
            image = openpose_image(render_.keypoints, size)
        elif label == "depth":
            image = as_bytes(depth_image(render_.depth))
        else:
            image = as_bytes(edge_image(render_))
        written[label] = f"labels/{label}/{name}.png"
        Image.fromarray(image).save(folder / written[label])
    keypoints = [
        [[round(float(v), 2) for v in point] for point in person] for person in render_.keypoints
    ]
    return {
        "file_name": file_name,
        "labels": written,
        "width": size,
        "height": size,
        "keypoints": keypoints,
    }


def _write_image(
    seed: int, folder: Path, size: int, labels: Sequence[str], kind: Kind | None
) -> dict:
    scene = sample_scene(seed, kind)
    row = _save(render(scene, size), folder, f"{seed:09d}", labels)
    captions = caption_variants(scene)
    return {
        **row,
        "caption": captions[0],
        "captions": captions,
        "seed": seed,
        "attributes": attributes(scene),
    }


def _write_video(
    video: tuple[int, bool],
    folder: Path,
    size: int,
    labels: Sequence[str],
    kind: Kind | None,
    frames: int,
) -> tuple[list[dict], dict]:
    seed, cuts = video
    scene = sample_scene(seed, kind)
    captions = caption_variants(scene)
    renders = [render(moment, size) for moment in video_scenes(scene, frames, cuts)]
    rows = []
    for index, picture in enumerate(renders):
        row = _save(picture, folder, f"{seed:09d}_{index:03d}", labels)
        rows.append(
            {
                **row, "caption": captions[0], "captions": captions, "seed": seed,
                "attributes": attributes(scene), "video": f"{seed:09d}", "frame": index,
                "moment": round(picture.scene.moment, 6),
            }
        )  # fmt: skip
    tracks, parts = point_tracks(renders, TRACK_POINTS, np.random.default_rng(seed))
    track_row = {
        "video": f"{seed:09d}",
        "frames": [row["file_name"] for row in rows],
        "segments": parts[:, 0].tolist(),
        "instances": parts[:, 1].tolist(),
        "tracks": [
            [[round(float(x), 2), round(float(y), 2), int(seen)] for x, y, seen in track]
            for track in tracks
        ],
    }
    return rows, track_row


def _write_faces(
    look: tuple[int, bool], folder: Path, size: int, people: int, shots: int
) -> list[dict]:
    rows = []
    seed, same_skin = look
    for person, identity in enumerate(lookalikes(seed, people, same_skin)):
        for shot in range(shots):
            scene = face_scene(seed, identity, person, shot)
            row = _save(render(scene, size), folder, f"{seed:09d}_{person}_{shot:02d}", ())
            captions = caption_variants(scene)
            rows.append(
                {
                    **row, "caption": captions[0], "seed": seed,
                    "identity": f"{seed:09d}_{person}", "look": f"{seed:09d}",
                }
            )  # fmt: skip
    return rows


def seeds_with_backs(seeds: Sequence[int], count: int, share: float) -> list[int]:
    """The first seeds whose scenes are seen from behind in about `share` of `count`, spread evenly.

    People turn their backs in about a tenth of all scenes, too few for a pose head to learn, in
    few steps, which arm is the left one.
    """
    chosen: list[int] = []
    waiting: dict[bool, deque[int]] = {True: deque(), False: deque()}
    left = iter(seeds)
    for behind in _spread(count, share):
        while not waiting[behind]:
            seed = next(left, None)
            if seed is None:
                return chosen
            waiting[seen_from_behind(sample_scene(seed))].append(seed)
        chosen.append(waiting[behind].popleft())
    return chosen


def _spread(count: int, share: float) -> list[bool]:
    """Which of `count` are among a share of them, spread evenly."""
    return [int((index + 1) * share) > int(index * share) for index in range(count)]


def write_faces(
    folder: str | Path,
    seeds: Sequence[int],
    size: int = 64,
    *,
    people: int = 2,
    shots: int = 4,
    same_skin: float = 0.0,
    workers: int = 1,
) -> Path:
    """Writes tight face crops, `people` of one look with `shots` each per seed; deterministic,
    overwrites. In a share `same_skin` of the looks, the skin tone is the same, too.

    Rows of metadata.jsonl have `identity` (who it is) and `look` (who shares hair, hat and
    glasses); see `world.faces`.
    """
    path = Path(folder)
    (path / "images").mkdir(parents=True, exist_ok=True)
    work = partial(_write_faces, folder=path, size=size, people=people, shots=shots)
    looks = list(zip(seeds, _spread(len(seeds), same_skin), strict=True))
    results = _map(work, looks, workers)
    _write_lines(path / "metadata.jsonl", (row for rows in results for row in rows))
    return path


def _map(work: Callable[[Any], Any], items: Sequence[Any], workers: int) -> list[Any]:
    if workers <= 1:
        return [work(item) for item in items]
    render(sample_scene(0), 16)  # compiles once, before the workers start
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, items, chunksize=8))


def write_dataset(
    folder: str | Path,
    seeds: Sequence[int],
    size: int = 64,
    *,
    labels: Iterable[str] = LABELS,
    kind: Kind | None = None,
    frames: int = 1,
    cuts: float = 0.0,
    workers: int = 1,
) -> Path:
    """Writes one image (frames = 1) or one video (frames > 1, with tracks.jsonl) per seed;
    deterministic, overwrites.

    Args:
        folder: where images/, labels/<label>/, metadata.jsonl and, for videos, tracks.jsonl go.
        size: pixels.
        labels: some of LABELS. kind: "figure", "portrait", "couple" or None for the mix.
        frames: of a video. cuts: the share of the videos with `world.videos`' cuts.
        workers: processes.
    """
    path, labels = Path(folder), tuple(label for label in LABELS if label in set(labels))
    (path / "images").mkdir(parents=True, exist_ok=True)
    for label in labels:
        (path / "labels" / label).mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {"folder": path, "size": size, "labels": labels, "kind": kind}
    if frames > 1:
        videos = list(zip(seeds, _spread(len(seeds), cuts), strict=True))
        results = _map(partial(_write_video, **common, frames=frames), videos, workers)
    else:
        results = _map(partial(_write_image, **common), seeds, workers)
    if frames > 1:
        _write_lines(path / "tracks.jsonl", (tracks for _, tracks in results))
        results = [row for rows, _ in results for row in rows]
    _write_lines(path / "metadata.jsonl", results)
    return path


def _write_lines(path: Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


def read_rows(path: str | Path) -> Iterator[dict]:
    """The rows of a *.jsonl file."""
    with Path(path).open() as lines:
        for line in lines:
            yield json.loads(line)
