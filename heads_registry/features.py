"""Captures a frozen U-Net's decoder features with removable hooks, for training and serving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


def decoder_taps(unet: nn.Module) -> dict[str, int]:
    """Every decoder resnet's second convolution: module path → channels, in execution order.

    The features are the convolution's output before the residual addition, as in the authors'
    code (section 4.1): 12 taps in SD1.5, 9 in SDXL.
    """
    return {
        f"up_blocks.{block_index}.resnets.{resnet_index}.conv2": resnet.conv2.out_channels
        for block_index, block in enumerate(unet.up_blocks)
        for resnet_index, resnet in enumerate(block.resnets)
    }


@contextmanager
def capture_features(unet: nn.Module, taps: Sequence[str]) -> Iterator[list[Tensor]]:
    """Within the context, each forward pass of `unet` leaves its tapped outputs in the list.

    The list is in the order of `taps`, each (batch, channels, h', w') at its native size, attached
    to the autograd graph where one is recorded. A later pass replaces it. Hooks are removed when
    the context ends.

    Raises:
        AttributeError: `unet` has no module of that path.
    """
    features: list[Tensor] = []
    index = {path: position for position, path in enumerate(taps)}

    def begin(_module: nn.Module, _arguments: object) -> None:
        features[:] = [None] * len(taps)  # type: ignore[list-item]

    def keep(position: int):
        def hook(_module: nn.Module, _arguments: object, output: Tensor) -> None:
            features[position] = output

        return hook

    handles = [unet.register_forward_pre_hook(begin)]
    try:
        for path, position in index.items():
            handles.append(unet.get_submodule(path).register_forward_hook(keep(position)))
        yield features
    finally:
        for handle in handles:
            handle.remove()
