"""Measures of drag, appearance and identity as they are served; parts of `make results`.

A quarter as many cases as scenes are counted. Below `TRIAL_COUNT` scenes it is a trial of the code,
with few steps. Everything is compared with the same seeds without guidance.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.attributes import FACE_SIZE, FACES, PEOPLE, FaceFinder, stacked
from evaluation.drag import Case, CaseMaker, DragScorer
from evaluation.edits import Asked, EditStudio
from evaluation.measures import Pictures
from evaluation.preserve import AppearanceScorer, IdentityScorer, Portraits, Variations, slopes
from evaluation.statistics import bootstrap, mean, mean_difference, mean_ratio
from jobs.request import GenerationRequest
from worker.execute import execute
from world.faces import face_scene, lookalikes
from world.render import render_rgb
from world.seeds import TEST, VALIDATION

RUNS = Path("runs/results/edits")
TRIAL_COUNT, TRIAL_STEPS = 50, 10
CHOOSING = 16
"""Validation cases that defaults are chosen on."""
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
RAW_TAPS = (2, 4, 5, 7, 8, 11)
"""Ends and middles of the U-Net's four decoder blocks, of twelve taps."""
RAW_WEIGHTS = (0.25, 0.5)
ROUNDS = 10

Row = dict[str, str | float]
Scores = Mapping[str, np.ndarray]


