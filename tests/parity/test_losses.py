"""Objectives, points, controls and texts against the recorded units."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from torch import Tensor

from heads_registry.targets import image_target
from tests.parity.cases import load_model
from tests.parity.golden import CONTEXT, DATA, GRADIENT, LOSS, SHARED, arrays
from worker.objectives import (
    Box,
    appearance_distance,
    boxed_distance,
    correspondence_distance,
    spatial_distance,
)

UNITS = json.loads((DATA / "units.json").read_text())


@pytest.fixture
def recorded() -> dict[str, Tensor]:
    return arrays(DATA / "units" / "losses.npz")


def first(tensor: Tensor) -> Tensor:
    """Maps are recorded channels last."""
    return tensor.permute(0, 3, 1, 2).contiguous()


def assert_same(loss: Tensor, observed: Tensor, expected: Tensor, gradient: Tensor) -> None:
    """Value, and gradient with respect to the observed map."""
    assert float(loss.detach() - expected) == pytest.approx(0, abs=LOSS * abs(float(expected)))
    (ours,) = torch.autograd.grad(loss, observed)
    assert float((ours - first(gradient)).norm() / gradient.norm()) <= GRADIENT


def extent(recorded: dict[str, Tensor]) -> float:
    low, high = recorded["latents_scale"].tolist()
    return high - low


def test_appearance(recorded: dict[str, Tensor]) -> None:
    observed = first(recorded["app_obs"]).requires_grad_()
    loss = appearance_distance(observed, first(recorded["app_gt"])).sum() * extent(recorded) ** 2
    assert_same(loss, observed, recorded["app_loss"], recorded["app_grad"])


def test_appearance_in_boxes(recorded: dict[str, Tensor]) -> None:
    boxes: list[tuple[Box, Box]] = [
        (tuple(UNITS["app_bbox"]["gt"]), tuple(UNITS["app_bbox"]["obs"]))  # type: ignore[list-item]
    ]
    observed = first(recorded["app_obs"]).requires_grad_()
    distance = boxed_distance(observed, first(recorded["app_gt"]), boxes)
    loss = distance.sum() * extent(recorded) ** 2
    assert_same(loss, observed, recorded["app_bbox_loss"], recorded["app_bbox_grad"])


def test_correspondence_of_the_points_that_lie_inside(recorded: dict[str, Tensor]) -> None:
    source, destination = recorded["corr_points_kept"]
    observed = first(recorded["app_obs"]).requires_grad_()
    loss = correspondence_distance(observed, first(recorded["app_gt"]), source, destination)
    assert_same(loss.sum(), observed, recorded["corr_loss"], recorded["corr_grad"])


@pytest.mark.parametrize("high", ["0.5", "1.0"])
def test_spatial(recorded: dict[str, Tensor], high: str) -> None:
    """A control is brought to the readout's size by nearest neighbours (REFERENCE 2.5)."""
    observed = first(recorded[f"spa_{high}_obs"]).requires_grad_()
    control = recorded[f"spa_{high}_control"]
    target = torch.nn.functional.interpolate(control[None], observed.shape[-2:], mode="nearest")
    units = (extent(recorded) / (2 * float(high))) ** 2
    loss = spatial_distance(observed, target).sum() * units
    assert_same(loss, observed, recorded[f"spa_{high}_loss"], recorded[f"spa_{high}_grad"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/inputs")
def test_square_controls_are_resized_as_the_authors_resize_them() -> None:
    path = SHARED / "inputs" / "data" / "spatial" / "pose" / "000000013291.png"
    with Image.open(path) as image:
        target = image_target(image, (16, 16), (-0.5, 0.5), "bicubic")
    expected = arrays(DATA / "units" / "inputs_preprocessing.npz")["pose_000000013291_16"]
    assert float((target - expected).abs().max()) <= 1e-6


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_texts(name: str) -> None:
    recorded = arrays(DATA / "units" / "text.npz")
    model = load_model(f"tiny-{name}")
    negative = next(text for text in UNITS["ids"] if text.startswith("poorly drawn"))
    prompts = [text for text in UNITS["ids"] if text != negative]
    texts = [negative, negative, *prompts]
    encoded = model.encode_prompts(texts, 96, 160)
    key = "sd15_context_uu_cc" if name == "sd15" else "sdxl_context"
    assert float((encoded.prompt_embeds - recorded[key]).abs().max()) <= CONTEXT
    if name == "sdxl":
        assert encoded.pooled_embeds is not None
        assert float((encoded.pooled_embeds - recorded["sdxl_text_embeds"]).abs().max()) <= CONTEXT
        # the authors' code gives the model's own size as the original one, we the picture's
        assert encoded.time_ids is not None
        assert torch.equal(encoded.time_ids[:, 2:], recorded["sdxl_time_ids"][:, 2:])
