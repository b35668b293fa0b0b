"""Imports heads from the research authors' checkpoint files: ``.pt`` in, safetensors and YAML out.

What the files are and how they are read safely is in `heads_registry.checkpoints`; here a checked
head gets its name, its kind and its manifest. Errors: `ImportRefused` and its tree, defined there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from heads_registry.checkpoints import (
    MAX_BYTES,
    Checkpoint,
    HeadExists,
    ImportRefused,
    UnknownLayout,
    read_checkpoint,
    shown,
)
from heads_registry.loading import load_head, sha256_of
from heads_registry.manifest import HeadManifest

FAMILIES = {12: "sd15", 9: "sdxl"}
"""Number of taps → the family that is assumed unless another is named."""

VALUE_RANGES = {"pose": (-0.5, 0.5), "edge": (-0.5, 0.5), "depth": (-1.0, 1.0)}
"""The authors' presets per signal, for a config that does not give its control_range."""

_RELATIVE_DATA = {"points_root": "correspondence", "sdedit_root": "appearance"}
_PUBLISHED_PREFIX = re.compile(r"^readout_[a-z0-9]+_(spatial_|drag_)?")


@dataclass(frozen=True)
class ImportedHead:
    """What was found in a checkpoint, and where it lies now.

    Attributes:
        manifest: as it was written and read back.
        manifest_path: its YAML file; the safetensors are beside it.
        checkpoint_sha256: of the ``.pt`` file.
        parameters: how many the head has.
        trained_on: the base model that the training config names, or nothing.
        training_steps: how long it was trained, if the file says so.
        notes: what a user of the head should know.
    """

    manifest: HeadManifest
    manifest_path: Path
    checkpoint_sha256: str
    parameters: int
    trained_on: str
    training_steps: int | None
    notes: tuple[str, ...]


def import_head(
    checkpoint: Path,
    registry: Path,
    *,
    family: str | None = None,
    name: str | None = None,
    kind: str | None = None,
    licence: str = "Apache-2.0",
    overwrite: bool = False,
    max_bytes: int = MAX_BYTES,
) -> ImportedHead:
    """Write ``registry/heads/{family}-{name}.yaml`` and its safetensors from a checkpoint.

    Args:
        checkpoint: a ``.pt`` file of the authors' training code.
        registry: a registry directory (`Catalogue`); made if it is missing.
        family: base-model family; by default guessed from the number of taps, see `FAMILIES`.
        name: of the head; by default its signal, its kind, or what its file name says.
        kind: of a head without output convolutions, where neither config nor file name tell.
        licence: of the weights; the authors' code is under Apache-2.0.
        overwrite: whether a head of that name may be replaced.
        max_bytes: size cap of the checkpoint.

    Raises:
        ImportRefused: see its tree in `heads_registry.checkpoints`; nothing was changed.
    """
    found = read_checkpoint(checkpoint, max_bytes)
    stem = checkpoint.stem.lower()
    kind = kind or _kind(found, stem)
    signal = _signal(found, stem) if kind == "spatial" else "other"
    family = family or FAMILIES[len(found.network["feature_channels"])]
    name = name or _name(stem, kind, signal)
    trained_on = _plain_text(found.config.get("model_id"))
    fields = {
        "name": name,
        "title": f"{name.replace('-', ' ').capitalize()} ({family})",
        "description": _description(found, trained_on),
        "kind": kind,
        "signal": signal,
        "base_model": family,
        "feature_taps": _taps(len(found.network["feature_channels"])),
        **found.network,
        "target_resampling": "bicubic",
        "timestep_convention": "none" if found.sequential else "timestep",
        "licence": licence,
        "source": f"{checkpoint.name}, sha256 {found.sha256}",
    }
    if kind == "spatial":
        fields["value_range"] = _value_range(found, signal)
    try:
        manifest = _write(registry / "heads", fields, found.state, overwrite)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ImportRefused(f"{checkpoint.name}: {where}: {first['msg']}") from error
    except OSError as error:
        raise ImportRefused(f"{registry}: cannot be written: {error.strerror}") from error
    return ImportedHead(
        manifest=manifest,
        manifest_path=manifest.weights_path.with_suffix(".yaml"),
        checkpoint_sha256=found.sha256,
        parameters=sum(tensor.numel() for tensor in found.state.values()),
        trained_on=trained_on,
        training_steps=found.training_steps,
        notes=_notes(found, kind),
    )


