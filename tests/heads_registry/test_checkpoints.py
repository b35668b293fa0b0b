from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from heads_registry.checkpoints import (
    CheckpointTooLarge,
    DamagedCheckpoint,
    ImportRefused,
    NonFiniteWeights,
    NotACheckpoint,
    UnknownLayout,
    UnsafeCheckpoint,
)
from heads_registry.importers import import_head
from heads_registry.manifest import RegistryError
from tests.heads_registry.samples import contents


def legacy_pickle(path: Path) -> None:
    torch.save(contents(), path, _use_new_zipfile_serialization=False)


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)


def web_page(path: Path) -> None:
    path.write_text("<!doctype html>")


def truncated(path: Path) -> None:
    torch.save(contents(), path)
    path.write_bytes(path.read_bytes()[:-300])


def altered(path: Path) -> None:
    torch.save(contents(), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch pwned",)


def executable(path: Path) -> None:
    torch.save(contents() | {"step": Evil()}, path)


def foreign_object(path: Path) -> None:
    torch.save(contents() | {"config": Path("x")}, path)


def garbage_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"garbage")
        archive.writestr("archive/version", "3\n")


def large(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + b"\0" * (2**21))


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (web_page, NotACheckpoint, "not a zip archive"),
        (legacy_pickle, NotACheckpoint, "never read"),
        (other_zip, NotACheckpoint, "not one of torch.save"),
        (compressed, NotACheckpoint, "compressed"),
        (truncated, DamagedCheckpoint, "truncated or damaged"),
        (altered, DamagedCheckpoint, "fetch it again"),
        (executable, UnsafeCheckpoint, "system'"),
        (foreign_object, UnsafeCheckpoint, "pathlib.PosixPath"),
        (garbage_pickle, UnsafeCheckpoint, "restricted loader refuses"),
        (large, CheckpointTooLarge, "1,048,576 bytes"),
        (lambda path: None, ImportRefused, "No such file"),
    ],
)
def test_files_that_are_no_checkpoints_are_refused(
    write: Callable[[Path], None],
    error: type[RegistryError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "head.pt"
    write(path)
    with pytest.raises(error, match=message) as caught:
        import_head(path, tmp_path / "registry", max_bytes=2**20)
    assert type(caught.value) is error
    assert "head.pt" in str(caught.value)
    assert "weights_only" not in str(caught.value), "torch's advice to trust the file stays away"
    assert not (tmp_path / "registry").exists()
    assert not (tmp_path / "pwned").exists()


def without(key: str) -> Callable[[dict], object]:
    return lambda stored: stored["aggregation_network"].pop(key)


def tensor(key: str, value: object) -> Callable[[dict], object]:
    return lambda stored: stored["aggregation_network"].update({key: value})


def config(**values: object) -> Callable[[dict], object]:
    return lambda stored: stored["config"].update(values)


def options(**values: object) -> Callable[[dict], object]:
    return lambda stored: stored["config"]["aggregation_kwargs"].update(values)


def bomb() -> list:
    value: list = [0]
    for _ in range(60):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: stored.pop("config"), "not a readout head"),
        (lambda stored: stored.update(aggregation_network=[]), "not a readout head"),
        (without("mixing_weights"), "mixing_weights"),
        (without("bottleneck_layers.3.conv2.norm.bias"), "1 missing"),
        (without("output_head.0.bias"), "1 missing"),
        (tensor("surprise", torch.zeros(1)), "1 unknown: surprise"),
        (tensor("bottleneck_layers.2.conv2.weight", torch.zeros(2, 2, 1, 1)), "1 misshapen"),
        (tensor("mixing_weights", torch.zeros(24)), "24 mixing weights"),
        (tensor("mixing_weights", torch.zeros(12, dtype=torch.int64)), "int64"),
        (tensor("mixing_weights", torch.eye(12).to_sparse()), "dense"),
        (tensor("mixing_weights", torch.zeros(12, device="meta")), "dense"),
        (tensor("mixing_weights", "text"), "named tensors"),
        (tensor("big", torch.zeros(1).expand(2**30)), "more bytes than the file"),
        (tensor("bottleneck_layers.0.emb_layers.weight", torch.zeros(2, 0)), "emb_layers"),
        (options(num_norm_groups=32), "num_norm_groups 32"),
        (options(num_norm_groups=bomb()), "of type list"),
        (options(use_output_head=False), "use_output_head False"),
        (options(bottleneck_sequential=True), "bottleneck_sequential True"),
        (options(output_head_channels=4), "output_head_channels 4"),
        (options(output_head_act="yes"), "output_head_act 'yes'"),
        (config(projection_dim=384), "projection_dim 384"),
        (config(projection_dim=torch.ones(2)), "of type Tensor"),
        (config(projection_dim=10**40), "of type int"),
        (config(dims=[8] * 12), r"dims\[6\] 8"),
        (config(dims=bomb()), "number of dims"),
        (config(dataset_args={"control_range": (1, 0)}), "control_range"),
        (config(dataset_args={"control_range": (float("nan"), 10**40)}), "control_range"),
    ],
)
def test_other_layouts_are_refused(
    saved: Callable[..., Path], tmp_path: Path, change: Callable[[dict], object], message: str
) -> None:
    stored = contents()
    change(stored)
    with pytest.raises(UnknownLayout, match=message):
        import_head(saved(stored), tmp_path / "registry")
    assert not (tmp_path / "registry").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused(
    saved: Callable[..., Path], tmp_path: Path, value: float
) -> None:
    stored = contents()
    stored["aggregation_network"]["mixing_weights"] = torch.full((12,), value, dtype=torch.float64)
    with pytest.raises(NonFiniteWeights, match="mixing_weights"):
        import_head(saved(stored), tmp_path / "registry")
