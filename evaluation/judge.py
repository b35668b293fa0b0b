"""An independent judge: a small network trained on clean renders, never on diffusion features.

It says where a person's 18 key points are, how deep the scene is and where its edges lie, from
pixels alone. `python -m evaluation.judge` trains it; its weights ship with the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights" / "judge-64.safetensors"
NUM_KEYPOINTS = 18
MIRRORED = torch.tensor([0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16])
"""COCO-18 with left and right exchanged."""
IMAGE_SIZE = 64
MAP_SIZE = 32


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in a batch of pictures.

    Attributes:
        keypoints: (batch, 18, 2), x and y as fractions of the picture.
        depth: (batch, 32, 32), inverse depth, 0 far to 1 near.
        edges: (batch, 32, 32), 0 to 1.
        heatmaps: (batch, 18, 32, 32), logits.
    """

    keypoints: Float[Tensor, "batch 18 2"]
    depth: Float[Tensor, "batch 32 32"]
    edges: Float[Tensor, "batch 32 32"]
    heatmaps: Float[Tensor, "batch 18 32 32"]


class Block(nn.Module):
    """Two 3×3 convolutions with group normalisation and a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, out_channels)
        same = in_channels == out_channels and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, in, h, w) → (batch, out, h / stride, w / stride)."""
        hidden = F.silu(self.norm1(self.conv1(features)))
        return F.silu(self.norm2(self.conv2(hidden)) + self.skip(features))


class Judge(nn.Module):
    """A U-shaped network from 64×64 pictures to maps of 32×32; larger ones are reduced first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 5, 2, 2), nn.SiLU())
        self.down32 = Block(32, 32)
        self.down16 = nn.Sequential(Block(32, 64, 2), Block(64, 64))
        self.down8 = nn.Sequential(Block(64, 128, 2), Block(128, 128))
        self.down4 = nn.Sequential(Block(128, 160, 2), Block(160, 160))
        self.up8 = Block(160 + 128, 128)
        self.up16 = Block(128 + 64, 64)
        self.up32 = Block(64 + 32, 48)
        self.output = nn.Conv2d(48, NUM_KEYPOINTS + 2, 1)

    def forward(self, pictures: Float[Tensor, "batch 3 size size"]) -> Verdict:
        """Pictures in [0, 1] → what is in them."""
        pictures = reduced(pictures, IMAGE_SIZE)
        at32 = self.down32(self.stem(pictures * 2 - 1))
        at16 = self.down16(at32)
        at8 = self.down8(at16)
        features = self.up8(torch.cat([_double(self.down4(at8)), at8], 1))
        features = self.up16(torch.cat([_double(features), at16], 1))
        features = self.up32(torch.cat([_double(features), at32], 1))
        maps = self.output(features)
        heatmaps = maps[:, :NUM_KEYPOINTS]
        return Verdict(
            soft_argmax(heatmaps),
            maps[:, NUM_KEYPOINTS].sigmoid(),
            maps[:, NUM_KEYPOINTS + 1].sigmoid(),
            heatmaps,
        )


def reduced(
    pictures: Float[Tensor, "batch 3 height width"], size: int
) -> Float[Tensor, "batch 3 size size"]:
    """Pictures of `size`, by the mean over areas."""
    return pictures if pictures.shape[-1] == size else F.adaptive_avg_pool2d(pictures, size)


def soft_argmax(heatmaps: Float[Tensor, "batch points h w"]) -> Float[Tensor, "batch points 2"]:
    """The heatmap's mean position near its peak, (x, y) as fractions of the picture."""
    _, _, h, w = heatmaps.shape
    masked = heatmaps.masked_fill(~_near_peak(heatmaps), -torch.inf)
    probability = masked.flatten(2).softmax(dim=2).view_as(heatmaps)
    columns, rows = torch.arange(w).to(heatmaps), torch.arange(h).to(heatmaps)
    x = (probability.sum(dim=2) * (columns + 0.5)).sum(dim=2) / w
    y = (probability.sum(dim=3) * (rows + 0.5)).sum(dim=2) / h
    return torch.stack([x, y], dim=2)


def confidence(heatmaps: Float[Tensor, "batch points h w"]) -> Float[Tensor, "batch points"]:
    """How much of a heatmap lies near its peak, 0 to 1: low where a point could be anywhere."""
    probability = heatmaps.flatten(2).softmax(dim=2).view_as(heatmaps)
    return (probability * _near_peak(heatmaps)).sum(dim=(2, 3))


def _near_peak(heatmaps: Float[Tensor, "batch points h w"]) -> Tensor:
    """Cells at most two away from the highest."""
    _, _, h, w = heatmaps.shape
    peak = heatmaps.flatten(2).argmax(dim=2)[..., None, None]
    rows = torch.arange(h, device=heatmaps.device).view(1, 1, h, 1)
    columns = torch.arange(w, device=heatmaps.device).view(1, 1, 1, w)
    return ((rows - peak // w).abs() <= 2) & ((columns - peak % w).abs() <= 2)


def load_judge(path: Path = WEIGHTS) -> Judge:
    """The trained judge, frozen."""
    judge = Judge()
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return judge.requires_grad_(False).eval()


def _double(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2, mode="nearest")