class Bench:
    """What the parts share."""

    def __init__(self, trial: bool) -> None:
        self.trial = trial
        self.studio = EditStudio(RUNS, num_inference_steps=TRIAL_STEPS if trial else None)
        self.dragged = DragScorer()
        self.cases = CaseMaker(self.studio, self.dragged)

    @property
    def choosing(self) -> int:
        """Validation cases."""
        return 8 if self.trial else CHOOSING

    @cached_property
    def appearance(self) -> AppearanceScorer:
        """Of figures."""
        return AppearanceScorer()

    @cached_property
    def identity(self) -> IdentityScorer:
        """Of faces."""
        return IdentityScorer()

    @cached_property
    def find(self) -> FaceFinder:
        """Faces in portraits."""
        return self.identity.find

    def drag_scores(
        self, cases: list[Case], label: str, raw_tap: int | None = None, **changes: Any
    ) -> dict[str, np.ndarray]:
        """Of cases that are dragged as `Case.asked` is told."""
        asked = [case.asked(**changes) for case in cases]
        return self.dragged(self.studio.pictures(asked, label, raw_tap).pictures, cases)

    @cached_property
    def raw(self) -> tuple[int, float]:
        """The tap and the weight whose raw features drag validation cases nearest."""
        found = self.raw_choices()
        return min(found, key=lambda choice: found[choice]["distance"].mean())

    def raw_choices(self) -> dict[tuple[int, float], dict[str, np.ndarray]]:
        """(tap, weight) → scores on half of the validation cases."""
        cases = self.cases.generated(VALIDATION, self.choosing // 2)
        return {
            (tap, weight): self.drag_scores(cases, f"raw {tap} {weight}", tap, weight=weight)
            for weight in RAW_WEIGHTS
            for tap in (RAW_TAPS[2:4] if self.trial else RAW_TAPS)
        }


@cache
def _bench(trial: bool) -> Bench:
    return Bench(trial)


def bench_of(count: int) -> tuple[Bench, int]:
    """What the parts share, and how many cases the count of scenes means."""
    return _bench(count < TRIAL_COUNT), max(8, count // 4)


def drag(count: int) -> list[Row]:
    """A wrist, an ankle or the nose of a generated picture is dragged around the joint that carries
    it, by one pair of points and the task's defaults. Distance of the dragged point to its target
    and way of the key points that should stay, by the judge, px of 512; change of the pixels away
    from the limb, of 255; agreement of shirt, trousers, skin, hair and hat with the picture before,
    by a recogniser trained on clean renders; the judge's mean confidence in all key points. Raw
    features: the same objectives on one tap of the U-Net; tap and weight chosen on validation."""
    bench, wanted = bench_of(count)
    cases = bench.cases.generated(TEST, wanted)
    before = torch.stack([case.picture for case in cases])
    return _drag_rows(
        bench, cases, "no guidance (the picture before)", bench.dragged(before, cases)
    )


def drag_real(count: int) -> list[Row]:
    """The same for held-out renders through DDIM inversion: points by exact labels, guidance scale
    3.5 as in table 1. Reconstruction: PSNR of the reference's trajectory, dB. No guidance: the same
    request with weight 0. The first row says where the judge sees the point that is not moved."""
    bench, wanted = bench_of(count)
    cases = bench.cases.rendered(TEST, wanted)
    asked = [case.asked(weight=0.0) for case in cases]
    unguided = bench.studio.pictures(asked, "no guidance")
    psnr_db = bootstrap(mean, unguided.psnr_db)
    unmoved = [replace(case, target=case.source) for case in cases]
    seen = bench.dragged(torch.stack([case.picture for case in cases]), unmoved)
    rows = [{"condition": "the renders, target = source", **drag_row(seen)}]
    scores = bench.dragged(unguided.pictures, cases)
    rows += _drag_rows(bench, cases, "no guidance", scores)
    return [row | {"reconstruction PSNR, dB": str(psnr_db)} for row in rows]


def _drag_rows(bench: Bench, cases: list[Case], name: str, unguided: Scores) -> list[Row]:
    tap, weight = bench.raw
    raw = bench.drag_scores(cases, "raw features", tap, weight=weight)
    guided = bench.drag_scores(cases, "drag")
    named = {name: unguided, f"raw features, tap {tap}, weight {weight}": raw, "heads": guided}
    return [
        {
            "condition": label,
            **drag_row(scores),
            "÷ no guidance": _paired(mean_ratio, scores, unguided),
            "- raw features": _paired(mean_difference, scores, raw),
        }
        for label, scores in named.items()
    ]


def drag_row(scores: Scores) -> Row:
    """Scores of drags as a row."""
    return {
        "drags": len(scores["distance"]),
        "distance, px": str(bootstrap(mean, scores["distance"])),
        "change outside": str(bootstrap(mean, scores["outside"])),
        "other points, px": str(bootstrap(mean, scores["others"])),
        "attributes kept, %": str(bootstrap(mean, scores["attributes"])),
        "confidence, %": str(bootstrap(mean, scores["person"])),
    }


def _paired(statistic: Callable[..., float], scores: Scores, others: Scores) -> str:
    return str(bootstrap(statistic, scores["distance"], others["distance"]))


def appearance(count: int) -> list[Row]:
    """Pictures of other seeds whose prompt says nothing of clothes and looks, towards a reference
    whose prompt does; four a reference, weight 0 is no guidance. Agreement of attributes with the
    reference by a recogniser trained on clean renders, %; spread of the judge's key points over the
    seeds of a reference. Intervals over references. The last row is the trend: the least-squares
    slope of each reference's agreement, points of per cent from weight 0 to 1."""
    bench, wanted = bench_of(count)
    cases = Variations.of(TEST[: max(2, wanted // 4)])
    references = cases.reference_pictures(bench.studio)
    scores = {
        weight: appearance_scores(bench, cases, references, f"{weight:g}", weight=weight)
        for weight in WEIGHTS
    }
    rows = [
        {"weight": f"{weight:g}", **appearance_row(found, scores[0.0])}
        for weight, found in scores.items()
    ]
    trend: Row = {"weight": "slope"}
    for name in ("mean", *PEOPLE.attributes):
        slope = slopes(WEIGHTS, [found[name] for found in scores.values()])
        trend[_ATTRIBUTE.format(name)] = str(bootstrap(mean, slope))
    return [*rows, trend]


_ATTRIBUTE = "{} as in the reference, %"


def appearance_scores(
    bench: Bench, cases: Variations, references: Pictures, label: str, **changes: Any
) -> dict[str, np.ndarray]:
    """Of variations that are asked for as `Variations.asked` is told."""
    pictures = bench.studio.pictures(cases.asked(**changes), label).pictures
    return bench.appearance(pictures, references)


def appearance_row(scores: Scores, plain: Scores) -> Row:
    """Scores of variations as a row; `plain` are those without guidance."""
    names = ("mean", *PEOPLE.attributes)
    return {
        "references": len(scores["mean"]),
        **{_ATTRIBUTE.format(name): str(bootstrap(mean, scores[name])) for name in names},
        "pose spread ÷ unguided": str(bootstrap(mean_ratio, scores["spread"], plain["spread"])),
        "confidence, %": str(bootstrap(mean, scores["person"])),
    }


def identity(count: int) -> list[Row]:
    """Portraits in other clothes, under other skies and of another seed, with the face of a
    reference; two a reference. Distance of face parameters and skin tone (each 0 to 1) and
    agreement of attributes with the reference's face, by a recogniser trained on clean crops of
    faces; drift: change of the pixels outside the face against no guidance, of 255 (figure 14). The
    first two rows are renders: two pictures of one person, and of two people drawn at random."""
    bench, wanted = bench_of(count)
    cases = Portraits.of(TEST[: wanted // 2], bench.studio, bench.find)
    conditions: dict[str, dict[str, Any]] = {
        "identity and appearance around (task)": {},
        "identity alone": {"around": False},
    }
    plain = bench.identity(cases.originals, cases)
    rows = [
        *_face_bounds(bench, wanted),
        {"condition": "no guidance", **identity_row(plain, plain)},
    ]
    for name, changes in conditions.items():
        scores = bench.identity(bench.studio.pictures(cases.asked(**changes), name).pictures, cases)
        rows.append({"condition": name, **identity_row(scores, plain)})
    return rows


def _face_bounds(bench: Bench, count: int) -> list[Row]:
    """What the recogniser says of the same person, and of different ones."""
    people = [lookalikes(seed, 1)[0] for seed in TEST[:count]]
    shots = [
        stacked([
            render_rgb(face_scene(TEST[row], person, 0, shot), FACE_SIZE)[0]
            for row, person in enumerate(people)
        ])
        for shot in (0, 1)
    ]  # fmt: skip
    pairs = {"renders of one person": shots[1], "renders of two": shots[1].roll(1, 0)}
    different = bench.identity.faces(shots[0], pairs["renders of two"])
    return [
        {"condition": name, **identity_row(bench.identity.faces(shots[0], others), different)}
        for name, others in pairs.items()
    ]


def identity_row(scores: Scores, plain: Scores) -> Row:
    """Scores of faces as a row; `plain` are those without guidance."""
    row: Row = {
        "pictures": len(scores["distance"]),
        "distance": str(bootstrap(mean, scores["distance"])),
        "- no guidance": _paired(mean_difference, scores, plain),
    }
    for name in ("mean", *FACES.attributes):
        row[_ATTRIBUTE.format(name)] = str(bootstrap(mean, scores[name]))
    if "drift" in scores:
        row["drift"] = str(bootstrap(mean, scores["drift"]))
    return row


def second_drag(count: int) -> list[Row]:
    """Seconds of one picture, alone, on one thread: the first drag of a generated picture, a second
    with another target, and an edit of as many controls that needs no reference (pose and depth, at
    the same weights and span). Rounds of all three, one after the other; ratios are paired."""
    bench, _ = bench_of(count)
    cases = bench.cases.generated(VALIDATION, 2 if bench.trial else ROUNDS)
    _timed(bench, _spatial(bench, cases[0]))
    found: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        elsewhere = replace(case, target=0.5 * (case.source + case.target) + 0.02)
        bench.studio.models.references.clear()
        for name, asked in (
            ("no reference: pose and depth", _spatial(bench, case)),
            ("first drag", case.asked()),
            ("second drag, another target", elsewhere.asked()),
        ):
            found.setdefault(name, []).append(_timed(bench, asked))
    columns = {name: np.array(values).T for name, values in found.items()}
    baseline, first = (columns[name][0] for name in list(columns)[:2])
    return [
        {
            "edit": name,
            "rounds": len(seconds),
            "seconds": str(bootstrap(mean, seconds)),
            "÷ no reference": str(bootstrap(mean_ratio, seconds, baseline)),
            "÷ first drag": str(bootstrap(mean_ratio, seconds, first)),
            "reference forwards": f"{forwards.mean():g}",
        }
        for name, (seconds, forwards) in columns.items()
    ]


def _spatial(bench: Bench, case: Case) -> Asked:
    """As many controls, at as many steps."""
    drag = bench.studio.resolved(case.asked()).controls[0]
    image = {"upload_id": bench.studio.upload(case.picture)}
    timing = {"weight": drag.weight, "span": list(drag.span), "image": image}
    controls = [{"type": "spatial", "head": head} | timing for head in ("pose", "depth")]
    return {"prompt": case.prompt, "seed": case.seed, "eta": 0.0, "controls": controls}


def _timed(bench: Bench, asked: Asked) -> tuple[float, float]:
    """Seconds of an execution, and passes of the U-Net for its reference."""
    request: GenerationRequest = bench.studio.resolved(asked)
    start = time.perf_counter()
    done = execute(request, bench.studio.models, bench.studio.load_image, lambda *_: None)
    return time.perf_counter() - start, done.timings.get("reference_forwards", 0.0)


def recognisers(_count: int) -> list[Row]:
    """Per cent of clean renders never seen (`python -m evaluation.train_attributes`): figures of 64
    px and crops of faces of 32 px; a skin tone within an eighth of its range is right. r2_i is the
    share of the variance that is explained: of the face's width, length, eye distance, eye size,
    nose, brow, mouth and jaw, and at last of the skin tone."""
    return [
        {"recogniser": kind.name, **json.loads(kind.accuracy.read_text())}
        for kind in (PEOPLE, FACES)
        if kind.accuracy.is_file()
    ]


PARTS = {
    "drag": ("Drag", drag),
    "drag_real": ("Drag of renders", drag_real),
    "keep_appearance": ("Appearance of a reference", appearance),
    "keep_identity": ("Identity", identity),
    "recognisers": ("How often the recognisers are right", recognisers),
    "second_drag": ("The second drag of one picture", second_drag),
}
"""name → title, function of the count of held-out scenes."""
