"""The network that finds faces of the mannequin world; trained by evaluation/train_faces.py."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from heads_registry.catalogue import BUILTIN_DIR

WEIGHTS: Path = BUILTIN_DIR / "faces" / "mannequin.safetensors"
SHA256 = "0d91412b637031b87794b899f1a9203dc0bc8305046684b1decccde3d3b3511a"
"""Of the weights that ship; whoever trains them again writes theirs here."""
CELL_PX = 4
"""Of a 64 px picture; the map has a cell for each, and a cell says at most one face."""


class FaceNetwork(nn.Module):
    """(batch, 3, 64, 64) in [-1, 1] → (batch, 5, 16, 16).

    The first channel is the logit of a face's centre in a cell; the others are the distances from
    the cell's centre to the left, top, right and bottom of the face, in cells.
    """

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 2, 1)
        self.down = nn.Conv2d(channels, 2 * channels, 3, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Conv2d(2 * channels, 2 * channels, 3, 1, dilation, dilation)
            for dilation in (1, 2, 1)
        )
        self.output = nn.Conv2d(2 * channels, 5, 1)

    def forward(self, pictures: Float[Tensor, "batch 3 height width"]) -> Tensor:
        """Logits of centres and distances to the edges; see the class."""
        features = F.silu(self.down(F.silu(self.stem(pictures))))
        for block in self.blocks:
            features = features + F.silu(block(features))
        found = self.output(features)
        return torch.cat([found[:, :1], F.softplus(found[:, 1:])], dim=1)
