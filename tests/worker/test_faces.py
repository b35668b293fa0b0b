"""Faces that nobody gave: detectors, and identity requests that rely on them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from heads_registry.catalogue import Catalogue
from jobs.controls import Box, BoxPair, Region
from jobs.record import FailureCode
from jobs.request import IdentityControl
from tests.worker.test_references import appearance, forwards, request, run, together
from worker.engine import TorchEngine
from worker.face_network import SHA256, WEIGHTS
from worker.faces import (
    FaceDetector,
    MannequinFaces,
    NoFaceDetector,
    NoFaceFound,
    YuNetFaces,
    box_within,
    largest_first,
    load_detector,
)
from worker.models import ModelCache

FIRST, SECOND = Box(x0=0.1, y0=0.1, x1=0.4, y1=0.5), Box(x0=0.5, y0=0.2, x1=0.9, y1=0.6)


class Scripted:
    """Says what it was told to, whatever the picture."""

    def __init__(self, *answers: Sequence[Box]) -> None:
        self.answers = list(answers)
        self.seen: list[tuple[int, int]] = []

    def find(self, image: Image.Image) -> Sequence[Box]:
        self.seen.append(image.size)
        return self.answers.pop(0)


def identity(boxes: tuple[BoxPair, ...] | None = None) -> IdentityControl:
    return IdentityControl(head="tiny/identity", boxes=boxes, weight=1.0, span=(0.0, 1.0))


def asked(*, boxes: tuple[BoxPair, ...] | None = None, **changes: object) -> object:
    faces = None if boxes is None else tuple(pair.picture for pair in boxes)
    around = appearance(towards="original", region=Region(boxes=faces, outside=True))
    controls = (identity(boxes), around)
    options = {"task": "identity", "start": "seed", "eta": 1.0} | changes
    return request(controls=controls, **options)


def models_with(registry: Path, detector: FaceDetector | None) -> ModelCache:
    def load(name: str) -> FaceDetector:
        return load_detector(name) if detector is None else detector

    return ModelCache(Catalogue([registry]), 10**9, load_faces=load)


def test_faces_are_found_in_the_reference_and_in_each_picture_s_original(
    relative_registry: Path,
) -> None:
    detector = Scripted([FIRST], [SECOND, FIRST], [FIRST])
    found = run(models_with(relative_registry, detector), asked(num_images=2))
    pairs = [BoxPair(reference=FIRST, picture=SECOND), BoxPair(reference=FIRST, picture=FIRST)]
    assert found.boxes == [{0: (pairs[0],)}, {0: (pairs[1],)}]
    assert detector.seen == [(32, 32)] * 3
    assert forwards(found) == 3 * 4  # the reference, and each picture's own trajectory
    # The boxes sent again, in a batch of the same shape, on which rounding depends.
    again = [asked(boxes=(pair,), seed=5 + index) for index, pair in enumerate(pairs)]
    given = together(models_with(relative_registry, Scripted()), again)
    for index, one in enumerate(given):
        assert one.boxes == [found.boxes[index]]
        assert np.array_equal(np.array(one.images[0]), np.array(found.images[index]))
        assert one.distances == [found.distances[index]]


def test_no_face_is_told_with_what_to_do(relative_registry: Path) -> None:
    with pytest.raises(NoFaceFound, match=r"in the reference; .* give boxes"):
        run(models_with(relative_registry, Scripted([])), asked())
    with pytest.raises(NoFaceFound, match=r"seed 5 gives without guidance; .* give boxes"):
        run(models_with(relative_registry, Scripted([FIRST], [])), asked())
    with pytest.raises(NoFaceDetector):
        run(models_with(relative_registry, None), asked())
    engine = TorchEngine(models_with(relative_registry, None))
    for error, code in (
        (NoFaceFound("x"), FailureCode.NO_FACE_FOUND),
        (NoFaceDetector("x"), FailureCode.NO_FACE_DETECTOR),
    ):
        failure = engine.failure_of(error)
        assert failure is not None
        assert failure.code is code


def test_detectors_are_found_by_name_or_by_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("my_faces")
    module.make = lambda model_path: Scripted([FIRST])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_faces", module)
    assert load_detector("my_faces:make").find(Image.new("RGB", (8, 8))) == [FIRST]
    for name in ("mtcnn", "my_faces:missing", "no_such_module:make", ""):
        with pytest.raises(NoFaceDetector):
            load_detector(name)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(NoFaceDetector, match=r"pip install -e .\.\[faces\]"):
        load_detector("yunet")


def test_yunet_says_which_file_it_needs(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    with pytest.raises(NoFaceDetector, match="READOUT_FACE_MODEL"):
        load_detector("yunet", tmp_path / "missing.onnx")
    (tmp_path / "wrong.onnx").write_bytes(b"no model")
    with pytest.raises(NoFaceDetector, match=r"wrong\.onnx"):
        load_detector("yunet", tmp_path / "wrong.onnx")


def test_what_yunet_says_becomes_fractions_of_the_picture() -> None:
    class Detector:
        def setInputSize(self, size: tuple[int, int]) -> None:  # noqa: N802 - OpenCV's
            assert size == (200, 100)

        def detect(self, pixels: np.ndarray) -> tuple[int, np.ndarray]:
            assert pixels[0, 0].tolist() == [3, 2, 1]  # blue first
            rows = np.zeros((3, 15), np.float32)
            rows[0, :4] = (20, 10, 20, 10)
            rows[1, :4] = (-20, 50, 100, 100)
            rows[2, :4] = (300, 0, 10, 10)
            return 3, rows

    found = YuNetFaces(Detector()).find(Image.new("RGB", (200, 100), (1, 2, 3)))
    expected = [(0.0, 0.5, 0.4, 1.0), (0.1, 0.1, 0.2, 0.2)]
    assert [(box.x0, box.y0, box.x1, box.y1) for box in found] == [
        pytest.approx(edges) for edges in expected
    ]


def test_boxes_stay_inside_and_the_largest_is_first() -> None:
    assert box_within(-5, -5, -1, 3, 10, 10) is None
    assert box_within(-5, 2, 5, 30, 10, 10) == Box(x0=0, y0=0.2, x1=0.5, y1=1)
    assert largest_first([FIRST, SECOND]) == [SECOND, FIRST]


def test_the_demo_world_s_detector_finds_faces_of_held_out_renders() -> None:
    pytest.importorskip("numba")
    from evaluation.train_faces import SIZE, face_boxes, measure
    from worker.faces import MannequinFaces
    from world.render import render_rgb
    from world.scene import sample_scene
    from world.seeds import VALIDATION

    seeds = VALIDATION[:30]
    pictures = np.stack([render_rgb(sample_scene(seed), SIZE)[0] for seed in seeds])
    found = measure(MannequinFaces.load(), pictures, [face_boxes(seed) for seed in seeds])
    assert found["found_at_iou_0.5"] >= 0.4  # 0.64 of 120 pictures, see docs/tasks/identity.md
    assert found["false_faces"] <= 15


def test_the_shipped_weights_are_those_that_were_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == SHA256
    other = tmp_path / "other.safetensors"
    other.write_bytes(WEIGHTS.read_bytes()[:-1] + b"?")
    monkeypatch.setattr("worker.faces.WEIGHTS", other)
    with pytest.raises(NoFaceDetector, match="not the file that ships"):
        MannequinFaces.load()
