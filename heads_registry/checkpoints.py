"""Reads the research authors' checkpoint files: untrusted bytes in, checked tensors out.

The format is that of github.com/google-research/readout_guidance: ``torch.save`` of ``{step,
config, aggregation_network, optimizer_state_dict}``. Files come from strangers: they are read once,
under a size cap, by torch's restricted loader alone, and keys, shapes and values are checked before
anybody uses them. What the config holds is never printed or compared before its type is known.
Knows no manifests and writes nothing. Errors:

    RegistryError
    └── ImportRefused           the checkpoint is not imported; says why and what would help
        ├── CheckpointTooLarge  more bytes than the cap
        ├── NotACheckpoint      not a zip archive of torch.save
        ├── DamagedCheckpoint   truncated or altered
        ├── UnsafeCheckpoint    its pickle asks for more than tensors and plain containers
        ├── UnknownLayout       tensors or config are not those of a readout head
        ├── NonFiniteWeights    NaN or infinity among the weights
        └── HeadExists          the registry has such a head already
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heads_registry.manifest import RegistryError
from heads_registry.networks import ReadoutHead

MAX_BYTES = 256 * 2**20
"""Largest checkpoint that is read; the published ones have at most 51 MB."""

TAP_COUNTS = {12: "Stable Diffusion 1.5", 9: "SDXL"}
"""Number of taps → the decoder that has so many resnets, three a block."""

_SEQUENTIAL = re.compile(r"^(bottleneck_layers\.[0-9]+\.)0\.(.+)$")


class ImportRefused(RegistryError):
    """A checkpoint is not imported; says why and what would help."""


class CheckpointTooLarge(ImportRefused):
    """The file has more bytes than the cap."""


class NotACheckpoint(ImportRefused):
    """The file is not a zip archive of torch.save."""


class DamagedCheckpoint(ImportRefused):
    """The archive is truncated or was altered."""


class UnsafeCheckpoint(ImportRefused):
    """The pickle asks for more than the restricted loader gives."""


class UnknownLayout(ImportRefused):
    """Tensors or config are not those of a readout head."""


class NonFiniteWeights(ImportRefused):
    """Some weights are NaN or infinite."""


class HeadExists(ImportRefused):
    """The registry has a head of that family and name already."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checked head: its tensors by the names of `ReadoutHead`, and what is known about it.

    Attributes:
        state: dense, finite float32 tensors; exactly those of ``ReadoutHead(**network)``.
        network: arguments of `ReadoutHead`, read off the shapes and the config.
        sequential: bottlenecks were wrapped in a Sequential and never saw the time embedding.
        config: the training run's, as it is in the file: plain containers, unchecked.
        training_steps: how long it was trained, if the file says so.
        sha256: of the file.
    """

    state: dict[str, Tensor]
    network: dict[str, Any]
    sequential: bool
    config: dict[str, Any]
    training_steps: int | None
    sha256: str

    def section(self, key: str) -> dict[str, Any]:
        """A mapping inside the config; empty if there is none."""
        return section(self.config, key)


def section(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A mapping inside a config; empty if there is none."""
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def read_checkpoint(path: Path, max_bytes: int = MAX_BYTES) -> Checkpoint:
    """A head from a ``.pt`` file.

    Raises:
        ImportRefused: see the tree on top.
    """
    content = _read(path, max_bytes)
    try:
        stored = _unpickle(content)
        state, config = _tensors_and_config(stored, len(content))
        sequential = any(_SEQUENTIAL.match(key) for key in state)
        state = {_SEQUENTIAL.sub(r"\1\2", key): tensor for key, tensor in state.items()}
        network = _network(state, config, sequential)
        _check_keys(state, network)
        # Copies, so that nothing else in the file is kept alive or shared.
        state = {
            key: tensor.detach().clone(memory_format=torch.contiguous_format).float()
            for key, tensor in state.items()
        }
        for key, tensor in state.items():
            if not tensor.isfinite().all():
                raise NonFiniteWeights(f"{key} has values that are not finite: NaN or infinity")
    except ImportRefused as error:
        raise type(error)(f"{path.name}: {error}") from error
    step = stored.get("step")
    return Checkpoint(
        state=state,
        network=network,
        sequential=sequential,
        config=config,
        training_steps=step if type(step) is int and 0 <= step < 10**9 else None,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _read(path: Path, max_bytes: int) -> bytes:
    """The whole file, once, so that what is hashed is what is loaded."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise ImportRefused(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise CheckpointTooLarge(
            f"{path.name}: larger than {max_bytes:,} bytes; a head with its optimiser state has "
            "51 MB, so raise max_bytes only for a file that you trust"
        )
    return content


def _unpickle(content: bytes) -> dict[Any, Any]:
    """What torch.save stored, by the restricted loader."""
    if not content.startswith(b"PK\x03\x04"):
        raise NotACheckpoint(
            "not a zip archive of torch.save (bare pickles are never read); is it the .pt file "
            "itself, and not a web page or a Git LFS pointer?"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if not any(entry.filename.endswith("/data.pkl") for entry in entries):
                raise NotACheckpoint("a zip archive, but not one of torch.save")
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not stored or sum(entry.file_size for entry in entries) > len(content):
                raise NotACheckpoint("a compressed or overlapping archive; torch.save writes none")
            if (damaged := archive.testzip()) is not None:
                raise DamagedCheckpoint(f"damaged: checksum of {damaged!r}; fetch it again")
        loaded = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except ImportRefused:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"{named[1]!r}" if named else "an instruction"
        raise UnsafeCheckpoint(
            f"its pickle asks for {what}, which the restricted loader refuses; a head needs "
            "tensors and plain containers only"
        ) from error
    except Exception as error:  # hostile bytes can make a parser raise anything, MemoryError too
        raise DamagedCheckpoint(
            f"truncated or damaged ({type(error).__name__}); fetch it again"
        ) from error
    if not isinstance(loaded, dict):
        raise UnknownLayout(f"holds a {type(loaded).__name__}, not a dict")
    return loaded


def _tensors_and_config(
    stored: Mapping[Any, Any], max_bytes: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The head's tensors and the training config; tensors are dense and no larger than the file."""
    tensors, config = stored.get("aggregation_network"), stored.get("config")
    if not isinstance(tensors, dict) or not isinstance(config, dict):
        raise UnknownLayout("not a readout head: no 'aggregation_network' and 'config' of dicts")
    size = 0
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise UnknownLayout("aggregation_network has entries that are not named tensors")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UnknownLayout(f"{key!r:.80} is not a plain dense tensor")
        if not tensor.dtype.is_floating_point:
            raise UnknownLayout(f"{key!r:.80} has dtype {tensor.dtype}, not a floating one")
        size += tensor.numel() * tensor.element_size()
    if size > max_bytes:
        raise UnknownLayout("its tensors claim more bytes than the file has")
    return tensors, config


def _network(
    state: Mapping[str, Tensor], config: dict[str, Any], sequential: bool
) -> dict[str, Any]:
    """Arguments of `ReadoutHead`, read off the shapes; the config must not contradict them.

    Absent config keys have the defaults of the authors' AggregationNetwork (REFERENCE 2.3).
    """

    def size(key: str, axis: int) -> int:
        if key not in state or state[key].ndim <= axis or state[key].numel() == 0:
            raise UnknownLayout(f"no tensor {key!r} with {axis + 1} axes")
        return state[key].shape[axis]

    layers = size("mixing_weights", 0)
    if layers not in TAP_COUNTS:
        raise UnknownLayout(
            f"{layers} mixing weights; known are "
            + " and ".join(f"{count} ({model})" for count, model in TAP_COUNTS.items())
        )
    channels = [size(f"bottleneck_layers.{layer}.conv1.weight", 1) for layer in range(layers)]
    projection = size("bottleneck_layers.0.conv3.weight", 0)
    outputs = size("output_head.4.weight", 0) if "output_head.4.weight" in state else None
    options = section(config, "aggregation_kwargs")
    groups = options.get("num_norm_groups", 32)
    if type(groups) is not int or groups < 1 or projection % 4 or projection // 4 % groups:
        raise UnknownLayout(f"num_norm_groups {shown(groups)} does not fit {projection} channels")
    activation = options.get("output_head_act", True) if outputs is not None else True
    if type(activation) is not bool:
        raise UnknownLayout(f"config says output_head_act {shown(activation)}")
    _agree("use_output_head", options.get("use_output_head", False), outputs is not None)
    _agree("bottleneck_sequential", options.get("bottleneck_sequential", True), sequential)
    if outputs is not None:
        _agree("output_head_channels", options.get("output_head_channels", 3), outputs)
    _agree("projection_dim", config.get("projection_dim", projection), projection)
    dims = config.get("dims", channels)
    _agree("number of dims", len(dims) if isinstance(dims, list | tuple) else None, layers)
    for layer in range(layers):
        _agree(f"dims[{layer}]", dims[layer], channels[layer])
    return {
        "feature_channels": channels,
        "projection_channels": projection,
        "num_norm_groups": groups,
        "time_embedding_channels": size("bottleneck_layers.0.emb_layers.weight", 1),
        "output_channels": outputs,
        "output_activation": "tanh" if activation else "none",
    }


def _agree(key: str, stated: object, actual: int) -> None:
    if type(stated) not in (bool, int) or stated != actual:
        raise UnknownLayout(f"config says {key} {shown(stated)}, the tensors say {actual}")


def shown(value: object) -> str:
    """An untrusted config value for a message: numbers and strings, cut; of the rest the type."""
    plain = type(value) in (bool, float, str) or (type(value) is int and abs(value) < 10**9)
    return f"{value!r:.40}" if plain else f"of type {type(value).__name__}"


def _check_keys(state: Mapping[str, Tensor], network: Mapping[str, Any]) -> None:
    """Whether keys and shapes are exactly those of the network."""
    with torch.device("meta"):
        head = ReadoutHead(**network)
    expected = {key: tensor.shape for key, tensor in head.state_dict().items()}
    differences = {
        "missing": [key for key in expected if key not in state],
        "unknown": [key for key in state if key not in expected],
        "misshapen": [
            key for key in expected if key in state and expected[key] != state[key].shape
        ],
    }
    for title, keys in differences.items():
        if keys:
            listed = ", ".join(f"{key:.80}" for key in keys[:3])
            raise UnknownLayout(f"not the tensors of a readout head; {len(keys)} {title}: {listed}")
