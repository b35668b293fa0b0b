"""Loads a readout head's weights: hash, then safetensors, then a strict match with the manifest.

WeightsError
├── HashMismatch    the file is not the one that the manifest names
└── HeadMismatch    the weights or the taps do not fit the network or the U-Net
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from heads_registry.manifest import HeadManifest, RegistryError
from heads_registry.networks import ReadoutHead


class WeightsError(RegistryError):
    """A head's weights cannot be used."""


class HashMismatch(WeightsError):
    """The file on disk is not the one that the manifest names."""


class HeadMismatch(WeightsError):
    """The weights or the taps do not fit the network or the U-Net."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_head(manifest: HeadManifest) -> ReadoutHead:
    """The network that a manifest describes, on the current default device, untrained."""
    return ReadoutHead(
        feature_channels=manifest.feature_channels,
        projection_channels=manifest.projection_channels,
        time_embedding_channels=manifest.time_embedding_channels,
        num_norm_groups=manifest.num_norm_groups,
        output_channels=manifest.output_channels,
        output_activation=manifest.output_activation,
        output_scale=manifest.output_scale,
    )


def load_head(
    manifest: HeadManifest, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ReadoutHead:
    """A frozen head with its weights, in evaluation mode.

    Raises:
        WeightsError: no such file.
        HashMismatch: the file's sha256 is not the manifest's.
        HeadMismatch: not safetensors, or keys or shapes differ from the manifest's network.
    """
    path = manifest.weights_path
    if not path.is_file():
        raise WeightsError(f"head {manifest.id}: no weights at {path}")
    if (found := sha256_of(path)) != manifest.sha256:
        raise HashMismatch(
            f"head {manifest.id}: {path.name} has sha256 {found}, the manifest says "
            f"{manifest.sha256}; fetch the file again or correct the manifest"
        )
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise HeadMismatch(
            f"head {manifest.id}: {path.name} is not safetensors: {error}"
        ) from error
    with torch.device("meta"):
        head = build_head(manifest)
    try:
        head.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise HeadMismatch(f"head {manifest.id}: {error}") from error
    head = head.to(device=device, dtype=dtype)
    return head.to(memory_format=torch.channels_last).requires_grad_(False).eval()


def check_fit(manifest: HeadManifest, unet: nn.Module) -> None:
    """Whether a head can read this U-Net: its taps exist and have the channels it expects.

    Raises:
        HeadMismatch: names the first tap that differs.
    """
    for path, channels in zip(manifest.feature_taps, manifest.feature_channels, strict=True):
        try:
            module = unet.get_submodule(path)
        except AttributeError as error:
            raise HeadMismatch(f"head {manifest.id}: the U-Net has no module {path!r}") from error
        found = getattr(module, "out_channels", channels)
        if found != channels:
            raise HeadMismatch(
                f"head {manifest.id}: {path} has {found} channels, the head expects {channels}"
            )
    embedding = unet.time_embedding.linear_2.out_features
    if manifest.time_embedding_channels != embedding:
        raise HeadMismatch(
            f"head {manifest.id}: the U-Net's time embedding has {embedding} channels, the head "
            f"expects {manifest.time_embedding_channels}"
        )
