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
from tests.worker.test_references import (
    INVERTED,
    SAMPLED,
    appearance,
    correspondence,
    drag,
    picture,
    request,
)
from worker.execute import Execution, execute, execute_together
from worker.init_image import Beginning, InvalidMask, mask_of, picture_of
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
    "k": picture(),
    "picture": picture(1),
    "other": picture(2),
    "mask": masked(),
    "soft": masked(100),
    "black": Image.new("L", SIZE),
}


def init(name: str = "picture", strength: float = 0.6) -> InitImage:
    return InitImage(image=image(name), strength=strength)


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


def kept(**changes: Any) -> Any:
    """A drag within a mask on its reference."""
    always: dict[str, Any] = {"span": (0.0, 1.0)}
    controls = appearance(**always), correspondence(drag(0.3, 0.3, 0.6, 0.6), **always)
    values: dict[str, Any] = {"mask": image("mask"), "num_inference_steps": 5, "controls": controls}
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
    (hard,) = run(models, edit(mask=image("mask"), num_images=2))
    (soft,) = run(models, edit(mask=image("soft")))
    black = np.array(masked(0)) == 0
    outside = np.array(masked()) == 0
    for drawn in (pixels(hard), pixels(hard, 1), pixels(soft)):
        assert np.array_equal(drawn[outside], original[outside])
        assert not np.array_equal(drawn[~black], original[~black])
    # grey 100 is under half white: its cells are not repainted, its pixels are mixed in
    mask = mask_of(
        edit(mask=image("soft")), models.model("tiny"), lambda stored: IMAGES[stored.key]
    )
    assert mask is not None
    assert mask.repaint.sum() == 16
    begun = Beginning(picture_of(IMAGES["picture"], SIZE, "cover"), mask, {})
    mixed = np.array(begun.finished(Image.new("RGB", SIZE)), int)[6, 6]
    assert mixed == pytest.approx(original[6, 6] * 155 / 255, abs=1)


def test_a_mask_without_white_is_refused(models: ModelCache) -> None:
    with pytest.raises(InvalidMask, match="paint white"):
        run(models, edit(mask=image("black")))
    with pytest.raises(InvalidMask, match="paint white"):
        run(models, kept(mask=image("black")))


def test_a_drag_to_where_the_mask_is_black_is_refused_before_its_reference_costs_time(
    fresh: ModelCache,
) -> None:
    points = drag(0.3, 0.3, 0.6, 0.6), drag(0.4, 0.4, 0.9, 0.6)
    with pytest.raises(InvalidMask, match="pair 1 of the points ends where the mask is black"):
        run(fresh, kept(controls=(appearance(), correspondence(*points))))
    assert len(fresh.references) == 0


@pytest.mark.parametrize("form", ["one_pass", "two_pass"])
@pytest.mark.parametrize("branch", ["unconditional", "both"])
def test_a_control_is_obeyed_inside_the_mask(models: ModelCache, form: str, branch: str) -> None:
    start = {"init_image": init(strength=0.8), "mask": image("mask")}
    options: dict[str, Any] = start | {"form": form, "branch": branch}
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
    masked = edit(init_image=init("other", 0.5), mask=image("mask"), **shown)
    assert batch_group(asked) == batch_group(masked)


def test_pictures_of_different_starts_run_together_as_alone(models: ModelCache) -> None:
    requests = [
        edit(update_rule="rms"),
        edit(update_rule="rms", init_image=init("other"), mask=image("mask"), seed=8, num_images=2),
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
    mask: dict[str, Any] = {"mask": image("mask")}
    starts = ({}, mask, {"init_image": None}, {"init_image": None} | mask)
    for start in starts:
        (plain,) = run(fresh, edit(**options, **start, controls=off))
        assert plain.distances[0][1] == pytest.approx(0, abs=1e-3)
        (guided,) = run(fresh, edit(**options, **start, controls=(identity, around)))
        assert guided.distances[0][0] < plain.distances[0][0]
        assert guided.timings["reference_forwards"] == 0
    assert len(fresh.references) == 5  # the reference, and four originals


@pytest.mark.parametrize("form", ["one_pass", "two_pass"])
@pytest.mark.parametrize("reference", [SAMPLED, INVERTED], ids=["sampled", "inverted"])
def test_a_mask_on_a_reference_keeps_what_the_reference_shows(
    fresh: ModelCache, form: str, reference: Any
) -> None:
    asked = {"reference": reference, "form": form}
    off = tuple(one.model_copy(update={"weight": 0.0}) for one in kept().controls)
    (plain,) = run(fresh, kept(**asked, controls=off))
    (guided,) = run(fresh, kept(**asked))
    shown = pixels(plain)
    if reference is INVERTED:  # its own pixels, not those of its reconstruction
        shown = np.array(picture_of(IMAGES["k"], SIZE, "cover"), int)
    outside = np.array(masked()) == 0
    assert np.array_equal(pixels(guided)[outside], shown[outside])
    assert not np.array_equal(pixels(guided)[~outside], pixels(plain)[~outside])
    assert guided.distances[0][1] < plain.distances[0][1]
    assert guided.timings["reference_forwards"] == 0


def test_within_a_mask_a_reference_is_the_same_without_guidance(fresh: ModelCache) -> None:
    """Inside begins with its noise, outside is its way: nothing tells them apart."""
    off = tuple(one.model_copy(update={"weight": 0.0}) for one in kept().controls)
    (inside,) = run(fresh, kept(controls=off))
    (whole,) = run(fresh, kept(controls=off, mask=None))
    assert np.array_equal(pixels(inside), pixels(whole))


def test_seeds_repaint_a_reference_within_a_mask(fresh: ModelCache) -> None:
    other = kept(controls=(), start="seed", seed=8, num_images=2, update_rule="rms")
    (execution,) = run(fresh, other)
    assert execution.timings["reference_forwards"] == 5
    outside = np.array(masked()) == 0
    first, second = pixels(execution), pixels(execution, 1)
    assert np.array_equal(first[outside], second[outside])
    assert not np.array_equal(first[~outside], second[~outside])
    for asked in (other, kept(mask=None, update_rule="rms"), edit(update_rule="rms")):
        (alone,) = run(fresh, asked)
        (beside, *_) = run(fresh, asked, kept(update_rule="rms"))
        assert abs(pixels(alone) - pixels(beside)).mean() < 2


def test_the_picture_tells_what_it_started_from_but_not_where_that_is() -> None:
    told = embedded_parameters(edit(mask=image("mask")), 3, {})
    start = {"fit": "cover", "strength": 0.6, "image_sha256": "picture"}
    assert (told["init_image"], told["mask_sha256"]) == (start, "mask")
    assert "key" not in json.dumps(told)


def test_one_request_alone(models: ModelCache) -> None:
    execution = execute(edit(), models, lambda stored: IMAGES[stored.key], lambda *_: None)
    assert execution.images[0].size == SIZE
