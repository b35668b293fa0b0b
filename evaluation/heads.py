"""Measures of the relative heads: correspondence, appearance, identity; parts of `make results`.

Videos and people are drawn from the TEST seeds; layers, timesteps and thresholds are chosen on
VALIDATION seeds. Heads were trained on TRAIN seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from evaluation.generate import MODEL
from evaluation.head_bench import HeadBench, Reader, faces_of, videos_of
from evaluation.statistics import bootstrap, mean, mean_difference
from heads_registry.training.measures import (
    best_threshold,
    matched_share,
    pair_pck,
    same_different_right,
)
from heads_registry.training.tasks import CorrespondenceTask, Examples, TripletTask
from world.seeds import TEST, VALIDATION

RUNS = Path("runs/results")
FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LOW_NOISE = (0.05, 0.1, 0.2, 0.3)
"""Fractions of the schedule from which raw features' best is chosen; DIFT's 261 is among them."""

PAIRS = 4
"""Of frames, a video."""

Row = dict[str, str | float]


@cache
def _bench() -> HeadBench:
    return HeadBench(MODEL, RUNS / "heads")


def correspondence(count: int) -> list[Row]:
    """PCK@0.1 of points between two frames of a held-out video (another moment, another camera):
    the share of a pair's points found within a tenth of the longer side of the box around the true
    points, by the largest cosine similarity. Raw features are one tap of the U-Net, as in DIFT: the
    best on validation videos, at each timestep and over all low ones. Chance is where the points
    were, unmoved. Means over videos; `gain` is paired."""
    bench, videos = _bench(), max(4, count // 4)
    chosen = _choose_taps(bench, max(4, videos // 2))
    task, examples = bench.pairs(TEST[:videos], PAIRS)
    head = bench.head("correspondence")
    best_fraction, best_tap = max(
        ((fraction, chosen[fraction][0]) for fraction in LOW_NOISE),
        key=lambda pair: chosen[pair[0]][1],
    )
    (reference,) = _pck(bench, task, examples, best_fraction, [bench.tap(best_tap)])
    rows = []
    for fraction in FRACTIONS:
        tap = chosen[fraction][0]
        found, raw = _pck(bench, task, examples, fraction, [head, bench.tap(tap)])
        rows.append(
            {
                "t / T": fraction,
                "videos": videos,
                "pairs": len(examples),
                "head, PCK@0.1 %": str(bootstrap(mean, found)),
                "raw features at this t": str(bootstrap(mean, raw)),
                "tap": tap,
                "gain": str(bootstrap(mean_difference, found, raw)),
                f"gain over raw at its best (tap {best_tap}, t {best_fraction} T)": str(
                    bootstrap(mean_difference, found, reference)
                ),
            }
        )
    rows.append({"t / T": "points unmoved", "head, PCK@0.1 %": str(_unmoved(examples))})
    return rows


def appearance(count: int) -> list[Row]:
    """Share of triplets of held-out videos in which another frame is nearer to the anchor than the
    negative: the anchor edited by the base model (SDEdit, as in training), or a frame of another
    video. One triplet a video. `cuts` are videos in which every frame has a camera of its own,
    which is harder; the head learns from both."""
    return _triplets("appearance", max(8, count // 2))


def identity(count: int) -> list[Row]:
    """Held-out people on tight face crops. Same/different: two pictures of one person against a
    picture each of two; the threshold on the distance is chosen on validation people at each
    timestep. The two are drawn at random from all held-out people (anybody), or share hair, hat,
    glasses and eyes (lookalikes: skin tone and the face's shape are left), or the skin tone as well
    (same skin: the shape alone). Triplets: the negative is the anchor edited by the model.
    Intervals over people."""
    bench, looks = _bench(), max(4, count // 4)
    reader = bench.head("identity")
    held_out, chosen_on = (_people(bench, seeds[:looks]) for seeds in (TEST, VALIDATION))
    rows: list[Row] = []
    for fraction in FRACTIONS:
        row: Row = {"t / T": fraction, "people": 2 * looks}
        for name, people in held_out.items():
            seen = bench.distances(*chosen_on[name], fraction, reader)
            threshold = best_threshold(seen["positive"], seen["other"])
            found = bench.distances(*people, fraction, reader)
            right = same_different_right(found["positive"], found["other"], threshold)
            row[f"same/different, {name}, %"] = str(
                bootstrap(mean, 100 * right.reshape(2, -1).mean(axis=0))
            )
            if name == "lookalikes":
                edited = 100.0 * (found["positive"] < found["edit"])
                row["triplets with edits, %"] = str(bootstrap(mean, edited))
        rows.append(row)
    return rows


def _people(bench: HeadBench, seeds: Sequence[int]) -> dict[str, tuple[TripletTask, Examples]]:
    """Quadruplets by who the other is."""
    size = bench.manifest.width
    faces = faces_of(seeds, size)
    sets = {
        "anybody": replace(faces, looks=[]),
        "lookalikes": faces,
        "same skin": faces_of(seeds, size, same_skin=True),
    }
    return {name: bench.quadruplets("identity", grouped) for name, grouped in sets.items()}


PARTS = {
    "correspondence": ("Correspondence head", correspondence),
    "appearance": ("Appearance head", appearance),
    "identity": ("Identity head", identity),
}
"""name → title, function of the count of held-out scenes."""


def _triplets(kind: str, count: int) -> list[Row]:
    bench = _bench()
    reader, width = bench.head(kind), bench.manifest.width
    sets = {
        name: bench.quadruplets(kind, videos_of(TEST[:count], width, cuts))
        for name, cuts in (("one shot", False), ("cuts", True))
    }
    rows: list[Row] = []
    for fraction in FRACTIONS:
        row: Row = {"t / T": fraction, "triplets": count}
        for name, quadruplets in sets.items():
            found = bench.distances(*quadruplets, fraction, reader)
            for negative, words in (("edit", "the edit"), ("other", "another video")):
                nearer = 100.0 * (found["positive"] < found[negative])
                row[f"{name}: nearer than {words}, %"] = str(bootstrap(mean, nearer))
        rows.append(row)
    return rows


def _choose_taps(bench: HeadBench, videos: int) -> dict[float, tuple[int, float]]:
    """By fraction: the tap whose raw features match best on validation videos, and its PCK."""
    task, examples = bench.pairs(VALIDATION[:videos], PAIRS)
    taps = [bench.tap(index) for index in range(len(bench.frozen.taps))]
    chosen = {}
    for fraction in FRACTIONS:
        scores = [values.mean() for values in _pck(bench, task, examples, fraction, taps)]
        best = int(np.argmax(scores))
        chosen[fraction] = (best, float(scores[best]))
    return chosen


def _pck(
    bench: HeadBench,
    task: CorrespondenceTask,
    examples: Examples,
    fraction: float,
    readers: list[Reader],
) -> list[np.ndarray]:
    """Of each reader, the mean PCK of each video, per cent."""
    columns: list[list[np.ndarray]] = [[] for _ in readers]
    for part, said in bench.readouts(task, examples, fraction, readers):
        assert part.points is not None
        assert part.valid is not None
        for column, maps in zip(columns, said, strict=True):
            column.append(pair_pck(maps[:, 0], maps[:, 1], part.points, part.valid).numpy())
    return [100 * np.concatenate(column).reshape(-1, PAIRS).mean(axis=1) for column in columns]


def _unmoved(examples: Examples) -> object:
    assert examples.points is not None
    assert examples.valid is not None
    shares = [
        matched_share(points[valid][:, 0], points[valid][:, 1])
        for points, valid in zip(examples.points, examples.valid, strict=True)
    ]
    return bootstrap(mean, 100 * np.array(shares).reshape(-1, PAIRS).mean(axis=1))
