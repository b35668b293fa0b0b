from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.choices import (
    APPEARANCE_CHOICES,
    DRAG_CHOICES,
    IDENTITY_CHOICES,
    MASKED_CHOICES,
)
from evaluation.drag import JOINTS, Case
from evaluation.edits import EditStudio
from evaluation.preserve import Portraits, Variations
from tests.tiny import add_relative_heads

BOXES = torch.tensor([[0.5, 0.4, 0.4], [0.45, 0.4, 0.5]])
FACE = {"prompt": "a portrait of a person", "seed": 1}


def drag(**changes: Any) -> list[dict[str, Any]]:
    points = torch.rand(18, 2, generator=torch.Generator().manual_seed(0)) * 0.3
    target = torch.tensor([0.8, 0.8])
    return [
        Case("a person", FACE, torch.zeros(3, 64, 64), points, JOINTS[0], target).asked(**changes)
    ]


def appearance(**changes: Any) -> list[dict[str, Any]]:
    return Variations(["a person"], [FACE], [2]).asked(**changes)


def identity(**changes: Any) -> list[dict[str, Any]]:
    pictures = torch.zeros(2, 3, 64, 64)
    cases = Portraits(["one", "two"], [2, 3], [FACE] * 2, pictures, pictures, (BOXES, BOXES))
    return cases.asked(**changes)


@pytest.fixture
def studio(tiny_registry_copy: Path, tmp_path: Path) -> EditStudio:
    add_relative_heads(tiny_registry_copy)
    return EditStudio(tmp_path / "cache", tiny_registry_copy, "tiny")


@pytest.mark.parametrize(
    ("ask", "choices", "kinds"),
    [
        (drag, DRAG_CHOICES | MASKED_CHOICES, ("appearance", "correspondence")),
        (appearance, APPEARANCE_CHOICES, ("appearance",)),
        (identity, IDENTITY_CHOICES, ("identity", "appearance")),
    ],
)
def test_every_choice_is_a_request_that_the_gateway_takes(
    studio: EditStudio, ask: Any, choices: dict[str, dict[str, Any]], kinds: tuple[str, ...]
) -> None:
    for changes in choices.values():
        forms = {name: changes[name] for name in ("form", "branch") if name in changes}
        for request in map(studio.resolved, ask(**changes)):
            also = ("spatial",) if "pose" in changes else ()
            assert tuple(control.type for control in request.controls) == kinds + also
            last = request.controls[len(kinds) - 1]
            assert last.span == changes.get("span", last.span)
            assert last.weight == changes.get("weight", last.weight)
            assert forms.items() <= request.model_dump().items()


def test_identity_alone_has_no_term_around_the_face(studio: EditStudio) -> None:
    for request in map(studio.resolved, identity(around=False)):
        assert [control.type for control in request.controls] == ["identity"]
    region = studio.resolved(identity()[0]).controls[1].region
    assert region is not None
    assert region.outside
