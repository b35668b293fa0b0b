"""Measures of drag, appearance and identity as they are served; parts of `make results`.

A quarter as many cases as scenes are counted. Below `TRIAL_COUNT` scenes it is a trial of the code,
with few steps. Everything is compared with the same seeds without guidance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.attributes import FACE_SIZE, FACES, PEOPLE, FaceFinder, stacked
from evaluation.drag import Case, CaseMaker, DragScorer, painted
from evaluation.edits import EditStudio
from evaluation.measures import Pictures
from evaluation.preserve import AppearanceScorer, IdentityScorer, Portraits, Variations, slopes
from evaluation.sheets import contact_sheet
from evaluation.statistics import bootstrap, mean, mean_difference, mean_ratio, median
from world.faces import face_scene, lookalikes
from world.render import render_rgb
from world.seeds import TEST, VALIDATION

RUNS = Path("runs/results/edits")
TRIAL_COUNT, TRIAL_STEPS = 50, 4
CHOOSING = 16
"""Validation cases that defaults are chosen on."""
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
RAW_TAPS = (2, 4, 5, 7, 8, 11)
"""Ends and middles of the U-Net's four decoder blocks, of twelve taps."""
RAW_WEIGHTS = (0.25, 0.125, 0.5, 1.0)
DRAG_POSE = {"weight": 0.25}
"""Of the pose control in a drag of labelled key points; its span is the drag's."""
MASKED: dict[str, Any] = {"within_mask": True}
MASKED_POSE = MASKED | {"weight": 0.5, "pose": {"weight": 0.5}}
"""Within a mask, where all that moves may, by `choose_masked_drag`."""
SHOWN = 8
"""Pictures of a contact sheet's row."""

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

    def drags(
        self,
        cases: list[Case],
        label: str,
        raw_tap: int | None = None,
        within_mask: bool = False,
        **changes: Any,
    ) -> Pictures:
        """Of cases that are dragged as `Case.asked` is told, maybe where a user paints white."""
        asked = [case.asked(**changes) for case in cases]
        if within_mask:
            masks = [painted(case).float().expand(3, -1, -1) for case in cases]
            uploads = [{"upload_id": self.studio.upload(mask)} for mask in masks]
            asked = [one | {"mask": mask} for one, mask in zip(asked, uploads, strict=True)]
        return self.studio.pictures(asked, label, raw_tap).pictures

    def raw_drags(self, cases: list[Case], label: str, tap: int, weight: float) -> Pictures:
        """Of raw features in the place of both heads, at one weight."""
        return self.drags(cases, label, tap, weight=weight)

    @cached_property
    def raw(self) -> tuple[int, float]:
        """The tap and the weight whose raw features drag validation cases nearest."""
        found = self.raw_choices()
        return min(found, key=lambda choice: found[choice]["distance"].mean())

    def raw_choices(self) -> dict[tuple[int, float], dict[str, np.ndarray]]:
        """(tap, weight) → scores on half of the validation cases: each tap at the first weight,
        then the best tap at the others."""
        cases = self.cases.generated(VALIDATION, self.choosing // 2)
        taps = RAW_TAPS[2:4] if self.trial else RAW_TAPS

        def drag(tap: int, weight: float) -> dict[str, np.ndarray]:
            return self.dragged(self.raw_drags(cases, f"raw {tap}", tap, weight), cases)

        found = {(tap, RAW_WEIGHTS[0]): drag(tap, RAW_WEIGHTS[0]) for tap in taps}
        best, _ = min(found, key=lambda choice: found[choice]["distance"].mean())
        return found | {(best, weight): drag(best, weight) for weight in RAW_WEIGHTS[1:]}


@cache
def _bench(trial: bool) -> Bench:
    return Bench(trial)


def bench_of(count: int) -> tuple[Bench, int]:
    """What the parts share, and how many cases the count of scenes means."""
    return _bench(count < TRIAL_COUNT), max(8, count // 4)


def drag(count: int) -> list[Row]:
    """A wrist, an ankle or the nose of a generated picture is dragged around the joint that carries
    it, by one pair of points and the task's defaults. No target lies within a tenth of the picture
    of the other wrist or ankle, where the two cannot be told apart and the other would count as
    arrived unmoved. By the judge, px of 512: the dragged point's distance to its target (mean,
    median, how often less than half of the way is left), and the way of the key points that should
    stay. The mean with sides as before: all left and right exchanged where that leaves the other
    key points nearer, since pictures so small often show no face and the judge then takes front for
    back. The mean of either side: where the other wrist or ankle counts as well, as the wrong limb
    may come. Change of the pixels away from the limb, of 255; agreement of shirt, trousers, skin,
    hair and hat with the picture before, by a recogniser trained on clean renders; the judge's mean
    confidence in all key points. Raw features: the same objectives and span on one tap of the
    U-Net; tap and weight chosen on validation. The pose head is a third control beside the two,
    shown all key points where they are and the dragged one, with what it carries, where it is to
    be. Within a mask: white lies within a tenth of the picture of the limb where it is, where it is
    to be, and between; with the pose head all three weights are 0.5 there, without it the
    task's."""
    bench, wanted = bench_of(count)
    cases = bench.cases.generated(TEST, wanted)
    before = torch.stack([case.picture for case in cases])
    return _drag_rows(bench, cases, "no guidance (the picture before)", before, "drag")


def drag_real(count: int) -> list[Row]:
    """The same for held-out renders through DDIM inversion: points by exact labels, guidance scale
    3.5 as in table 1. Reconstruction: PSNR of the reference's trajectory, dB. No guidance: the same
    request with weight 0. The first row says where the judge sees the point that is not moved."""
    bench, wanted = bench_of(count)
    cases = bench.cases.rendered(TEST, wanted)
    unguided = bench.studio.pictures([case.asked(weight=0.0) for case in cases], "no guidance")
    psnr_db = str(bootstrap(mean, unguided.psnr_db))
    unmoved = [replace(case, target=case.source) for case in cases]
    seen = bench.dragged(torch.stack([case.picture for case in cases]), unmoved)
    rows = [{"condition": "the renders, target = source", **drag_row(seen)}]
    rows += _drag_rows(bench, cases, "no guidance", unguided.pictures, "drag_real")
    return [row | {"reconstruction PSNR, dB": psnr_db} for row in rows]


def _drag_rows(
    bench: Bench, cases: list[Case], name: str, unguided: Pictures, sheet: str
) -> list[Row]:
    tap, weight = bench.raw
    pictures = {
        name: unguided,
        f"raw features, tap {tap}, weight {weight}": bench.raw_drags(
            cases, "raw features", tap, weight
        ),
        "heads": bench.drags(cases, "heads"),
        "heads, and the pose head": bench.drags(cases, "heads and pose", pose=DRAG_POSE),
        "heads, within a mask": bench.drags(cases, "within a mask", **MASKED),
        "heads, and the pose head, within a mask": bench.drags(
            cases, "heads and pose, within a mask", **MASKED_POSE
        ),
    }
    _drag_sheet(cases, list(pictures.values()), sheet)
    scores = {label: bench.dragged(made, cases) for label, made in pictures.items()}
    plain, raw, *_ = scores.values()
    return [
        {
            "condition": label,
            **drag_row(found),
            "÷ no guidance": _paired(mean_ratio, found, plain),
            "÷ no guidance, sides as before": _paired(mean_ratio, found, plain, "sides"),
            "÷ no guidance, either side": _paired(mean_ratio, found, plain, "either"),
            "- raw features": _paired(mean_difference, found, raw),
        }
        for label, found in scores.items()
    ]


def _drag_sheet(cases: list[Case], rows: list[Pictures], name: str) -> None:
    """The first drags: before, and each condition; from the red ring to the green one."""
    before = torch.stack([case.picture for case in cases])
    ends = [((case.source, "red"), (case.target, "lime")) for case in cases[:SHOWN]]
    marks = [[(float(p[0]), float(p[1]), colour) for p, colour in pair] for pair in ends]
    contact_sheet([row[:SHOWN] for row in (before, *rows)], RUNS / f"{name}.png", marks)


def drag_row(scores: Scores) -> Row:
    """Scores of drags as a row."""
    return {
        "drags": len(scores["distance"]),
        "distance, px": str(bootstrap(mean, scores["distance"])),
        "median": str(bootstrap(median, scores["distance"])),
        "more than half way, %": str(bootstrap(mean, scores["halfway"])),
        "sides as before, px": str(bootstrap(mean, scores["sides"])),
        "either side, px": str(bootstrap(mean, scores["either"])),
        "change outside": str(bootstrap(mean, scores["outside"])),
        "other points, px": str(bootstrap(mean, scores["others"])),
        "attributes kept, %": str(bootstrap(mean, scores["attributes"])),
        "confidence, %": str(bootstrap(mean, scores["person"])),
    }


def _paired(
    statistic: Callable[..., float], scores: Scores, others: Scores, name: str = "distance"
) -> str:
    return str(bootstrap(statistic, scores[name], others[name]))


def appearance(count: int) -> list[Row]:
    """Pictures of other seeds whose prompt says nothing of clothes and looks, towards a reference
    whose prompt does; four a reference, weight 0 is no guidance. Agreement of attributes with the
    reference by a recogniser trained on clean renders, %; spread of the judge's key points over the
    seeds of a reference. Intervals over references. The last row is the trend: the least-squares
    slope of each reference's agreement, points of per cent from weight 0 to 1."""
    bench, wanted = bench_of(count)
    cases = Variations.of(TEST[: max(2, wanted // 4)])
    references = cases.reference_pictures(bench.studio)
    made = {
        weight: bench.studio.pictures(cases.asked(weight=weight), f"weight {weight:g}").pictures
        for weight in WEIGHTS
    }
    contact_sheet([part[:SHOWN] for part in (references, *made.values())], RUNS / "appearance.png")
    scores = {weight: bench.appearance(part, references) for weight, part in made.items()}
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
    made = {
        "no guidance": cases.originals,
        "identity and appearance around (task)": bench.studio.pictures(
            cases.asked(), "identity and appearance"
        ).pictures,
        "identity alone": bench.studio.pictures(cases.asked(around=False), "identity").pictures,
    }
    contact_sheet([part[:SHOWN] for part in (cases.faces, *made.values())], RUNS / "identity.png")
    scores = {name: bench.identity(pictures, cases) for name, pictures in made.items()}
    return _face_bounds(bench, wanted) + [
        {"condition": name, **identity_row(found, scores["no guidance"])}
        for name, found in scores.items()
    ]


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
}
"""name → title, function of the count of held-out scenes."""
