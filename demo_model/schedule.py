"""Learning rates by progress; pure functions."""

from __future__ import annotations

import math

from demo_model.config import PlanConfig


def progress(plan: PlanConfig, samples: int, elapsed_s: float) -> float:
    """How much of a stage is done, 0…1: by samples or by wall clock, whichever is further."""
    by_time = 0.0 if plan.minutes is None else elapsed_s / (60 * plan.minutes)
    return min(1.0, max(samples / plan.samples, by_time))


def learning_rate(plan: PlanConfig, done: float) -> float:
    """Linear rise over `warmup`, then a cosine to `final_factor`, at progress `done` in 0…1."""
    if done < plan.warmup:
        return plan.learning_rate * max(done / plan.warmup, 1e-3)
    phase = (done - plan.warmup) / (1 - plan.warmup)
    low = plan.final_factor
    return plan.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * phase)))
