"""A trajectory as bytes and back: safetensors that carry their key and a hash of all they hold.

The same bytes lie on disk and in object storage. What was cut short, altered or put under another
name is told by the hash, so that a reference is either exactly what was computed or a miss.
"""

from __future__ import annotations

import hashlib
import json
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from worker.passes import Branch
from worker.reference import Trajectory

_LENGTH_BYTES = 8
"""Of the header's length, with which a safetensors file begins."""


class Damaged(Exception):
    """Not the bytes that were written under this key."""


def encode_trajectory(key: str, trajectory: Trajectory) -> bytes:
    """The file of a trajectory."""
    tensors = {"latents": trajectory.latents.contiguous()}
    for (reader, branch, step_index), readout in trajectory.readouts.items():
        tensors[f"{reader}/{branch}/{step_index}"] = readout.contiguous()
    facts = {"key": key, "psnr_db": json.dumps(trajectory.psnr_db)}
    return save(tensors, metadata=facts | {"sha256": _digest(facts, tensors)})


def decode_trajectory(key: str, data: bytes) -> Trajectory:
    """The trajectory of a file.

    Raises:
        Damaged: it is not a file that was written for this key.
    """
    try:
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        facts = dict(header["__metadata__"])
        tensors = load(data)
        expected = facts.pop("sha256")
        if facts["key"] != key or _digest(facts, tensors) != expected:
            raise Damaged("its contents are not those that its hash names")
        trajectory = Trajectory(tensors.pop("latents"), psnr_db=json.loads(facts["psnr_db"]))
        for name, readout in tensors.items():
            reader, branch, step_index = name.rsplit("/", 2)
            trajectory.readouts[reader, cast("Branch", branch), int(step_index)] = readout
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise Damaged(f"it cannot be read: {type(error).__name__}") from error
    return trajectory


def _digest(facts: dict[str, str], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()
