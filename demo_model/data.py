"""Batches from the packed renders; knows the world's dataset format, but no networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from demo_model.config import RunConfig
from world.packed import Packed, open_packed, render_packed
from world.seeds import TRAIN, VALIDATION


@dataclass(frozen=True)
class Renders:
    """Packed training renders and a few of the validation range."""

    train: Packed
    validation: Packed


def load_renders(config: RunConfig) -> Renders:
    """Opens the packed renders of a run; renders first what is missing."""
    data = config.data
    train, validation = data.folder, data.folder.with_name(data.folder.name + "-validation")
    render_packed(train, TRAIN[: data.count], config.image_size, workers=data.workers)
    render_packed(validation, VALIDATION[: data.validation_count], config.image_size, workers=1)
    return Renders(open_packed(train), open_packed(validation))


def open_images(config: RunConfig) -> np.ndarray:
    """(count, height, width, 3) uint8: the images with captions that the U-Net is trained on."""
    packed = open_packed(config.data.folder, with_rows=False)
    return packed.images[: config.data.latent_count]


def open_faces(config: RunConfig) -> Packed:
    """Those without, tight crops of faces; renders what is missing."""
    folder, count = config.data.faces, config.data.faces_count
    assert folder is not None
    render_packed(folder, TRAIN[:count], config.image_size, workers=config.data.workers, faces=True)
    return open_packed(folder, with_rows=False)


def open_keypoints(config: RunConfig) -> np.ndarray:
    """(count, people, 18, 3) float32: x and y in pixels of the people in the images, those without
    captions last."""
    packed = open_packed(config.data.folder, with_rows=False)
    keypoints: np.ndarray = packed.keypoints[: config.data.latent_count]
    if config.data.faces is None:
        return keypoints
    return np.concatenate([keypoints, open_faces(config).keypoints])


class EpochOrder:
    """A new random order of `count` items every epoch, as a pure function of the position: a run
    that resumes at a position sees the items that an uninterrupted one would."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def at(self, position: int) -> int:
        """The item at a position in the endless sequence of epochs."""
        epoch, offset = divmod(position, self.count)
        if epoch != self._epoch:
            self._order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
            self._epoch = epoch
        return int(self._order[offset])

    def batch(self, position: int, size: int) -> np.ndarray:
        """(size,) items from a position on."""
        return np.array([self.at(position + offset) for offset in range(size)])


def images_as_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """(batch, height, width, 3) uint8 → (batch, 3, height, width) float32 in [-1, 1]."""
    tensor = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2)
    return tensor.to(torch.float32).div_(127.5).sub_(1.0)


def images_as_bytes(images: Tensor) -> np.ndarray:
    """(batch, 3, height, width) in [-1, 1] → (batch, height, width, 3) uint8."""
    scaled = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