def _taps(count: int) -> list[str]:
    """Module paths of the decoder resnets' second convolutions, in execution order."""
    return [f"up_blocks.{tap // 3}.resnets.{tap % 3}.conv2" for tap in range(count)]


def _kind(found: Checkpoint, stem: str) -> str:
    """Spatial heads have output convolutions; the others are told apart by what trained them."""
    if found.network["output_channels"] is not None:
        return "spatial"
    data = found.section("dataset_args")
    for key, kind in _RELATIVE_DATA.items():
        if key in data:
            return kind
    for kind in ("correspondence", "appearance", "identity"):
        if kind in stem:
            return kind
    raise UnknownLayout(
        f"{stem}: a head without output convolutions, but neither its config nor its file name "
        "says whether for correspondence, appearance or identity; name the kind"
    )


def _signal(found: Checkpoint, stem: str) -> str:
    """What a spatial head shows: control_type, else the file name; one of ours has 3 channels."""
    if found.network["output_channels"] != 3:
        return "other"
    stated = found.section("dataset_args").get("control_type")
    if isinstance(stated, str):
        return stated if stated in VALUE_RANGES else "other"
    return next((signal for signal in VALUE_RANGES if signal in stem), "other")


def _name(stem: str, kind: str, signal: str) -> str:
    """A head's name unless one is given: ``pose``, ``appearance``, or the file's, cleaned."""
    if kind != "spatial":
        return kind
    if signal != "other":
        return signal
    bare = re.sub(r"[^a-z0-9]+", "-", _PUBLISHED_PREFIX.sub("", stem)).strip("-")
    return bare[:64].strip("-") or "spatial"


def _value_range(found: Checkpoint, signal: str) -> list[float]:
    """The control_range of the config, else the authors' preset of the signal."""
    stated = found.section("dataset_args").get("control_range")
    if stated is None:
        return list(VALUE_RANGES.get(signal, (-1.0, 1.0)))
    ends = list(stated) if isinstance(stated, list | tuple) else []
    numbers = all(type(end) in (int, float) and -1e6 < end < 1e6 for end in ends)
    if len(ends) != 2 or not numbers or ends[0] >= ends[1]:
        raise UnknownLayout(
            "dataset_args.control_range is not (low, high): " + ", ".join(map(shown, ends[:4]))
        )
    return [float(end) for end in ends]


def _description(found: Checkpoint, trained_on: str) -> str:
    steps = "" if found.training_steps is None else f" in {found.training_steps} steps"
    return (
        f"Imported from a checkpoint of the authors' training code: trained{steps} on "
        f"{trained_on or 'an unnamed base model'}."
    )


def _notes(found: Checkpoint, kind: str) -> tuple[str, ...]:
    notes = []
    if found.sequential:
        notes.append("its bottlenecks never saw the time embedding (bottleneck_sequential)")
    if found.config.get("eval_mode") is True:
        notes.append("trained on clean pictures only (eval_mode): made for reading, not guiding")
    if kind == "spatial" and found.network["output_channels"] != 3:
        notes.append(f"{found.network['output_channels']} channels: no control image fits it")
    if kind == "spatial" and "control_range" not in found.section("dataset_args"):
        notes.append("the config has no control_range; the authors' preset was assumed")
    return tuple(notes)


def _plain_text(value: object) -> str:
    """A short printable string from an untrusted config, or nothing."""
    return value if isinstance(value, str) and value.isprintable() and len(value) <= 200 else ""


def _write(
    directory: Path, fields: dict[str, Any], state: dict[str, Tensor], overwrite: bool
) -> HeadManifest:
    """Weights and manifest, complete or not at all: staged, loaded once, then moved into place.

    Raises:
        ValidationError: the fields are not those of a manifest.
        HeadExists: there is such a head, and it may not be replaced.
    """
    HeadManifest.model_validate(fields | {"weights": "pending", "sha256": "0" * 64})
    stem = f"{fields['base_model']}-{fields['name']}"
    target = directory / f"{stem}.yaml"
    if target.exists() and not overwrite:
        raise HeadExists(f"{target} exists; import under another name, or overwrite it")
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory, prefix=".import-") as staging:
        weights = Path(staging) / f"{stem}.safetensors"
        save_file(state, weights)
        weights.chmod(0o644)
        staged = weights.with_suffix(".yaml")
        manifest = fields | {"weights": weights.name, "sha256": sha256_of(weights)}
        staged.write_text(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True))
        load_head(HeadManifest.load(staged))
        weights.replace(directory / weights.name)
        staged.replace(target)
    return HeadManifest.load(target)
