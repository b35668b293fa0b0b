"""`readout annotate`: labels for people's own pictures, written into their data folder.

Canny edges and the base model's negatives need no download. The rest wraps well-kept libraries
(the paper's choices, section 4.2 and 4.3), imported when they are asked for: OpenPose, MiDaS and
HED from controlnet_aux, CoTracker from torch.hub.

AnnotationError     a library is there, but its weights cannot be had; MissingExtra where it is not
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from heads_registry.manifest import RegistryError
from heads_registry.training.data import DataError, Folder, Row
from heads_registry.training.progress import MissingExtra

Annotator = Callable[[Image.Image], Image.Image]

EXTRA = "pip install -e '.[annotate]'"
CHECKPOINTS = "lllyasviel/Annotators"
DETECTORS = {"pose": "OpenposeDetector", "depth": "MidasDetector", "edge": "HEDdetector"}
SIGNALS = ("canny", *DETECTORS)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
GRID = 16
"""CoTracker follows a square grid of so many points a side, from the first frame on."""


class AnnotationError(RegistryError):
    """An annotator's weights cannot be fetched, or it failed."""


def annotate_images(directory: Path, signal: str, device: str = "cpu", again: bool = False) -> int:
    """Write labels/<signal>/*.png for the images of a folder and name them in metadata.jsonl.

    Without a metadata.jsonl one is made of the files in images/. Pictures that have the label
    already are left as they are.

    Args:
        directory: the data folder. signal: one of `SIGNALS`. device: of the detector.
        again: label anew what has a label.

    Returns:
        How many labels were written.

    Raises:
        MissingExtra, AnnotationError: see above.
        DataError: an image cannot be read.
    """
    if not (directory / "metadata.jsonl").is_file():
        _list_images(directory)
    folder = Folder(directory, 1, 1)
    rows = list(folder.rows())
    todo = [row for row in rows if again or signal not in (row.values.get("labels") or {})]
    if not todo:
        return 0
    annotator = canny() if signal == "canny" else _detector(signal, device)
    (directory / "labels" / signal).mkdir(parents=True, exist_ok=True)
    for row in tqdm(todo, desc=signal, mininterval=5):
        name = row.text("file_name")
        label = Path("labels") / signal / Path(name).with_suffix(".png").name
        image = folder.open(name, row.where)
        found = annotator(image).convert("RGB")
        if found.size != image.size:
            found = found.resize(image.size, Image.Resampling.BILINEAR)
        found.save(directory / label)
        row.values["labels"] = (row.values.get("labels") or {}) | {signal: label.as_posix()}
    _write(directory / "metadata.jsonl", [row.values for row in rows])
    return len(todo)


def annotate_tracks(directory: Path, device: str = "cpu") -> int:
    """Follow a grid of points through the videos of a folder with CoTracker; write tracks.jsonl.

    Videos are the rows of metadata.jsonl that share `video`, in the order of `frame`, or else of
    their file names.

    Returns:
        How many videos there are.

    Raises:
        AnnotationError: CoTracker cannot be fetched.
        DataError: a row has no `video`, or an image cannot be read.
    """
    folder = Folder(directory, 1, 1)
    videos: dict[str, list[Row]] = defaultdict(list)
    for row in folder.rows():
        videos[row.text("video")].append(row)
    tracker = _cotracker(device)
    written = []
    for name, rows in tqdm(videos.items(), desc="tracks", mininterval=5):
        frames = sorted(rows, key=lambda row: (row.values.get("frame", 0), row.text("file_name")))
        pictures = [np.asarray(folder.open(row.text("file_name"), row.where)) for row in frames]
        if len({picture.shape for picture in pictures}) != 1:
            raise DataError(f"{frames[0].where}: the frames of {name!r} differ in size")
        video = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)[None].float()
        written.append(
            {
                "video": name,
                "frames": [row.text("file_name") for row in frames],
                "tracks": _follow(tracker, video.to(device)),
            }
        )
    _write(directory / "tracks.jsonl", written)
    return len(written)


def canny(low: float = 100, high: float = 200) -> Annotator:
    """Canny edges, white on black, of a slightly blurred picture (OpenCV's).

    Args:
        low, high: thresholds of the gradient, 0..~1000.

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra("canny edges need OpenCV: pip install -e '.[train]'") from error

    def edges(image: Image.Image) -> Image.Image:
        grey = cv2.GaussianBlur(np.asarray(image.convert("L")), (3, 3), 0)
        return Image.fromarray(cv2.Canny(grey, low, high))

    return edges


def _detector(signal: str, device: str) -> Annotator:
    if signal not in DETECTORS:
        raise AnnotationError(f"no annotator {signal!r}; there are: {', '.join(SIGNALS)}")
    try:
        import controlnet_aux
    except ImportError as error:
        raise MissingExtra(f"{signal} labels need controlnet_aux: {EXTRA}") from error
    try:
        detector: Any = getattr(controlnet_aux, DETECTORS[signal]).from_pretrained(CHECKPOINTS)
    except (OSError, ValueError) as error:
        raise AnnotationError(_no_weights(f"{CHECKPOINTS} on the hub", error)) from error
    detector.to(device)
    return lambda image: detector(image, output_type="pil")


def _cotracker(device: str) -> torch.nn.Module:
    try:
        model = torch.hub.load("facebookresearch/co-tracker", "cotracker3_offline", trust_repo=True)
    except (OSError, RuntimeError, ImportError) as error:
        raise AnnotationError(_no_weights("facebookresearch/co-tracker", error)) from error
    return model.to(device).eval()


@torch.no_grad()
def _follow(tracker: torch.nn.Module, video: torch.Tensor) -> list[list[list[float]]]:
    """(1, frames, 3, height, width) in 0..255 → points × frames × [x, y, visible]."""
    places, visible = tracker(video, grid_size=GRID)
    joined = torch.cat([places[0], visible[0].float().unsqueeze(-1)], dim=-1)
    rounded: list[list[list[float]]] = (joined.permute(1, 0, 2) * 100).round().div(100).tolist()
    return rounded


def _no_weights(source: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"cannot fetch {source}: {reason}; fetch it where there is a network and copy the cache "
        "(HF_HOME, TORCH_HOME), or bring labels of your own; canny needs no weights"
    )


def _list_images(directory: Path) -> None:
    files = sorted(
        path for path in (directory / "images").glob("*") if path.suffix.lower() in SUFFIXES
    )
    if not files:
        raise DataError(f"{directory}: neither metadata.jsonl nor pictures in images/")
    _write(directory / "metadata.jsonl", [{"file_name": f"images/{path.name}"} for path in files])


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    partial.replace(path)
