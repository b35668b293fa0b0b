"""Bootstrap confidence intervals of means, differences and ratios of paired values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap(
    statistic: Callable[..., float], *columns: np.ndarray, draws: int = 4000, seed: int = 0
) -> Interval:
    """Percentile bootstrap over rows; `columns` are paired and resampled together."""
    rng = np.random.default_rng(seed)
    count = len(columns[0])
    values = []
    for _ in range(draws):
        rows = rng.integers(0, count, count)
        values.append(statistic(*(column[rows] for column in columns)))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(statistic(*columns)), float(low), float(high))


def mean(values: np.ndarray) -> float:
    """Of one column."""
    return float(values.mean())


def median(values: np.ndarray) -> float:
    """Of one column."""
    return float(np.median(values))


def mean_ratio(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """The ratio of two means."""
    return float(numerator.mean() / denominator.mean())


def mean_difference(first: np.ndarray, second: np.ndarray) -> float:
    """The difference of two means."""
    return float(first.mean() - second.mean())
