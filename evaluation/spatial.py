"""Measures of spatial control and of what the base model does without it; parts of `make results`.

Poses that the defaults were chosen on (VALIDATION) are never those that are reported (TEST).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from evaluation.generate import MODEL, Condition, Scenes, Studio
from evaluation.measures import background_spread
from evaluation.scores import Scorer
from evaluation.statistics import bootstrap, mean, mean_difference, mean_ratio
from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from world.seeds import TEST, VALIDATION

RUNS = Path("runs/results")

Row = dict[str, str | float]


class _Bench:
    """What the parts share: pictures, scores and the scenes they are of."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.studio = Studio(RUNS / "pictures")
        self.scorer = Scorer()
        self.held_out = Scenes.of(TEST[:count])

    def some(self, count: int) -> Scenes:
        """The first held-out scenes, at least eight."""
        return self.held_out.first(max(8, count))

    def scores(
        self, condition: Condition, scenes: Scenes | None = None
    ) -> tuple[dict[str, np.ndarray], torch.Tensor]:
        """Scores and pictures of a condition."""
        scenes = scenes or self.held_out
        pictures = self.studio.pictures(condition, scenes)
        return self.scorer(pictures, scenes), pictures


@cache
def _bench(count: int) -> _Bench:
    return _Bench(count)


