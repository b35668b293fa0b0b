"""What a training is going to take and to give, said before and after it; plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heads_registry.training.recipe import HeadRecipe

FEW = 100
"""Examples that suffice to begin: the paper's smallest training set (figure 9)."""

NOUNS = {
    "spatial": "images",
    "correspondence": "videos",
    "appearance": "videos",
    "identity": "people",
}


def before(recipe: HeadRecipe, examples: int, held_out: int) -> list[str]:
    """What the amount of data means."""
    noun = NOUNS[recipe.kind]
    lines = [f"{examples} {noun} to train on; {held_out} held-out examples to measure with"]
    passes = recipe.max_steps * recipe.batch_size / examples
    if examples < FEW:
        lines.append(
            f"fewer than {FEW} {noun}: the head will learn these and little beyond them; "
            "expect it to do much worse on held-out ones"
        )
    if passes > 200:
        lines.append(
            f"each of the {noun} is seen {passes:.0f} times: more data, or fewer max_steps"
        )
    return lines


def duration(seconds_per_step: float, steps: int, minutes: float | None) -> str:
    """How long it will take, from the first steps."""
    whole = seconds_per_step * steps / 60
    if minutes is not None and minutes < whole:
        share = 100 * minutes / whole
        return (
            f"{seconds_per_step:.2f} s a step: {minutes:g} min are {share:.0f} % of the recipe's "
            f"{steps} steps (those would take {whole:.0f} min)"
        )
    return f"{seconds_per_step:.2f} s a step, {steps} steps: about {max(whole, 0.1):.1f} min"


def after(recipe: HeadRecipe, metrics: Mapping[str, Any]) -> str:
    """Whether it has learned anything, by the measure that matters at moderate noise."""
    if recipe.kind == "spatial":
        error, baseline = metrics["rmse_t0.3"], metrics["rmse_baseline"]
        verdict = "learned" if error < 0.9 * baseline else "hardly learned anything"
        return (
            f"{recipe.name} has {verdict}: error {error:.3f} at t = 0.3 T, where always saying "
            f"the mean label gives {baseline:.3f}"
        )
    if recipe.kind == "correspondence":
        found = metrics["pck@0.1_t0.1"]
        return f"{recipe.name}: {found:.0f} % of points found between two frames at t = 0.1 T"
    right = 100 * metrics["triplet_accuracy_t0.3"]
    verdict = "learned" if right >= 75 else "hardly learned anything"
    return (
        f"{recipe.name} has {verdict}: {right:.0f} % of triplets right at t = 0.3 T, where "
        "guessing gives 50 %"
    )
