"""Requests with references, from the effective request to pictures; tiny random models."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from heads_registry.base_model import BaseModel
from heads_registry.catalogue import Catalogue
from jobs.controls import Box, BoxPair, Drag, Point, Region
from jobs.request import (
    AppearanceControl,
    CorrespondenceControl,
    GenerationRequest,
    IdentityControl,
    InvertedReference,
    SampledReference,
    StoredImage,
)
from tests.tiny import FAMILY
from worker.controls import Canvas, InvalidControl
from worker.execute import Execution, execute, execute_together
from worker.models import ModelCache
from worker.reference_cache import ReferenceCache, reference_key
from worker.references import InversionFailed

SAMPLED = SampledReference(
    prompt="a person", negative_prompt="", seed=5, guidance_scale=3.0, eta=0.0
)


def picture(seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((40, 40), Image.Resampling.BICUBIC)


def stored(image: Image.Image) -> StoredImage:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    return StoredImage(upload_id="u", key="k", sha256=sha256, width=40, height=40)


INVERTED = InvertedReference(image=stored(picture()), prompt="a person", negative_prompt="")


def drag(x: float, y: float, to_x: float, to_y: float) -> Drag:
    return Drag(source=Point(x=x, y=y), destination=Point(x=to_x, y=to_y))


def correspondence(*points: Drag, **changes: Any) -> CorrespondenceControl:
    values: dict[str, Any] = {"weight": 1.0, "span": (0.0, 0.5)} | changes
    points = points or (drag(0.2, 0.2, 0.7, 0.6),)
    return CorrespondenceControl(head="tiny/correspondence", points=points, **values)


def appearance(**changes: Any) -> AppearanceControl:
    values: dict[str, Any] = {"weight": 1.0, "span": (0.0, 0.5)} | changes
    return AppearanceControl(head="tiny/appearance", **values)


def request(**changes: Any) -> GenerationRequest:
    values: dict[str, Any] = {
        "task": "drag",
        "model": FAMILY,
        "prompt": "a person",
        "negative_prompt": "",
        "num_images": 1,
        "seed": 5,
        "height": 32,
        "width": 32,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "eta": 0.0,
        "form": "two_pass",
        "branch": "unconditional",
        "update_rule": "elementwise",
        "controls": (appearance(), correspondence()),
        "reference": SAMPLED,
        "start": "reference",
    }
    return GenerationRequest(**(values | changes))


def run(models: ModelCache, asked: GenerationRequest) -> Execution:
    return execute(asked, models, lambda _: picture(), lambda step_index, num_steps: None)


def together(models: ModelCache, asked: Sequence[GenerationRequest]) -> list[Execution]:
    return execute_together(asked, models, lambda _: picture(), lambda *_: None)


def forwards(execution: Execution) -> float:
    return execution.timings["reference_forwards"]


def same(first: Execution, second: Execution) -> bool:
    return all(
        np.array_equal(np.array(a), np.array(b))
        for a, b in zip(first.images, second.images, strict=True)
    ) and (first.distances == second.distances)


@pytest.fixture(scope="module")
def models(relative_registry: Path) -> ModelCache:
    return ModelCache(Catalogue([relative_registry]), 10**9)


@pytest.fixture
def fresh(models: ModelCache) -> ModelCache:
    """With an empty reference cache."""
    models.references = ReferenceCache(10**8)
    return models


@pytest.mark.parametrize("reference", [SAMPLED, INVERTED], ids=["sampled", "inverted"])
def test_the_second_edit_of_a_reference_costs_it_no_pass(
    fresh: ModelCache, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(fresh, request(reference=reference))
    assert forwards(first) == (4 if reference is SAMPLED else 8)
    passes = []
    denoise = BaseModel.denoise

    def counting(self: BaseModel, *arguments: Any) -> torch.Tensor:
        passes.append(len(arguments[0]))
        return denoise(self, *arguments)

    monkeypatch.setattr(BaseModel, "denoise", counting)
    moved = correspondence(drag(0.2, 0.2, 0.4, 0.9), drag(0.7, 0.7, 0.6, 0.1), weight=2.0)
    second = run(fresh, request(reference=reference, controls=(appearance(), moved)))
    assert forwards(second) == 0
    # two guided steps: the gradient's pass, then both branches; two others: both branches
    assert len(passes) == 2 * 2 + 2
    assert not same(first, second)
    assert second.reference_psnr_db == first.reference_psnr_db


@pytest.mark.parametrize("branch", ["unconditional", "both"])
def test_the_cache_changes_no_bit(fresh: ModelCache, branch: str, tmp_path: Path) -> None:
    asked = request(branch=branch, reference=INVERTED)
    plain = run(fresh, asked)
    assert same(plain, run(fresh, asked))
    size = fresh.references.nbytes
    for budget, spilled in ((size // 2, False), (0, True)):
        fresh.references = ReferenceCache(budget, tmp_path if spilled else None, disk_bytes=10**8)
        assert same(plain, run(fresh, asked))
        again = run(fresh, asked)
        assert same(plain, again)
        assert forwards(again) == 0 if spilled else 0 < forwards(again) < 4
        assert again.timings["reference_from_disk" if spilled else "reference_from_memory"] == 1


def test_a_head_or_a_step_that_was_not_read_is_read_from_the_latents(fresh: ModelCache) -> None:
    run(fresh, request(controls=(appearance(),)))
    assert forwards(run(fresh, request(controls=(appearance(span=(0.0, 0.75)),)))) == 1
    assert forwards(run(fresh, request())) == 3  # the other head, at steps 0, 1 and 3
    assert forwards(run(fresh, request())) == 0
    assert len(fresh.references) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"reference": SAMPLED.model_copy(update={"seed": 6})},
        {"reference": SAMPLED.model_copy(update={"eta": 0.5})},
        {"num_inference_steps": 5},
        {"width": 64},
        {"reference": INVERTED},
    ],
)
def test_what_decides_the_numbers_is_another_reference(fresh: ModelCache, changes: Any) -> None:
    run(fresh, request())
    assert forwards(run(fresh, request(**changes))) > 0
    assert len(fresh.references) == 2


def test_a_drag_that_begins_with_its_reference_and_is_off_is_the_reference(
    fresh: ModelCache,
) -> None:
    off = (appearance(weight=0.0), correspondence(weight=0.0))
    plain = run(fresh, request(controls=off))
    again = run(fresh, request(task="text_to_image", controls=(), reference=None, start="seed"))
    assert np.array_equal(np.array(plain.images[0]), np.array(again.images[0]))
    assert plain.distances[0][0] == pytest.approx(0, abs=1e-3)
    assert "reference_forwards" not in again.timings


def test_guidance_comes_closer_to_the_reference(fresh: ModelCache) -> None:
    options: dict[str, Any] = {"task": "appearance", "seed": 9, "start": "seed"}
    span = (0.0, 1.0)
    sweep = run(
        fresh,
        request(
            **options,
            controls=(appearance(span=span),),
            weight_sweep=(0.0, 0.5, 1.0),
            num_images=3,
        ),
    )
    assert sweep.seeds == [9, 9, 9]
    distances = [row[0] for row in sweep.distances]
    assert distances == sorted(distances, reverse=True)
    alone = run(fresh, request(**options, controls=(appearance(span=span, weight=0.5),)))
    assert alone.distances[0][0] == pytest.approx(distances[1], rel=0.05)


def test_identity_inside_the_boxes_and_the_original_outside(fresh: ModelCache) -> None:
    face, other = Box(x0=0.1, y0=0.1, x1=0.4, y1=0.5), Box(x0=0.5, y0=0.2, x1=0.9, y1=0.6)
    identity = IdentityControl(
        head="tiny/identity",
        boxes=(BoxPair(reference=face, picture=other),),
        weight=1.0,
        span=(0.0, 1.0),
    )
    around = appearance(
        towards="original", region=Region(boxes=(other,), outside=True), span=(0.0, 1.0)
    )
    options: dict[str, Any] = {"task": "identity", "start": "seed", "eta": 1.0, "num_images": 2}
    both = run(fresh, request(**options, controls=(identity, around)))
    assert len(fresh.references) == 3  # the reference, and each picture's own trajectory
    off = (identity.model_copy(update={"weight": 0.0}), around.model_copy(update={"weight": 0.0}))
    plain = run(fresh, request(**options, controls=off))
    for guided, unguided in zip(both.distances, plain.distances, strict=True):
        assert guided[0] < unguided[0]
        assert unguided[1] == pytest.approx(0, abs=1e-3)
    assert [image.size for image in both.readouts[0]] == [(8, 8), (8, 8)]


def test_the_original_of_a_picture_that_begins_with_an_inverted_reference_does_so_too(
    fresh: ModelCache,
) -> None:
    around = appearance(towards="original", weight=0.0, span=(0.0, 1.0))
    for asked in ({"reference": INVERTED}, {"reference": INVERTED, "eta": 0.5, "seed": 9}):
        still = run(fresh, request(controls=(around,), **asked))
        assert still.distances[0][0] == pytest.approx(0, abs=1e-3)
        assert forwards(run(fresh, request(controls=(around,), **asked))) == 0


def test_a_sampled_reference_that_a_picture_begins_with_is_its_original(fresh: ModelCache) -> None:
    towards = [appearance(towards=which, weight=0.0) for which in ("reference", "original")]
    run(fresh, request(controls=tuple(towards)))
    assert len(fresh.references) == 1, "nothing is sampled twice"


@pytest.mark.parametrize("edge", [0.9999999999999999, 0.99999994])
def test_what_rounding_puts_on_the_edge_lies_in_the_last_cell(
    fresh: ModelCache, edge: float
) -> None:
    points = correspondence(drag(0.3, 0.5, edge, edge), span=(0.0, 1.0))
    assert run(fresh, request(controls=(appearance(), points))).images
    thin = Box(x0=0.041666666666666664, y0=0.2, x1=0.04166666666666667, y1=edge)
    pair = (BoxPair(reference=thin, picture=thin),)
    canvas = Canvas(fresh.model("tiny"), request(width=96, controls=()))
    left, top, right, bottom = canvas._box(thin)
    assert (left, right) == (1, 2)
    assert (top, bottom) == (1, canvas.grid[0])
    identity = IdentityControl(head="tiny/identity", boxes=pair, weight=1.0, span=(0.0, 1.0))
    asked: dict[str, Any] = {"task": "identity", "start": "seed", "width": 96}
    assert run(fresh, request(controls=(identity,), **asked)).images


def test_a_reconstruction_is_measured_and_a_poor_one_is_told(fresh: ModelCache) -> None:
    execution = run(fresh, request(reference=INVERTED))
    assert execution.reference_psnr_db is not None
    assert execution.reference_psnr_db < 20  # a random model reconstructs nothing
    assert "dB" in execution.warnings[0]
    assert run(fresh, request()).warnings == ()


def test_an_inversion_that_fails_says_so(
    fresh: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: BaseModel, pixels: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 4, 8, 8), torch.inf)

    monkeypatch.setattr(BaseModel, "encode", broken)
    with pytest.raises(InversionFailed, match="cannot be inverted"):
        run(fresh, request(reference=INVERTED))
    assert len(fresh.references) == 0


@pytest.mark.parametrize(
    ("control", "message"),
    [
        (correspondence(drag(0.2, 0.2, 0.21, 0.21)), "pair 0 .* 4 px"),
        (
            appearance(region=Region(boxes=(Box(x0=0, y0=0, x1=1, y1=1),), outside=True)),
            "nothing outside",
        ),
    ],
)
def test_a_control_that_could_do_nothing_is_refused(
    fresh: ModelCache, control: Any, message: str
) -> None:
    with pytest.raises(InvalidControl, match=message):
        run(fresh, request(controls=(control,)))


def test_keys_do_not_depend_on_the_order_of_facts() -> None:
    assert reference_key({"a": 1, "b": [1, 2]}) == reference_key({"b": [1, 2], "a": 1})
    assert reference_key({"a": 1}) != reference_key({"a": 1.5})
