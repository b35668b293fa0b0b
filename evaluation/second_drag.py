"""What a drag costs when its reference is known; a part of `make results`, for a quiet machine."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from evaluation.drag import Case
from evaluation.edits import Asked
from evaluation.statistics import bootstrap, mean, mean_ratio
from evaluation.tasks import Bench, Row, bench_of
from worker.execute import execute
from world.seeds import VALIDATION

ROUNDS = 10


def second_drag(count: int) -> list[Row]:
    """Seconds of one picture, alone, on one thread: the first drag of a generated picture, a second
    with another target, and an edit of as many controls that needs no reference (pose and depth, at
    the same weights and span, in the same form and branches). Rounds of all three, one after the
    other; ratios are paired."""
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
    request = bench.studio.resolved(case.asked())
    drag = request.controls[0]
    image = {"upload_id": bench.studio.upload(case.picture)}
    timing = {"weight": drag.weight, "span": list(drag.span), "image": image}
    controls = [{"type": "spatial", "head": head} | timing for head in ("pose", "depth")]
    same = {"form": request.form, "branch": request.branch}
    return {"prompt": case.prompt, "seed": case.seed, "eta": 0.0, "controls": controls} | same


def _timed(bench: Bench, asked: Asked) -> tuple[float, float]:
    """Seconds of an execution, and passes of the U-Net for its reference."""
    request = bench.studio.resolved(asked)
    start = time.perf_counter()
    done = execute(request, bench.studio.models, bench.studio.load_image, lambda *_: None)
    return time.perf_counter() - start, done.timings.get("reference_forwards", 0.0)


PARTS = {
    "second_drag": ("The second drag of one picture", second_drag),
}
"""name → title, function of the count of held-out scenes."""
