from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from demo_model import adapters
from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from worker.models import ModelCache

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def test_both_are_trained_exported_and_served(tmp_path: Path) -> None:
    """The whole command on eight renders, and the early checkpoint beside the final one."""
    plan = {"samples": 8, "batch_size": 4, "learning_rate": 1e-3}
    config = {
        "model": "mannequin-64",
        "image_size": 64,
        "data": {"folder": str(tmp_path / "packed"), "count": 16, "validation_count": 8},
        "early_samples": 4,
        "embedding_channels": [4, 4, 8],
        "sheet_steps": 1,
        "controlnet": plan,
        "t2i_adapter": plan,
    }
    path, run = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(config))
    arguments = ["all", "--config", str(path), "--run", str(run)]
    assert adapters.main(arguments) == 0
    found = {
        state: ModelCache(Catalogue([BUILTIN_DIR, run / state]), 2**30)
        for state in ("early", "final")
    }
    for name in ("pose-controlnet", "pose-t2i-adapter"):
        early, final = (models.adapter("mannequin-64", name) for models in found.values())
        samples = [one.manifest.metrics["training"]["samples"] for one in (early, final)]
        assert samples == [4, 8]
        weights = [list(one.network.parameters()) for one in (early, final)]
        assert not all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert len(list((run / "sheets").glob("*.png"))) == 2
    before = (run / "controlnet.pt").stat().st_mtime_ns
    assert adapters.main(arguments) == 0  # is done, and does not train again
    assert (run / "controlnet.pt").stat().st_mtime_ns == before
