"""Best of several: candidates ranked by how well they obey their controls; no torch, no storage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jobs.request import GenerationRequest

if TYPE_CHECKING:
    from worker.execute import Execution


def score(request: GenerationRequest, distances: Sequence[float]) -> float | None:
    """Σ weight × distance over the controls at the last step; smaller is better.

    The weights say how much each control matters, as they do in guidance. None without controls;
    a distance that is not finite is worse than any other.
    """
    if not request.controls:
        return None
    pairs = zip(request.controls, distances, strict=True)
    total = sum(control.weight * distance for control, distance in pairs)
    return total if math.isfinite(total) else math.inf


def ranking(scores: Sequence[float | None]) -> list[int]:
    """Positions from the best to the worst; equal ones, and those without a score, in order."""
    return sorted(range(len(scores)), key=lambda index: (scores[index] is None, scores[index] or 0))


def keep_best(request: GenerationRequest, execution: Execution) -> Execution:
    """The `num_images` best candidates, best first, where no more are to be kept."""
    count = len(execution.images)
    if request.keep == "all" or count == request.num_images:
        return execution
    order = ranking([score(request, row) for row in execution.distances])[: request.num_images]

    def chosen(rows: list) -> list:
        return [rows[index] for index in order] if len(rows) == count else rows

    return replace(
        execution,
        images=chosen(execution.images),
        seeds=chosen(execution.seeds),
        distances=chosen(execution.distances),
        readouts=chosen(execution.readouts),
        evolution=chosen(execution.evolution),
        boxes=chosen(execution.boxes),
    )
