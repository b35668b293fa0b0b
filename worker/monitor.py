"""How far controls are while a run goes on: read from the device without ever waiting for it.

Guidance has every acting control's readout and target in its hands, so their distance costs no
pass. The newest values lie on the device; a copy to the host is begun between two steps and looked
at between two later ones, when it has arrived.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Measured(NamedTuple):
    """A control's distance, as results report it, and the step at which guidance saw it."""

    distance: float
    step_index: int


class DistanceMonitor:
    """The newest distance of every control of every item; one stream of the device writes."""

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        """Nothing is known yet.

        Args:
            counts: controls of each item.
            device: of the values that will be noted.
        """
        self._counts = tuple(counts)
        self._device = device
        self._newest = torch.zeros(sum(counts), device=device)
        self._steps = [-1] * sum(counts)
        self._host = torch.zeros(sum(counts), pin_memory=device.type == "cuda")
        self._event = torch.cuda.Event() if device.type == "cuda" else None
        self._slots: dict[tuple[tuple[int, int], ...], Tensor] = {}
        self._copied: list[int] | None = None
        self._is_newer = False
        self._known: list[Measured | None] = [None] * sum(counts)

    def note(
        self,
        step_index: int,
        controls: Sequence[tuple[int, int]],
        distances: Float[Tensor, " controls"],
    ) -> None:
        """Keep what guidance measured; everything stays on the device.

        Args:
            step_index: of the step.
            controls: item and position of each control.
            distances: of these controls.
        """
        key = tuple(controls)
        places = [sum(self._counts[:item]) + position for item, position in key]
        if key not in self._slots:
            self._slots[key] = torch.tensor(places, device=self._device)
        self._newest.index_copy_(0, self._slots[key], distances.to(self._newest.dtype))
        for place in places:
            self._steps[place] = step_index
        self._is_newer = True

    def latest(self) -> list[list[Measured | None]]:
        """Item × control: the newest distances that have arrived; None: not finite, or not yet."""
        if self._copied is None and self._is_newer:
            self._host.copy_(self._newest, non_blocking=True)
            if self._event is not None:
                self._event.record(torch.cuda.current_stream(self._device))
            self._copied, self._is_newer = list(self._steps), False
        if self._copied is not None and (self._event is None or self._event.query()):
            pairs = zip(self._host.tolist(), self._copied, strict=True)
            self._known = [
                Measured(value, step) if step >= 0 and math.isfinite(value) else None
                for value, step in pairs
            ]
            self._copied = None
        rest = iter(self._known)
        return [[next(rest) for _ in range(count)] for count in self._counts]
