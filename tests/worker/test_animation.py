"""Animated drags: frames of one reference and one noise, and the files that show them."""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from heads_registry.catalogue import Catalogue
from jobs.record import FailureCode
from jobs.request import Animation, OutputOptions
from tests.worker.test_references import (
    INVERTED,
    appearance,
    correspondence,
    drag,
    forwards,
    request,
    run,
)
from worker import animation as module
from worker.animation import UnsupportedFormat, check_format, encode_animation
from worker.controls import SHORTEST_DRAG, Canvas, InvalidControl
from worker.engine import TorchEngine
from worker.models import ModelCache
from worker.reference_cache import ReferenceCache
from worker.settings import WorkerSettings

FAR = drag(0.1, 0.2, 0.9, 0.6)
NEAR = drag(0.6, 0.9875, 0.6, 0.8725)
"""In a grid of 8 cells it leaves its cell only at the end."""
SPAN = (0.0, 1.0)


def animated(frames: int = 5, **changes: Any) -> Any:
    values = {"frames": frames, "fps": 4.0} | changes
    controls = (appearance(span=SPAN), correspondence(FAR, NEAR, span=SPAN))
    output = OutputOptions(animation=Animation(**values))
    return request(controls=controls, num_images=frames, output=output)


@pytest.fixture
def fresh(relative_registry: Path) -> ModelCache:
    models = ModelCache(Catalogue([relative_registry]), 10**9)
    models.references = ReferenceCache(10**8)
    return models


@pytest.fixture
def exact(relative_registry: Path) -> ModelCache:
    """In float64, so that what the shape of a batch rounds off cannot be seen in a picture."""
    models = ModelCache(Catalogue([relative_registry]), 10**9, dtype=torch.float64)
    models.references = ReferenceCache(10**8)
    return models


def arrays(images: list[Image.Image]) -> list[Any]:
    return [np.array(image, int) for image in images]


def test_frames_share_reference_and_noise_and_end_in_the_drag(exact: ModelCache) -> None:
    execution = run(exact, animated())
    assert execution.seeds == [5] * 5
    assert forwards(execution) == 4  # the reference was sampled once, for all of them
    assert len(execution.images) == 5
    alone = run(exact, request(controls=animated().controls))
    assert forwards(alone) == 0
    last, expected = arrays([execution.images[-1], alone.images[0]])
    assert np.array_equal(last, expected)
    pictures = arrays(execution.images)
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(pictures))


def test_the_first_frame_moves_nothing(exact: ModelCache) -> None:
    """Its correspondence control is off, so only the appearance control acts."""
    execution = run(exact, animated(2))
    controls = (appearance(span=SPAN), correspondence(FAR, weight=0.0))
    still = run(exact, request(controls=controls))
    first, expected = arrays([execution.images[0], still.images[0]])
    assert np.array_equal(first, expected)
    assert execution.distances[0][1] < execution.distances[1][1] + 1


def test_a_pair_moves_evenly_and_acts_once_it_has_moved_by_half_a_cell(fresh: ModelCache) -> None:
    points = correspondence(FAR, NEAR)
    canvas = Canvas(fresh.model("tiny"), animated())
    pairs = [canvas._pairs(points, k / 4) for k in range(5)]
    moved = [sum(math.dist(*pair) >= SHORTEST_DRAG for pair in frame) for frame in pairs]
    assert moved == [0, 1, 1, 2, 2]
    ends = [frame[0][1] for frame in pairs]
    steps = [(y1 - y0, x1 - x0) for (y0, x0), (y1, x1) in itertools.pairwise(ends)]
    assert steps == [pytest.approx(steps[0])] * 4
    still = correspondence(drag(0.2, 0.2, 0.21, 0.21))
    with pytest.raises(InvalidControl, match="drag farther"):
        canvas._pairs(still, 1.0)


def test_only_the_last_frame_is_kept_where_frames_are_not_wanted(fresh: ModelCache) -> None:
    execution = run(fresh, animated(3, keep_frames=False))
    assert len(execution.images) == len(execution.seeds) == len(execution.distances) == 1
    every = run(fresh, animated(3))
    assert np.array_equal(*arrays([execution.images[0], every.images[-1]]))
    assert execution.animation == every.animation
    assert execution.animation is not None
    with Image.open(io.BytesIO(execution.animation)) as stored:
        assert stored.n_frames == 3


def test_a_real_image_is_inverted_once(fresh: ModelCache) -> None:
    asked = animated(3).model_copy(update={"reference": INVERTED})
    assert forwards(run(fresh, asked)) == 8


def shades(count: int = 4) -> list[Image.Image]:
    return [Image.new("RGB", (32, 16), (40 * k, 200 - 40 * k, 90)) for k in range(count)]


@pytest.mark.parametrize("media", ["webp", "gif"])
def test_files_show_every_frame_for_its_time(media: str) -> None:
    data = encode_animation(shades(), Animation(frames=4, format=media, fps=8))
    with Image.open(io.BytesIO(data)) as stored:
        assert (stored.n_frames, stored.size) == (4, (32, 16))
        assert stored.info["loop"] == 0
        for index, shade in enumerate(shades()):
            stored.seek(index)
            found = np.array(stored.convert("RGB"), int)
            assert abs(found - np.array(shade, int)).mean() < 4
            assert stored.info["duration"] == (125 if media == "webp" else 120)


def test_an_mp4_shows_every_frame_for_its_time() -> None:
    av = pytest.importorskip("av", reason="needs the video extra")
    data = encode_animation(shades(), Animation(frames=4, format="mp4", fps=7.5))
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == 7.5
        assert stream.codec_context.name == "h264"
        frames = [frame.to_image() for frame in container.decode(stream)]
    assert len(frames) == 4
    for found, shade in zip(arrays(frames), arrays(shades()), strict=True):
        assert abs(found - shade).mean() < 8


def test_without_pyav_an_mp4_is_refused_before_anything_is_computed(
    relative_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_spec(name: str) -> Any:
        return None if name == "av" else importlib.util.find_spec(name)

    monkeypatch.setattr(module, "find_spec", find_spec)
    check_format(Animation(frames=2, format="gif"))
    settings = WorkerSettings(device="cpu", dtype="float32", registry_dirs=(relative_registry,))
    engine = TorchEngine.from_settings(settings)
    steps: list[Any] = []
    with pytest.raises(UnsupportedFormat, match="ask for webp or gif") as caught:
        engine.execute(animated(format="mp4"), lambda _: shades()[0], lambda *s: steps.append(s))
    assert steps == []
    failure = engine.failure_of(caught.value)
    assert failure is not None
    assert failure.code is FailureCode.UNSUPPORTED_FORMAT
