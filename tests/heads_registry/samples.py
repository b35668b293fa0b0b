"""A small head as the authors' training code stores it."""

from __future__ import annotations

from typing import Any

import torch

from heads_registry.networks import ReadoutHead

CHANNELS = {12: [8] * 6 + [6] * 3 + [4] * 3, 9: [8] * 3 + [6] * 3 + [4] * 3}
OPTIONS = {"bottleneck_sequential": False, "num_norm_groups": 2}
POSE = {"control_type": "pose", "control_range": (-0.5, 0.5), "sparse_loss": True}


def contents(
    outputs: int | None = 3, taps: int = 12, data: dict[str, Any] | None = None, **options: object
) -> dict[str, Any]:
    """What the authors' training code stores for a small random head."""
    torch.manual_seed(0)
    head = ReadoutHead(CHANNELS[taps], 8, 12, 2, output_channels=outputs)
    spatial = {"use_output_head": outputs is not None}
    if outputs is not None:
        spatial["output_head_channels"] = outputs
    return {
        "step": 5000,
        "config": {
            "model_id": "runwayml/stable-diffusion-v1-5",
            "projection_dim": 8,
            "dims": CHANNELS[taps],
            "aggregation_kwargs": OPTIONS | spatial | options,
            "dataset_args": (POSE if outputs else {}) if data is None else data,
        },
        "aggregation_network": dict(head.state_dict()),
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": []},
    }