def pose(count: int) -> list[Row]:
    """Obedience to held-out poses, and what it cost."""
    bench = _bench(count)
    default = bench.studio.plan(Condition()).form
    other = "two_pass" if default == "one_pass" else "one_pass"
    rows = [_judge_ceiling(bench)]
    reference = bench.scores(Condition())
    for name, condition in {
        "unguided": Condition(),
        f"guided, {default} (default)": Condition(signal="pose"),
    }.items():
        rows.append(_pose_row(name, *bench.scores(condition), *reference))
    few = bench.some(bench.count // 4)
    paired = bench.scores(Condition(), few)
    row = _pose_row(
        f"guided, {other}", *bench.scores(Condition(signal="pose", form=other), few), *paired
    )
    return [*rows, row]


def sweep(count: int) -> list[Row]:
    """Weight against obedience and cost, on a sixth of the poses; the default form and span."""
    bench = _bench(count)
    scenes = bench.some(bench.count // 6)
    reference = bench.scores(Condition(), scenes)
    return [
        _pose_row(
            f"weight {weight:g}",
            *bench.scores(Condition(signal="pose", weight=weight), scenes),
            *reference,
        )
        for weight in (0.125, 0.25, 0.5, 1.0)
    ]


LONG = (0.0, 0.8)
CHOICES = [
    Condition(signal="pose", update_rule="elementwise", branch="unconditional", span=LONG),
    Condition(signal="pose", update_rule="rms", branch="unconditional", span=LONG),
    Condition(signal="pose", update_rule="rms", branch="conditional", span=LONG),
    Condition(signal="pose", update_rule="rms", branch="conditional", span=(0.0, 0.5)),
    Condition(signal="pose", update_rule="rms", branch="conditional", span=LONG, weight=0.25),
    Condition(signal="pose", update_rule="rms", branch="conditional", span=LONG, weight=0.75),
    Condition(signal="depth", update_rule="rms", branch="conditional", span=LONG),
    Condition(signal="depth", update_rule="rms", branch="conditional", span=LONG, weight=1.0),
    Condition(signal="edge", update_rule="rms", branch="conditional", span=LONG),
    Condition(signal="edge", update_rule="rms", branch="conditional", span=LONG, weight=1.0),
]


def choose(count: int) -> list[Row]:
    """The search that chose the defaults, on 32 validation scenes; one pass, weight 0.5 where
    nothing else is said."""
    bench = _bench(count)
    scenes = Scenes.of(VALIDATION[:32])
    plain, plain_pictures = bench.scores(Condition(), scenes)
    rows = [_pose_row("unguided", plain, plain_pictures, plain, plain_pictures)]
    for condition in CHOICES:
        condition = replace(condition, form="one_pass", weight=condition.weight or 0.5)
        assert condition.span is not None
        name = (
            f"{condition.signal}, {condition.update_rule}, {condition.branch}, "
            f"span {condition.span[0]:g}-{condition.span[1]:g}, weight {condition.weight:g}"
        )
        scores, pictures = bench.scores(condition, scenes)
        row = _pose_row(name, scores, pictures, plain, plain_pictures)
        if condition.signal != "pose":
            error = f"{condition.signal}_rmse"
            row["error ÷ unguided"] = str(bootstrap(mean_ratio, scores[error], plain[error]))
        rows.append(row)
    return rows


def depth_and_edge(count: int) -> list[Row]:
    """Errors of depth and edges, guided over unguided, paired; on a quarter of the scenes."""
    bench = _bench(count)
    scenes = bench.some(bench.count // 4)
    plain, plain_pictures = bench.scores(Condition(), scenes)
    rows: list[Row] = []
    for signal in ("depth", "edge"):
        guided, pictures = bench.scores(Condition(signal=signal), scenes)
        before, after = plain[f"{signal}_rmse"], guided[f"{signal}_rmse"]
        rows.append(
            {
                "control": signal,
                "pictures": len(before),
                "unguided RMSE": str(bootstrap(mean, before)),
                "guided RMSE": str(bootstrap(mean, after)),
                "ratio": str(bootstrap(mean_ratio, after, before)),
                **_cost(guided, pictures, plain, plain_pictures),
            }
        )
    return rows


def text(count: int) -> list[Row]:
    """Whether the base model does what captions say: colours of clothes, full captions, on half of
    the scenes."""
    bench = _bench(count)
    scenes = bench.some(bench.count // 2)
    scores, _ = bench.scores(Condition(pose_words=True, eta=0.0), scenes)
    truth = bench.scorer(scenes.pictures, scenes)
    return [
        {
            "pictures of": name,
            "n": len(part["shirt"]),
            "shirt as in the caption, %": str(bootstrap(mean, 100 * part["shirt"])),
            "trousers as in the caption, %": str(bootstrap(mean, 100 * part["trousers"])),
        }
        for name, part in (("the model", scores), ("the renderer (ceiling)", truth))
    ]


def readouts(_count: int) -> list[Row]:
    """Root mean squared error by fraction of the schedule, from the heads' manifests, in units of
    the value range; `baseline` is the error of always saying the mean label. Pose and edge heads
    are trained with balanced regions, and so may exceed it where the noise hides everything."""
    catalogue = Catalogue([BUILTIN_DIR])
    rows: list[Row] = []
    for head in catalogue.heads_for(catalogue.model(MODEL)):
        if head.kind == "spatial":
            names = [name for name in head.metrics if name.startswith("rmse_")]
            values = {name.removeprefix("rmse_"): head.metrics[name] for name in names}
            rows.append({"head": head.name, **values})
    return rows


def training_cost(_count: int) -> list[Row]:
    """What the shipped heads took, from their manifests: minutes of training steps alone, of all
    heads that were trained together; peak memory of the whole process."""
    catalogue = Catalogue([BUILTIN_DIR])
    return [
        {"head": head.name, **head.metrics["training"]}
        for head in catalogue.heads_for(catalogue.model(MODEL))
        if "training" in head.metrics
    ]


PARTS = {
    "pose": ("Pose control", pose),
    "sweep": ("Pose control: weight sweep", sweep),
    "choose": ("How the pose defaults were chosen (validation poses)", choose),
    "depth_and_edge": ("Depth and edge control", depth_and_edge),
    "text": ("Text", text),
    "readouts": ("Readouts of held-out images by timestep", readouts),
    "training_cost": ("What training the heads took", training_cost),
}
"""name → title, function of the count of held-out scenes."""


def _pose_row(
    name: str,
    scores: dict[str, np.ndarray],
    pictures: torch.Tensor,
    plain: dict[str, np.ndarray],
    plain_pictures: torch.Tensor,
) -> Row:
    return {
        "condition": name,
        "pictures": len(pictures),
        **{
            f"PCK@{alpha}": str(bootstrap(mean, scores[f"pck@{alpha}"]))
            for alpha in (0.05, 0.1, 0.2)
        },
        "gain @0.1": str(bootstrap(mean_difference, scores["pck@0.1"], plain["pck@0.1"])),
        **_cost(scores, pictures, plain, plain_pictures),
    }


def _cost(
    scores: dict[str, np.ndarray],
    pictures: torch.Tensor,
    plain: dict[str, np.ndarray],
    plain_pictures: torch.Tensor,
) -> Row:
    """What guidance took away: agreement with the caption's colours, variety of backgrounds."""
    colours = (scores["shirt"] + scores["trousers"]) / 2
    plain_colours = (plain["shirt"] + plain["trousers"]) / 2
    spread = background_spread(pictures) / background_spread(plain_pictures)
    return {
        "colours as in the caption, %": str(bootstrap(mean, 100 * colours)),
        "colours ÷ unguided": str(bootstrap(mean_ratio, colours, plain_colours)),
        "background spread ÷ unguided": f"{spread:.2f}",
    }


def _judge_ceiling(bench: _Bench) -> Row:
    pictures = bench.held_out.pictures
    return _pose_row(
        "the renders themselves (judge's ceiling)",
        bench.scorer(pictures, bench.held_out),
        pictures,
        *bench.scores(Condition()),
    )
