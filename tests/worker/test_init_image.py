"""Init images and masks, from the effective request to pictures; tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from heads_registry.catalogue import Catalogue
from jobs.controls import Box, BoxPair, Keypoint, Pose, Region
from jobs.request import IdentityControl, InitImage, OutputOptions, SpatialControl, StoredImage
from jobs.schedule import batch_group, cost
from tests.worker.test_references import SAMPLED, appearance, picture, request
from worker.execute import Execution, execute, execute_together
from worker.init_image import InvalidMask, beginning, picture_of
from worker.models import ModelCache
from worker.publish import embedded_parameters
from worker.reference_cache import ReferenceCache

SIZE = (32, 32)


def image(name: str) -> StoredImage:
    return StoredImage(upload_id=name, key=name, sha256=name, width=40, height=40)


def masked(edge: int = 255) -> Image.Image:
    """White in the middle, of `edge` around it, black elsewhere."""
    mask = np.zeros((32, 32), np.uint8)
    mask[6:26, 6:26] = edge
    mask[8:24, 8:24] = 255
    return Image.fromarray(mask)


IMAGES = {
    "picture": picture(1),
    "other": picture(2),
    "mask": masked(),
    "soft": masked(100),
    "black": Image.new("L", SIZE),
}


def init(name: str = "picture", mask: str | None = None, strength: float = 0.6) -> InitImage:
    return InitImage(
        image=image(name), strength=strength, mask=image(mask) if mask is not None else None
    )


def pose(span: tuple[float, float] = (0.0, 1.0)) -> SpatialControl:
    points = tuple(Keypoint(x=0.5, y=0.05 + index / 20) for index in range(18))
    people = Pose(people=(points,), aspect_ratio=1.0)
    return SpatialControl(head="tiny/pose", pose=people, weight=1.0, span=span)


def edit(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "task": "spatial",
        "controls": (pose(),),
        "reference": None,
        "start": "seed",
        "init_image": init(),
        "num_inference_steps": 5,
    }
    return request(**(values | changes))


def run(models: ModelCache, *asked: Any, steps: list[Any] | None = None) -> list[Execution]:
    told = steps if steps is not None else []
    return execute_together(
        asked, models, lambda stored: IMAGES[stored.key], lambda *step: told.append(step)
    )


@pytest.fixture(scope="module")
def models(relative_registry: Path) -> ModelCache:
    return ModelCache(Catalogue([relative_registry]), 10**9)


@pytest.fixture
def fresh(models: ModelCache) -> ModelCache:
    """With an empty reference cache."""
    models.references = ReferenceCache(10**8)
    return models


def pixels(execution: Execution, index: int = 0) -> Any:
    return np.array(execution.images[index], int)


def test_black_keeps_the_pixels_and_grey_mixes(models: ModelCache) -> None:
    original = np.array(picture_of(IMAGES["picture"], SIZE, "cover"), int)
    (hard,) = run(models, edit(init_image=init(mask="mask"), num_images=2))
    (soft,) = run(models, edit(init_image=init(mask="soft"), num_images=1))
    black = np.array(masked(0)) == 0
    outside = np.array(masked()) == 0
    for drawn in (pixels(hard), pixels(hard, 1), pixels(soft)):
        assert np.array_equal(drawn[outside], original[outside])
        assert not np.array_equal(drawn[~black], original[~black])
    # grey 100 is under half white: its cells are not repainted, its pixels are mixed in
    begun = beginning(
        edit(init_image=init(mask="soft")), models.model("tiny"), lambda one: IMAGES[one.key]
    )
    assert begun is not None
    assert begun.repaint is not None
    assert begun.repaint.sum() == 16
    mixed = np.array(begun.finished(Image.new("RGB", SIZE)), int)[6, 6]
    assert mixed == pytest.approx(original[6, 6] * 155 / 255, abs=1)


def test_a_mask_without_white_is_refused(models: ModelCache) -> None:
    with pytest.raises(InvalidMask, match="paint white"):
        run(models, edit(init_image=init(mask="black")))


@pytest.mark.parametrize("form", ["one_pass", "two_pass"])
@pytest.mark.parametrize("branch", ["unconditional", "both"])
def test_a_control_is_obeyed_inside_the_mask(models: ModelCache, form: str, branch: str) -> None:
    start = init(mask="mask", strength=0.8)
    options: dict[str, Any] = {"init_image": start, "form": form, "branch": branch}
    (guided,) = run(models, edit(**options))
    off = pose().model_copy(update={"weight": 0.0})
    (plain,) = run(models, edit(**options, controls=(off,)))
    assert guided.distances[0][0] < plain.distances[0][0]


def test_fewer_steps_are_run_told_and_counted(models: ModelCache) -> None:
    shown: dict[str, Any] = {"output": OutputOptions(evolution_steps=(3,))}
    asked = edit(init_image=init(strength=0.4), **shown)
    steps: list[Any] = []
    (execution,) = run(models, asked, steps=steps)
    assert steps == [(0, 2), (1, 2)]
    assert [frame.step for frame in execution.evolution[0]] == [3]
    whole = edit(init_image=None, **shown)
    assert cost(asked) == pytest.approx(cost(whole) * 2 / 5)
    assert batch_group(asked) != batch_group(whole)
    assert batch_group(asked) == batch_group(edit(init_image=init("other", "mask", 0.5), **shown))


def test_pictures_of_different_starts_run_together_as_alone(models: ModelCache) -> None:
    requests = [
        edit(update_rule="rms"),
        edit(update_rule="rms", init_image=init("other", "mask"), seed=8, num_images=2),
        edit(update_rule="rms", controls=(), init_image=init("other"), seed=9),
    ]
    together = run(models, *requests)
    for asked, got in zip(requests, together, strict=True):
        (alone,) = run(models, asked)
        for index in range(asked.num_images):
            assert abs(pixels(got, index) - pixels(alone, index)).mean() < 2


def test_the_original_of_an_edit_starts_where_the_edit_does(fresh: ModelCache) -> None:
    """Section 9.1: towards what the same start gives without guidance."""
    face = Box(x0=0.3, y0=0.3, x1=0.6, y1=0.6)
    pair = (BoxPair(reference=face, picture=face),)
    identity = IdentityControl(head="tiny/identity", boxes=pair, weight=1.0, span=(0.0, 1.0))
    around = appearance(
        towards="original", region=Region(boxes=(face,), outside=True), span=(0.0, 1.0)
    )
    options: dict[str, Any] = {"task": "identity", "reference": SAMPLED, "seed": 9}
    off = tuple(one.model_copy(update={"weight": 0.0}) for one in (identity, around))
    for start in (init(), init(mask="mask"), None):
        (plain,) = run(fresh, edit(**options, init_image=start, controls=off))
        assert plain.distances[0][1] == pytest.approx(0, abs=1e-3)
        (guided,) = run(fresh, edit(**options, init_image=start, controls=(identity, around)))
        assert guided.distances[0][0] < plain.distances[0][0]
        assert guided.timings["reference_forwards"] == 0
    assert len(fresh.references) == 4  # the reference, and three originals


def test_the_picture_tells_what_it_started_from_but_not_where_that_is() -> None:
    told = embedded_parameters(edit(init_image=init(mask="mask")), 3, {})["init_image"]
    assert told == {
        "fit": "cover",
        "strength": 0.6,
        "image_sha256": "picture",
        "mask_sha256": "mask",
    }
    assert "key" not in json.dumps(told)


def test_one_request_alone(models: ModelCache) -> None:
    execution = execute(edit(), models, lambda stored: IMAGES[stored.key], lambda *_: None)
    assert execution.images[0].size == SIZE
