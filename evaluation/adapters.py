"""Measures of ControlNet and T2I-Adapter with readout guidance (table 2); parts of `make results`.

The early checkpoints are not shipped: `make demo-adapters` trains them into runs/adapters/early.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from evaluation.generate import Condition, Scenes, Studio
from evaluation.measures import background_spread
from evaluation.scores import Scorer
from evaluation.statistics import bootstrap, mean, mean_difference, mean_ratio
from heads_registry.catalogue import BUILTIN_DIR
from worker.plan import AdapterGradient
from world.seeds import TEST, VALIDATION

RUNS = Path("runs/results")
EARLY = Path("runs/adapters/early")
ADAPTERS = {"ControlNet": "pose-controlnet", "T2I-Adapter": "pose-t2i-adapter"}
ALPHAS = (0.05, 0.1, 0.2)

Row = dict[str, str | float]
Seen = tuple[dict[str, np.ndarray], Tensor]
"""Scores and pictures."""


@dataclass(frozen=True)
class _Bench:
    """Scenes, and what is made and said of them."""

    scenes: Scenes

    @cached_property
    def studios(self) -> dict[str, Studio]:
        """By state of training: early, where it was trained here, and final."""
        found = {"early": Studio(RUNS / "pictures", EARLY)} if EARLY.is_dir() else {}
        return found | {"final": Studio(RUNS / "pictures", BUILTIN_DIR)}

    @cached_property
    def scorer(self) -> Scorer:
        """The judge."""
        return Scorer()

    def see(self, state: str, condition: Condition) -> Seen:
        """Scores and pictures of a condition."""
        pictures = self.studios[state].pictures(condition, self.scenes)
        return self.scorer(pictures, self.scenes), pictures


def adapters(count: int) -> list[Row]:
    """Held-out poses shown to an adapter, alone and with readout guidance by the pose head at its
    defaults; `gain` is guidance's, paired by seed. Early: the same training after a few minutes
    (`make demo-adapters`)."""
    bench = _Bench(Scenes.of(TEST[:count]))
    plain = bench.see("final", Condition())
    guided = bench.see("final", Condition(signal="pose"))
    rows = [_row("no adapter", plain, None, plain), _row("no adapter", guided, plain, plain)]
    for title, name in ADAPTERS.items():
        for state in bench.studios:
            alone = bench.see(state, Condition(adapter=name))
            both = bench.see(state, Condition(adapter=name, signal="pose"))
            label = f"{title}, {state}"
            rows += [_row(label, alone, None, plain), _row(label, both, alone, plain)]
    return rows


def adapter_gradient(count: int) -> list[Row]:
    """Whether the readout gradient takes a ControlNet's residuals for constants or goes through it:
    obedience on validation poses (a third of the count), and seconds of guided pictures, each a
    batch of eight computed for this."""
    bench = _Bench(Scenes.of(VALIDATION[: max(8, count // 3)]))
    plain = bench.see("final", Condition())
    rows = []
    for state in bench.studios:
        seen: dict[AdapterGradient, Seen] = {}
        for gradient in ("constant", "full"):
            condition = Condition(
                adapter=ADAPTERS["ControlNet"], signal="pose", adapter_gradient=gradient
            )
            seen[gradient] = bench.see(state, condition)
            row = _row(f"ControlNet, {state}, {gradient}", seen[gradient], seen["constant"], plain)
            row.pop("guided")
            row["gain @0.05"] = row["gain @0.05"] if gradient == "full" else ""
            row["gain of"] = "full over constant" if gradient == "full" else ""
            rows.append(row | {"seconds": _seconds(bench, state, condition)})
    return rows


PARTS = {
    "adapters": ("Adapters with readout guidance", adapters),
    "adapter_gradient": ("The readout gradient and ControlNet's residuals", adapter_gradient),
}
"""name → title, function of the count of held-out scenes."""


def _seconds(bench: _Bench, state: str, condition: Condition, repeats: int = 3) -> str:
    """Of one batch of eight, the least of some runs after one to warm up."""
    studio, rows = bench.studios[state], range(8)
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        studio.generate(condition, bench.scenes, rows)
        taken.append(time.perf_counter() - start)
    return f"{min(taken[1:]):.2f}"


def _row(name: str, seen: Seen, before: Seen | None, plain: Seen) -> Row:
    scores, pictures = seen
    row: Row = {"adapter": name, "guided": "yes" if before else "no", "pictures": len(pictures)}
    row |= {f"PCK@{a}": str(bootstrap(mean, scores[f"pck@{a}"])) for a in ALPHAS}
    row["gain @0.05"] = (
        str(bootstrap(mean_difference, scores["pck@0.05"], before[0]["pck@0.05"])) if before else ""
    )
    colours = (scores["shirt"] + scores["trousers"]) / 2
    plain_colours = (plain[0]["shirt"] + plain[0]["trousers"]) / 2
    row["colours ÷ unguided"] = str(bootstrap(mean_ratio, colours, plain_colours))
    spread = background_spread(pictures) / background_spread(plain[1])
    return row | {"background spread ÷ unguided": f"{spread:.2f}"}
