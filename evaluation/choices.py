"""How the demo model's task defaults were chosen, and the raw features that drags are compared
with; parts of `make results`, all on validation scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.preserve import Portraits, Variations
from evaluation.tasks import (
    DRAG_POSE,
    MASKED,
    Row,
    appearance_row,
    bench_of,
    drag_row,
    identity_row,
)
from world.seeds import VALIDATION

PLAIN = {"form": "one_pass", "branch": "conditional"}
"""The demo model's defaults, named because a task may have others."""
BOTH = {"form": "two_pass", "branch": "both"}


def _forms(common: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is asked for in the forms and branches that are not the demo model's default."""
    return {
        f"weight {common['weight']:g}, {name}": {**PLAIN, **common, **change}
        for name, change in {
            "two_pass": {"form": "two_pass"},
            "unconditional branch": {"branch": "unconditional"},
            "both branches": {"branch": "both"},
            "two_pass, both branches": BOTH,
        }.items()
    }


def _grid(
    weights: Sequence[float], spans: Sequence[tuple[float, float]]
) -> dict[str, dict[str, Any]]:
    return {
        f"weight {weight:g}, span {span[0]:g}-{span[1]:g}": {
            **PLAIN, "weight": weight, "span": span,
        }
        for span in spans
        for weight in weights
    }  # fmt: skip


def _said(value: Any) -> str:
    if isinstance(value, dict):
        start, end = value["span"]
        return f"pose {value['weight']:g}, {start:g}-{end:g}"
    return str(value)


def _drag(
    weight: float, appearance: float, span: tuple[float, float], **changes: Any
) -> dict[str, dict[str, Any]]:
    """A choice of weights and span in two_pass and both branches, where nothing else is said."""
    said = "".join(f", {_said(value)}" for value in changes.values())
    name = f"weight {weight:g}, appearance {appearance:g}, span {span[0]:g}-{span[1]:g}{said}"
    asked = {"weight": weight, "balance": appearance / weight, "span": span}
    return {name: BOTH | asked | changes}


DRAG_CHOICES: dict[str, dict[str, Any]] = (
    {"no guidance": {"weight": 0.0}}
    | _drag(0.25, 0.125, (0.0, 0.5))
    | _drag(0.25, 0.25, (0.2, 0.8))
    | _drag(0.5, 0.5, (0.2, 0.9))
    | _drag(0.5, 0.5, (0.4, 0.9))
    | _drag(0.25, 0.25, (0.3, 0.9))
    | _drag(0.5, 0.5, (0.3, 0.9))
    | _drag(1.0, 1.0, (0.3, 0.9))
    | _drag(0.25, 0.25, (0.3, 0.9), form="two_pass", branch="conditional")
    | _drag(0.25, 0.25, (0.3, 0.9), form="one_pass", branch="both")
    | _drag(0.25, 0.25, (0.3, 0.9), form="one_pass", branch="conditional")
    | _drag(0.25, 0.25, (0.3, 0.9), pose={"weight": 0.5, "span": [0.0, 0.8]})
    | _drag(0.25, 0.25, (0.3, 0.9), pose=DRAG_POSE | {"span": [0.3, 0.9]})
    | _drag(0.25, 0.25, (0.3, 0.9), pose={"weight": 0.5, "span": [0.3, 0.9]})
    | _drag(0.25, 0.25, (0.3, 0.9), pose={"weight": 1.0, "span": [0.3, 0.9]})
)
MASKED_CHOICES: dict[str, dict[str, Any]] = (
    _drag(0.25, 0.25, (0.3, 0.9))
    | _drag(0.5, 0.5, (0.3, 0.9))
    | _drag(0.25, 0.25, (0.3, 0.9), pose=DRAG_POSE | {"span": [0.3, 0.9]})
    | _drag(0.25, 0.25, (0.3, 0.9), pose={"weight": 0.5, "span": [0.3, 0.9]})
    | _drag(0.5, 0.5, (0.3, 0.9), pose={"weight": 0.5, "span": [0.3, 0.9]})
    | _drag(1.0, 1.0, (0.3, 0.9), pose={"weight": 1.0, "span": [0.3, 0.9]})
)
APPEARANCE_CHOICES: dict[str, dict[str, Any]] = (
    _grid((0.125, 0.25, 0.5, 1.0), [(0.05, 0.5)])
    | _grid((0.25, 0.5, 1.0), [(0.3, 0.9)])
    | _grid((1.0,), [(0.2, 0.8)])
    | _grid((0.5, 1.0), [(0.4, 0.9), (0.42, 0.9), (0.45, 0.9)])
    | _forms({"weight": 0.5, "span": (0.4, 0.9)})
)
IDENTITY_CHOICES: dict[str, dict[str, Any]] = (
    _grid((0.25, 0.5, 1.0), [(0.05, 0.8)])
    | _grid((0.5, 1.0), [(0.3, 0.9)])
    | _forms({"weight": 0.5, "span": (0.05, 0.8)})
)


def choose_drag(count: int) -> list[Row]:
    """The search that chose the demo model's drag defaults, on validation scenes."""
    bench, _ = bench_of(count)
    cases = bench.cases.generated(VALIDATION, bench.choosing)
    return [
        {"choice": name, **drag_row(bench.dragged(bench.drags(cases, name, **changes), cases))}
        for name, changes in DRAG_CHOICES.items()
    ]


def choose_masked_drag(count: int) -> list[Row]:
    """Weights of drags within a mask, on validation scenes; twice as many as for the defaults."""
    bench, _ = bench_of(count)
    cases = bench.cases.generated(VALIDATION, 2 * bench.choosing)
    rows: list[Row] = []
    for name, changes in MASKED_CHOICES.items():
        pictures = bench.drags(cases, name, **MASKED, **changes)
        rows.append({"choice": name, **drag_row(bench.dragged(pictures, cases))})
    return rows


def choose_raw(count: int) -> list[Row]:
    """The search that chose tap and weight of the raw features which drags are compared with."""
    bench, _ = bench_of(count)
    return [
        {"tap": tap, "weight": weight, **drag_row(scores)}
        for (tap, weight), scores in bench.raw_choices().items()
    ]


def choose_appearance(count: int) -> list[Row]:
    """The search that chose the demo model's appearance defaults, on validation scenes."""
    bench, _ = bench_of(count)
    cases = Variations.of(VALIDATION[: bench.choosing // 4])
    references = cases.reference_pictures(bench.studio)
    choices = {"no guidance": {"weight": 0.0}} | APPEARANCE_CHOICES
    found = {
        name: bench.appearance(
            bench.studio.pictures(cases.asked(**changes), name).pictures, references
        )
        for name, changes in choices.items()
    }
    return [
        {"choice": name, **appearance_row(scores, found["no guidance"])}
        for name, scores in found.items()
    ]


def choose_identity(count: int) -> list[Row]:
    """The search for the demo model's identity defaults, on validation people."""
    bench, _ = bench_of(count)
    cases = Portraits.of(VALIDATION[: bench.choosing // 2], bench.studio, bench.find)
    plain = bench.identity(cases.originals, cases)
    rows: list[Row] = [{"choice": "no guidance", **identity_row(plain, plain)}]
    for name, changes in IDENTITY_CHOICES.items():
        pictures = bench.studio.pictures(cases.asked(**changes), name).pictures
        rows.append({"choice": name, **identity_row(bench.identity(pictures, cases), plain)})
    return rows


PARTS = {
    "choose_drag": ("How the drag defaults were chosen (validation)", choose_drag),
    "choose_masked_drag": (
        "How the weights within a mask were chosen (validation)",
        choose_masked_drag,
    ),
    "choose_raw": ("How the raw features were chosen (validation)", choose_raw),
    "choose_appearance": (
        "How the appearance defaults were chosen (validation)",
        choose_appearance,
    ),
    "choose_identity": ("How the identity defaults were chosen (validation)", choose_identity),
}
"""name → title, function of the count of held-out scenes."""
