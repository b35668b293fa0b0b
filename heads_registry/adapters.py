"""ControlNets and T2I-Adapters: loaded by diffusers' own classes, checked against the U-Net.

RegistryError
├── AdapterLoadError   the files cannot be loaded
└── AdapterMismatch    they do not fit the model
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from torch import Tensor

from heads_registry.base_model import BaseModel
from heads_registry.loading import sha256_of
from heads_registry.manifest import AdapterManifest, RegistryError

Network = ControlNetModel | T2IAdapter


class AdapterLoadError(RegistryError):
    """An adapter's files are missing, altered or not of its type."""


class AdapterMismatch(RegistryError):
    """An adapter's residuals do not fit the U-Net."""


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter ready to use, with its manifest."""

    manifest: AdapterManifest
    network: Network

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(p.numel() * p.element_size() for p in self.network.parameters())

    @property
    def image_channels(self) -> int:
        """1 for an adapter of grey images, such as some T2I-Adapters for edges; else 3."""
        config = self.network.config
        channels: int = (
            config.conditioning_channels
            if isinstance(self.network, ControlNetModel)
            else config.in_channels
        )
        return channels


def load_adapter(
    manifest: AdapterManifest,
    model: BaseModel,
) -> LoadedAdapter:
    """A frozen adapter on the model's device and in its dtype; safetensors only.

    Raises:
        AdapterLoadError: the files are missing, unreadable or not the manifest's.
        AdapterMismatch: it does not fit the model's U-Net.
    """
    for name, expected in manifest.sha256.items():
        path = Path(manifest.location) / name
        if not path.is_file() or sha256_of(path) != expected:
            raise AdapterLoadError(
                f"adapter {manifest.id}: {path} is missing or not the file of the manifest"
            )
    kind = ControlNetModel if manifest.type == "controlnet" else T2IAdapter
    try:
        network = kind.from_pretrained(
            manifest.location,
            revision=manifest.revision,
            variant=manifest.variant,
            torch_dtype=model.dtype,
            use_safetensors=True,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise AdapterLoadError(
            f"adapter {manifest.id}: cannot load {manifest.location}: {error}"
        ) from error
    network.requires_grad_(False).eval()
    network.to(model.device, memory_format=torch.channels_last)
    adapter = LoadedAdapter(manifest, network)
    check_fit(adapter, model)
    return adapter


def check_fit(adapter: LoadedAdapter, model: BaseModel) -> None:
    """Whether the U-Net takes what the adapter makes; for sizes of features see `check_sizes`.

    Raises:
        AdapterMismatch: says what differs.
    """
    network, unet = adapter.network, model.unet
    if isinstance(network, ControlNetModel):
        found = [block.out_channels for block in network.controlnet_down_blocks]
        expected = skip_channels(unet)
        factor = 2 ** (len(network.config.conditioning_embedding_out_channels) - 1)
        if factor != model.vae_scale_factor:
            raise AdapterMismatch(
                f"adapter {adapter.manifest.id} takes images of {factor} px per latent, the model "
                f"has {model.vae_scale_factor}"
            )
    else:
        found = list(network.config.channels)
        blocks = [block.resnets[-1].out_channels for block in unet.down_blocks]
        expected = [*blocks, blocks[-1]][: len(found)]  # one more may follow the middle block
    if found != expected:
        raise AdapterMismatch(
            f"adapter {adapter.manifest.id} makes residuals of {found} channels, the U-Net takes "
            f"{expected}; it was trained for another kind of model"
        )


def skip_channels(unet: UNet2DConditionModel) -> list[int]:
    """Channels of the encoder's outputs that the decoder is fed, in order."""
    channels = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        widths = [resnet.out_channels for resnet in block.resnets]
        channels += widths + ([widths[-1]] if block.downsamplers else [])
    return channels


def check_sizes(
    adapter_id: str, features: Sequence[Tensor], unet: UNet2DConditionModel, size: tuple[int, int]
) -> None:
    """Whether a T2I-Adapter's features have the sizes at which the U-Net adds them.

    A block with attention adds its feature before it halves the latents, any other block after;
    one feature more is added behind the middle block where its shape is right.

    Raises:
        AdapterMismatch: names the first that differs.
    """
    for level, (feature, block) in enumerate(zip(features, unet.down_blocks, strict=False)):
        halved = tuple(-(-side // 2) for side in size) if block.downsamplers else size
        early = getattr(block, "has_cross_attention", False)
        expected = size if early else halved
        if tuple(feature.shape[-2:]) != expected:
            raise AdapterMismatch(
                f"adapter {adapter_id}: feature {level} has {tuple(feature.shape[-2:])}, the U-Net "
                f"adds {expected} there; its downscaling is another model's, or the picture's size "
                "is no multiple of it"
            )
        size = halved
