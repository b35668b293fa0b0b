"""Where faces are, for `identity` without boxes (section 9.1): detectors behind one small protocol.

    mannequin        the demo world's own, trained on its renders; ships with the demo model
    yunet            OpenCV's FaceDetectorYN for photographs: the extra `faces`, and the ONNX file
                     of YuNet (OpenCV's model zoo, MIT) that READOUT_FACE_MODEL names
    package:factory  one of yours: `factory(model_path)` returns a `FaceDetector`

A model's manifest names its own; `READOUT_FACE_DETECTOR` is that of all other models. Whatever a
detector needs is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from heads_registry.loading import sha256_of
from jobs.controls import Box
from worker.face_network import CELL_PX, SHA256, WEIGHTS, FaceNetwork


class NoFaceFound(Exception):
    """A picture shows no face that the detector knows; the message says what to give instead."""


class NoFaceDetector(Exception):
    """There is none, or what it needs is not installed; the message is for client and operator."""


class FaceDetector(Protocol):
    """Finds faces."""

    def find(self, image: Image.Image) -> Sequence[Box]:
        """The faces of an RGB picture, the largest first."""


class MannequinFaces:
    """Faces of the demo world, on pictures of about 64 px."""

    SIZE = 64
    THRESHOLD = 0.3

    def __init__(self, network: FaceNetwork) -> None:
        self._network = network.eval()

    @classmethod
    def load(cls, weights: Path | None = None) -> MannequinFaces:
        """With the weights that ship, or others.

        Raises:
            NoFaceDetector: the weights that ship are missing, or are not those.
        """
        if weights is None and not (WEIGHTS.is_file() and sha256_of(WEIGHTS) == SHA256):
            raise NoFaceDetector(f"{WEIGHTS} is missing or not the file that ships: install again")
        network = FaceNetwork()
        network.load_state_dict(load_file(weights or WEIGHTS))
        return cls(network)

    @torch.no_grad()
    def find(self, image: Image.Image) -> list[Box]:
        """Cells that are the likeliest of their neighbourhood say their boxes."""
        small = image.convert("RGB").resize((self.SIZE, self.SIZE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 127.5 - 1
        [found] = self._network(pixels)
        likely = found[0].sigmoid()
        peaks = torch.nn.functional.max_pool2d(likely[None], 3, 1, 1)[0]
        cells = ((likely == peaks) & (likely > self.THRESHOLD)).nonzero().tolist()
        boxes = [self._box(found[1:, row, column].tolist(), row, column) for row, column in cells]
        return largest_first([box for box in boxes if box is not None])

    def _box(self, edges: Sequence[float], row: int, column: int) -> Box | None:
        left, top, right, bottom = (edge * CELL_PX for edge in edges)
        x, y = (column + 0.5) * CELL_PX, (row + 0.5) * CELL_PX
        return box_within(x - left, y - top, x + right, y + bottom, self.SIZE, self.SIZE)


class YuNetFaces:
    """Faces in photographs, by OpenCV."""

    THRESHOLD = 0.7

    def __init__(self, detector: Any) -> None:
        self._detector = detector

    @classmethod
    def load(cls, model_path: Path | None) -> YuNetFaces:
        """With the ONNX file of the setting.

        Raises:
            NoFaceDetector: OpenCV or the file is missing.
        """
        try:
            import cv2
        except ImportError as error:
            raise NoFaceDetector(
                "the face detector yunet needs OpenCV: pip install -e '.[faces]'"
            ) from error
        if model_path is None or not model_path.is_file():
            raise NoFaceDetector(
                "the face detector yunet needs its ONNX file; READOUT_FACE_MODEL must name it"
            )
        try:
            return cls(cv2.FaceDetectorYN.create(str(model_path), "", (320, 320), cls.THRESHOLD))
        except cv2.error as error:
            raise NoFaceDetector(
                f"{model_path.name} is no model that yunet can read; see READOUT_FACE_MODEL"
            ) from error

    def find(self, image: Image.Image) -> list[Box]:
        """What YuNet is sure of."""
        pixels = np.ascontiguousarray(np.array(image.convert("RGB"))[:, :, ::-1])
        self._detector.setInputSize(image.size)
        _, rows = self._detector.detect(pixels)
        found = [
            box_within(x, y, x + width, y + height, *image.size)
            for x, y, width, height in (row[:4].tolist() for row in (() if rows is None else rows))
        ]
        return largest_first([box for box in found if box is not None])


Factory = Callable[[Path | None], FaceDetector]
DETECTORS: dict[str, Factory] = {
    "mannequin": lambda _: MannequinFaces.load(),
    "yunet": YuNetFaces.load,
}


def load_detector(name: str, model_path: Path | None = None) -> FaceDetector:
    """The detector of that name, or of that ``package:factory``.

    Raises:
        NoFaceDetector: it is not known, or what it needs is not installed.
    """
    if name in DETECTORS:
        return DETECTORS[name](model_path)
    if not name:
        raise NoFaceDetector("this model has no face detector")
    module, separator, attribute = name.partition(":")
    if not separator:
        known = ", ".join(sorted(DETECTORS))
        raise NoFaceDetector(f"no face detector {name!r}; there are {known}, or package:factory")
    try:
        factory: Factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise NoFaceDetector(f"the face detector {name!r} cannot be imported") from error
    return factory(model_path)


def largest_face(detector: FaceDetector, image: Image.Image, what: str) -> Box:
    """The largest face of a picture.

    Raises:
        NoFaceFound: there is none; says so of `what`.
    """
    faces = detector.find(image)
    if not faces:
        raise NoFaceFound(f"no face was found in {what}; say where it is: give boxes")
    return faces[0]


def largest_first(boxes: Sequence[Box]) -> list[Box]:
    """By area."""
    return sorted(boxes, key=lambda box: (box.x0 - box.x1) * (box.y1 - box.y0))


def box_within(x0: float, y0: float, x1: float, y1: float, width: int, height: int) -> Box | None:
    """Pixels as fractions of the picture, cut at its edges; None: nothing of it is inside."""
    left, right = (min(max(x, 0.0), width) / width for x in (x0, x1))
    top, bottom = (min(max(y, 0.0), height) / height for y in (y0, y1))
    return Box(x0=left, y0=top, x1=right, y1=bottom) if left < right and top < bottom else None
