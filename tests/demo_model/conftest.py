from __future__ import annotations

from pathlib import Path

import pytest

from demo_model.config import RunConfig


def _plan(batch_size: int, samples: int) -> dict[str, object]:
    return {"samples": samples, "batch_size": batch_size, "learning_rate": 1e-3}


@pytest.fixture(scope="session")
def packed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packed") / "train"


@pytest.fixture(scope="session")
def micro(packed_folder: Path) -> RunConfig:
    data = {
        "folder": packed_folder,
        "count": 24,
        "validation_count": 4,
        "latent_count": 16,
        "workers": 1,
    }
    return RunConfig.model_validate(
        {
            "image_size": 32,
            "threads": 1,
            "data": data,
            "vae": {"plan": _plan(4, 8), "channels": [8, 8, 8], "norm_num_groups": 4},
            "text": {"plan": _plan(8, 16), "width": 16, "layers": 1, "heads": 2},
            "unet": {
                "plan": _plan(4, 16),
                "channels": [8, 8, 16, 16],
                "head_width": 8,
                "norm_num_groups": 4,
            },
        }
    )
