from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Stores contents as a checkpoint of a given name; needs torch."""
    torch = pytest.importorskip("torch")

    def save(stored: object, name: str = "readout_sdv15_spatial_pose.pt") -> Path:
        path = tmp_path / name
        torch.save(stored, path)
        return path

    return save
