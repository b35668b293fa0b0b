"""The U-Net passes of one step: whose output is known already, and the features observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from heads_registry.base_model import Latents

Branch = Literal["unconditional", "conditional", "both"]
BOTH: tuple[Branch, ...] = ("unconditional", "conditional")


def branches_of(branch: Branch) -> tuple[Branch, ...]:
    """The single branches that a choice of branch means."""
    return BOTH if branch == "both" else (branch,)


class Passes:
    """Outputs by branch and item, and the features of the branches that are observed."""

    def __init__(self, observed: Sequence[Branch] = ()) -> None:
        self.observed = tuple(observed)
        self._parts: list[tuple[Branch, list[int], Latents]] = []
        self._features: dict[tuple[Branch, int], list[Tensor]] = {}

    def __contains__(self, key: tuple[Branch, int]) -> bool:
        return any(key[0] == branch and key[1] in rows for branch, rows, _ in self._parts)

    def forget(self) -> None:
        """The latents have moved: earlier passes are void."""
        self._parts.clear()
        self._features.clear()

    def add(
        self,
        parts: Sequence[tuple[Branch, list[int]]],
        output: Latents,
        features: Sequence[Tensor],
    ) -> None:
        """Keep a pass whose rows are the parts', one after the other."""
        start = 0
        for branch, rows in parts:
            self._parts.append((branch, rows, output[start : start + len(rows)]))
            if branch in self.observed:
                for offset, row in enumerate(rows, start):
                    self._features[branch, row] = [
                        feature[offset : offset + 1].detach() for feature in features
                    ]
            start += len(rows)

    def features(self, branch: Branch, row: int) -> list[Tensor]:
        """The observed features of one item in one branch, each (1, channels, h', w')."""
        return self._features[branch, row]

    def output(self, branch: Branch, num_items: int) -> Latents:
        """The branch's output for all items."""
        parts = [(rows, output) for name, rows, output in self._parts if name == branch]
        if len(parts) == 1:
            return parts[0][1]
        joined = parts[0][1].new_empty(num_items, *parts[0][1].shape[1:])
        for rows, output in parts:
            joined[rows] = output
        return joined
