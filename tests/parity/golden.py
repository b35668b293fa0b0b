"""Where recorded runs of the authors' implementation lie, and how close to them we have to come.

A part is under ``data``; the whole set is looked for beside the repository and tests that need it
skip without it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).resolve().parents[2].parent / "shared"
GOLDEN = SHARED / "golden"

TOLERANCES: dict[str, dict[str, float]] = {
    # float32 sums in another order (1×1 convolutions before the upsampling); values up to 3
    "head": {"rtol": 0, "atol": 2e-5},
    "mixing": {"rtol": 0, "atol": 1e-7},
    # the same layers and the same numbers, called through our hooks and our batches
    "time_embedding": {"rtol": 0, "atol": 1e-6},
    "alphas_cumprod": {"rtol": 1e-6, "atol": 0},
    # coefficients are rounded from float64 once here, in float32 all along there; latents up to 50
    "ddim_step": {"rtol": 5e-6, "atol": 5e-6},
    "pred_original_sample": {"rtol": 5e-6, "atol": 5e-6},
}
"""The one table: what is compared → largest difference, all in float32 on the CPU."""

GRADIENT = 3e-4
"""Relative L2 of the gradient at the latents of one teacher-forced step."""
LOSS = 3e-4
"""Relative, of the weighted loss of each branch."""
LATENTS = 5e-5
"""Largest difference of latents and noise predictions after one update and one DDIM step."""
FREE_RUN = 1e-3
"""Largest difference of a guided item's last latents after a whole free run."""
CONTEXT = 5e-5
"""Text embeddings; values up to 35."""
READOUT = 1e-4
"""Features and readouts; values up to 10."""
RECONSTRUCTION = 0.15
"""RMS of latents that were inverted and sampled again in ten steps."""

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs ../shared/golden")


def assert_parity(ours: Tensor, recorded: Tensor, what: str) -> None:
    """All values agree within the tolerance of `what`."""
    torch.testing.assert_close(ours, recorded, **TOLERANCES[what])


@cache
def arrays(path: Path) -> dict[str, Tensor]:
    """Everything in an ``.npz`` file."""
    with np.load(path) as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}
