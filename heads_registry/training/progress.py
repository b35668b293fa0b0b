"""What training costs and says of itself while it runs."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from heads_registry.manifest import RegistryError


class MissingExtra(RegistryError):
    """An optional library is not installed; says which extra brings it."""


@dataclass
class Cost:
    """Seconds in training steps, over all runs that a training was made in, and peak memory."""

    device: torch.device
    seconds: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of the block."""
        start = time.monotonic()
        yield
        self.seconds += time.monotonic() - start

    def summary(self) -> dict[str, Any]:
        """Minutes, and the peak memory of this process: the GPU's where there is one."""
        peak = (
            torch.cuda.max_memory_allocated(self.device)
            if self.device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        return {
            "minutes": round(self.seconds / 60, 2),
            "peak_memory_mb": round(peak / 1e6),
            "device": self.device.type,
            "threads": torch.get_num_threads(),
        }


class TrainingLog(Protocol):
    """Whoever wants to know how the training goes."""

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """Losses by head."""

    def metrics(self, step: int, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Validation metrics by head."""


class NoLog:
    """Nobody wants to know."""

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def metrics(self, step: int, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Do nothing."""


class TensorBoardLog:
    """Event files for TensorBoard.

    Raises:
        MissingExtra: tensorboard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra(
                "--tensorboard needs tensorboard: pip install -e '.[train]'"
            ) from error
        self._writer = SummaryWriter(str(directory))

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """As loss/<head>."""
        for name, value in values.items():
            self._writer.add_scalar(f"loss/{name}", value, step)

    def metrics(self, step: int, values: Mapping[str, Mapping[str, Any]]) -> None:
        """As <head>/<metric>."""
        for head, metrics in values.items():
            for name, value in metrics.items():
                self._writer.add_scalar(f"{head}/{name}", float(value), step)
        self._writer.flush()
