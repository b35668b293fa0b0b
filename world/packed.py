"""Packed datasets for training: memory-mapped arrays of many small renders; knows arrays and JSON
lines, not PNG files.

A folder holds images.npy (N, size, size, 3) uint8, keypoints.npy (N, 2, 18, 3) float32 (missing
person: zeros), optionally pose.npy (N, size, size, 3), depth.npy and edge.npy (N, size, size)
uint8, captions.jsonl (one row an image: seed, people, captions, captions_without_pose, attributes)
and packed.json (size, seeds, labels, complete).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from world.captions import attributes, caption, caption_variants, random_caption
from world.faces import face_of
from world.labels import as_bytes, depth_image, edge_image, openpose_image
from world.parts import Scene
from world.render import render, render_rgb
from world.scene import sample_scene, stream

LABELS = ("pose", "depth", "edge")
CHUNK = 500
#: Changes whenever the same seed would give another picture or caption.
WORLD_VERSION = 1


@dataclass(frozen=True)
class Packed:
    """A packed dataset opened for reading: memory-mapped arrays and parsed caption rows."""

    images: np.ndarray
    keypoints: np.ndarray
    rows: list[dict]
    labels: dict[str, np.ndarray]


def _shapes(
    count: int, size: int, labels: Sequence[str]
) -> dict[str, tuple[tuple[int, ...], type]]:
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "images": ((count, size, size, 3), np.uint8),
        "keypoints": ((count, 2, 18, 3), np.float32),
    }
    for label in labels:
        shapes[label] = (
            (count, size, size, 3) if label == "pose" else (count, size, size),
            np.uint8,
        )
    return shapes


def _row(scene: Scene) -> dict:
    rng = stream(scene.seed, "caption without pose")
    return {
        "seed": scene.seed,
        "people": len(scene.people),
        "captions": caption_variants(scene),
        "captions_without_pose": [
            caption(scene, pose=False),
            random_caption(scene, rng, pose=False),
        ],
        "attributes": attributes(scene),
    }


def _render_chunk(
    folder: str,
    start: int,
    seeds: Sequence[int],
    size: int,
    labels: Sequence[str],
    supersample: int,
    faces: bool,
) -> int:
    """Renders one chunk into the arrays and writes its caption rows; the rows' file marks the
    chunk as done."""
    path = Path(folder)
    names = ("images", "keypoints", *labels)
    arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r+") for name in names}
    lines = []
    for offset, seed in enumerate(seeds):
        at = start + offset
        scene = face_of(seed) if faces else sample_scene(seed)
        if "depth" in labels or "edge" in labels:
            result = render(scene, size, supersample)
            keypoints = result.keypoints
            arrays["images"][at] = result.rgb
            if "depth" in labels:
                arrays["depth"][at] = as_bytes(depth_image(result.depth))
            if "edge" in labels:
                arrays["edge"][at] = as_bytes(edge_image(result))
        else:
            rgb, keypoints = render_rgb(scene, size, supersample)
            arrays["images"][at] = rgb
        arrays["keypoints"][at] = 0.0
        arrays["keypoints"][at, : len(keypoints)] = keypoints
        if "pose" in labels:
            arrays["pose"][at] = openpose_image(keypoints, size)
        lines.append(json.dumps(_row(scene), separators=(",", ":")))
    for array in arrays.values():
        array.flush()
    part = path / "parts" / f"{start:09d}.jsonl"
    temporary = part.with_suffix(".tmp")
    temporary.write_text("\n".join(lines) + "\n")
    temporary.rename(part)
    return len(lines)


def render_packed(
    path: str | Path,
    seeds: Sequence[int],
    size: int = 64,
    *,
    labels: Iterable[str] = (),
    workers: int = 2,
    supersample: int = 2,
    faces: bool = False,
    progress: Callable[[int, int, float], None] | None = None,
) -> Path:
    """Renders scenes of `seeds` into a packed folder; resumes by chunks and returns at once when
    it is complete.

    Args:
        path: folder to write. seeds: scene seeds, kept in order. size: pixels. labels: some of
            LABELS.
        workers: processes. faces: tight crops of faces instead of scenes. progress: called with
            images done, images in all, seconds since the start.

    Raises:
        ValueError: the folder holds another dataset, or a label is unknown.
    """
    folder, labels = Path(path), tuple(label for label in LABELS if label in set(labels))
    count = len(seeds)
    spec = {
        "version": WORLD_VERSION, "size": size, "count": count, "first_seed": seeds[0],
        "last_seed": seeds[-1], "labels": list(labels), "supersample": supersample,
    } | ({"faces": True} if faces else {})  # fmt: skip
    marker = folder / "packed.json"
    if marker.exists():
        found = json.loads(marker.read_text())
        if found | {"complete": True} != spec | {"complete": True}:
            raise ValueError(f"{folder} holds another packed dataset: {found}; asked for {spec}")
        if found["complete"]:
            return folder
    else:
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        for name, (shape, dtype) in _shapes(count, size, labels).items():
            open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape).flush()
        marker.write_text(json.dumps({**spec, "complete": False}))
    starts = [
        s for s in range(0, count, CHUNK) if not (folder / "parts" / f"{s:09d}.jsonl").exists()
    ]
    render(sample_scene(seeds[0]), 16)  # compiles once, before the workers start
    began, done = time.monotonic(), count - sum(min(CHUNK, count - s) for s in starts)
    jobs = [
        (str(folder), s, list(seeds[s : s + CHUNK]), size, labels, supersample, faces)
        for s in starts
    ]
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            done += _render_chunk(*job)
            if progress:
                progress(done, count, time.monotonic() - began)
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for future in as_completed([pool.submit(_render_chunk, *job) for job in jobs]):
                done += future.result()
                if progress:
                    progress(done, count, time.monotonic() - began)
    parts = [folder / "parts" / f"{start:09d}.jsonl" for start in range(0, count, CHUNK)]
    with (folder / "captions.tmp").open("w") as out:
        for part in parts:
            out.write(part.read_text())
    (folder / "captions.tmp").rename(folder / "captions.jsonl")
    marker.write_text(json.dumps({**spec, "complete": True}))
    for part in parts:
        part.unlink()
    return folder


def open_packed(path: str | Path, with_rows: bool = True) -> Packed:
    """Opens a complete packed folder; arrays are memory-mapped read-only.

    Raises:
        ValueError: the folder is not complete.
    """
    folder = Path(path)
    spec = json.loads((folder / "packed.json").read_text())
    if not spec["complete"]:
        raise ValueError(f"{folder} is not complete; run render_packed again to finish it")
    rows = []
    if with_rows:
        with (folder / "captions.jsonl").open() as lines:
            rows = [json.loads(line) for line in lines]
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r")
        for name in ("images", "keypoints", *spec["labels"])
    }
    return Packed(arrays.pop("images"), arrays.pop("keypoints"), rows, arrays)
