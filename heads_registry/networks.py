"""The readout head's network: features and a time embedding in, a readout out; knows no files.

Section 4.1, section 8.5 and figure 12 of the paper. Parameter names are those of the published
checkpoints, so that importing one is a change of container and of nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Feature = Float[Tensor, "batch channels height width"]
TimeEmbedding = Float[Tensor, "batch embedding"]
Readout = Float[Tensor, "batch channels height width"]


class NormalizedConv2d(nn.Conv2d):
    """A convolution without bias and the group normalisation that follows it."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, num_norm_groups: int
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.norm = nn.GroupNorm(num_norm_groups, out_channels)

    def forward(self, features: Feature, size: tuple[int, int] | None = None) -> Feature:
        """Convolve, bring to `size`, normalise.

        A 1×1 convolution and bilinear interpolation commute, so a 1×1 convolution before the
        upsampling computes what figure 12 computes after it, on fewer pixels.
        """
        features = super().forward(features)
        if size is not None and features.shape[-2:] != size:
            features = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        return self.norm(features)


class TimestepBottleneck(nn.Module):
    """Standardises one feature tap to P channels at the latents' size (figure 12, left)."""

    def __init__(
        self, in_channels: int, out_channels: int, embedding_channels: int, num_norm_groups: int
    ) -> None:
        super().__init__()
        hidden = out_channels // 4
        self.shortcut = (
            NormalizedConv2d(in_channels, out_channels, 1, num_norm_groups)
            if in_channels != out_channels
            else None
        )
        self.conv1 = NormalizedConv2d(in_channels, hidden, 1, num_norm_groups)
        self.conv2 = NormalizedConv2d(hidden, hidden, 3, num_norm_groups)
        self.conv3 = NormalizedConv2d(hidden, out_channels, 1, num_norm_groups)
        self.emb_layers = nn.Linear(embedding_channels, hidden)

    def forward(
        self, features: Feature, time_embedding: TimeEmbedding | None, size: tuple[int, int]
    ) -> Feature:
        """One tap at its native size → (batch, P, *size)."""
        if self.shortcut is not None:
            residual = self.shortcut(features, size)
        elif features.shape[-2:] != size:
            residual = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        else:
            residual = features
        hidden = F.relu(self.conv1(features, size))
        if time_embedding is not None:
            hidden = hidden + F.relu(self.emb_layers(time_embedding))[:, :, None, None]
        hidden = F.relu(self.conv2(hidden))
        return F.relu(self.conv3(hidden) + residual)


class ReadoutHead(nn.Module):
    """Aggregates the features of all taps into a readout (section 4.1).

    Each tap goes through a timestep-conditioned bottleneck; a softmax over one learned scalar per
    tap mixes them; spatial heads add three convolutions with SiLU and a final Tanh. Without
    output head the mixed map itself is the readout.

    Deviation: `output_scale` may double the mixed map before the output convolutions, for small
    latents; the paper's heads have 1.
    """

    def __init__(
        self,
        feature_channels: Sequence[int],
        projection_channels: int,
        time_embedding_channels: int,
        num_norm_groups: int = 32,
        output_channels: int | None = None,
        output_activation: str = "tanh",
        output_scale: int = 1,
    ) -> None:
        super().__init__()
        self.output_scale = output_scale
        self.time_embedding_channels = time_embedding_channels
        self.bottleneck_layers = nn.ModuleList(
            TimestepBottleneck(
                channels, projection_channels, time_embedding_channels, num_norm_groups
            )
            for channels in feature_channels
        )
        self.mixing_weights = nn.Parameter(torch.ones(len(feature_channels)))
        self.output_head: nn.Sequential | None = None
        if output_channels is not None:
            layers = [
                nn.Conv2d(projection_channels, 128, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(128, 32, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(32, output_channels, 1),
            ]
            self.output_head = nn.Sequential(
                *layers, *([nn.Tanh()] if output_activation == "tanh" else [])
            )

    def forward(
        self,
        features: Sequence[Feature],
        time_embedding: TimeEmbedding | None,
        size: tuple[int, int],
    ) -> Readout:
        """Features of one U-Net pass → readout.

        Args:
            features: one map per tap, each at its native size, in the order of the taps.
            time_embedding: (batch, embedding) of the U-Net's own embedding layers; None where
                the head was trained without.
            size: the latents' (h, w).

        Returns:
            (batch, channels, output_scale·h, output_scale·w).
        """
        weights = self.mixing_weights.softmax(dim=0)
        mixed = sum(
            weight * layer(feature, time_embedding, size)
            for weight, layer, feature in zip(
                weights, self.bottleneck_layers, features, strict=True
            )
        )
        assert isinstance(mixed, Tensor)
        if self.output_head is None:
            return mixed
        if self.output_scale != 1:
            mixed = F.interpolate(
                mixed, scale_factor=self.output_scale, mode="bilinear", align_corners=False
            )
        readout: Readout = self.output_head(mixed)
        return readout
