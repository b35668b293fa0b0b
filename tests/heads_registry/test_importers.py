from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from heads_registry.catalogue import Catalogue
from heads_registry.checkpoints import HeadExists, ImportRefused, UnknownLayout
from heads_registry.importers import import_head
from heads_registry.loading import load_head
from heads_registry.manifest import HeadManifest
from tests.heads_registry.samples import CHANNELS, contents


def test_a_spatial_head_becomes_a_manifest_and_safetensors(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    stored = contents()
    found = import_head(saved(stored), tmp_path / "registry")
    (manifest,) = Catalogue([tmp_path / "registry"]).heads
    assert manifest == found.manifest
    assert manifest.id == "sd15/pose"
    assert (manifest.kind, manifest.signal) == ("spatial", "pose")
    assert (manifest.output_channels, manifest.output_activation) == (3, "tanh")
    assert manifest.value_range == (-0.5, 0.5)
    assert (manifest.timestep_convention, manifest.target_resampling) == ("timestep", "bicubic")
    assert manifest.feature_channels == tuple(CHANNELS[12])
    assert manifest.feature_taps[-1] == "up_blocks.3.resnets.2.conv2"
    assert (manifest.projection_channels, manifest.num_norm_groups) == (8, 2)
    assert manifest.time_embedding_channels == 12
    assert manifest.licence == "Apache-2.0"
    assert found.checkpoint_sha256 in manifest.source
    assert (
        found.manifest_path == HeadManifest.load(found.manifest_path).directory / "sd15-pose.yaml"
    )
    assert (found.training_steps, found.notes) == (5000, ())
    assert found.trained_on == "runwayml/stable-diffusion-v1-5"
    head = load_head(manifest)
    assert found.parameters == sum(parameter.numel() for parameter in head.parameters())
    for key, tensor in head.state_dict().items():
        assert torch.equal(tensor, stored["aggregation_network"][key])
    assert sorted(path.name for path in manifest.directory.iterdir()) == [
        "sd15-pose.safetensors",
        "sd15-pose.yaml",
    ], "nothing is left of the staging"


@pytest.mark.parametrize(
    ("data", "file_name", "kind"),
    [
        ({"points_root": "x"}, "head.pt", "correspondence"),
        ({"sdedit_root": "x"}, "head.pt", "appearance"),
        ({}, "readout_sdxl_drag_appearance.pt", "appearance"),
    ],
)
def test_relative_heads_are_told_apart_by_config_then_file_name(
    saved: Callable[..., Path], tmp_path: Path, data: dict, file_name: str, kind: str
) -> None:
    path = saved(contents(None, taps=9, data=data), file_name)
    manifest = import_head(path, tmp_path / "registry").manifest
    assert (manifest.id, manifest.kind, manifest.output_channels) == (f"sdxl/{kind}", kind, None)
    assert manifest.feature_taps[-1] == "up_blocks.2.resnets.2.conv2"


def test_a_relative_head_of_unknown_kind_asks_for_it(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    path = saved(contents(None), "head.pt")
    with pytest.raises(UnknownLayout, match="name the kind"):
        import_head(path, tmp_path / "registry")
    found = import_head(path, tmp_path / "registry", kind="identity", family="mine", name="who")
    assert (found.manifest.id, found.manifest.kind) == ("mine/who", "identity")


def test_sequential_bottlenecks_are_renamed_and_read_no_time_embedding(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    stored = contents(None, data={"sdedit_root": "x"})
    del stored["config"]["aggregation_kwargs"]["bottleneck_sequential"]  # True by default
    stored["aggregation_network"] = {
        ".".join([*key.split(".")[:2], "0", *key.split(".")[2:]]) if "bottleneck" in key else key: t
        for key, t in stored["aggregation_network"].items()
    }
    found = import_head(saved(stored), tmp_path / "registry")
    assert found.manifest.timestep_convention == "none"
    assert "time embedding" in found.notes[0]


@pytest.mark.parametrize(
    ("data", "file_name", "expected"),
    [
        ({}, "readout_sdxl_spatial_edge.pt", ("edge", "edge", (-0.5, 0.5))),
        ({"control_type": "depth"}, "head.pt", ("depth", "depth", (-1.0, 1.0))),
        ({"control_type": "normals"}, "My head!.pt", ("my-head", "other", (-1.0, 1.0))),
        ({"control_range": [0, 1]}, "head_depth.pt", ("depth", "depth", (0.0, 1.0))),
    ],
)
def test_signal_and_range_come_from_the_config_else_from_name_and_preset(
    saved: Callable[..., Path], tmp_path: Path, data: dict, file_name: str, expected: tuple
) -> None:
    manifest = import_head(saved(contents(data=data), file_name), tmp_path / "registry").manifest
    assert (manifest.name, manifest.signal, manifest.value_range) == expected


def test_a_keypoint_head_keeps_its_channels_and_is_no_pose_control(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    stored = contents(18, data={}, output_head_act=False)
    stored["config"]["eval_mode"] = True
    found = import_head(saved(stored, "readout_sdv15_pose_keypoint.pt"), tmp_path / "registry")
    assert (found.manifest.name, found.manifest.signal) == ("pose-keypoint", "other")
    assert (found.manifest.output_channels, found.manifest.output_activation) == (18, "none")
    assert any("eval_mode" in note for note in found.notes)


def test_a_head_is_replaced_only_when_asked(saved: Callable[..., Path], tmp_path: Path) -> None:
    first = import_head(saved(contents()), tmp_path / "registry")
    with pytest.raises(HeadExists, match="another name"):
        import_head(saved(contents()), tmp_path / "registry")
    changed = contents() | {"step": 7}
    again = import_head(saved(changed), tmp_path / "registry", overwrite=True)
    assert again.training_steps == 7
    assert again.manifest_path == first.manifest_path


@pytest.mark.parametrize(
    "arguments",
    [{"name": "../../escape"}, {"family": "a/b"}, {"kind": "appearance"}, {"kind": "mood"}],
)
def test_arguments_that_make_no_manifest_are_refused_before_anything_is_written(
    saved: Callable[..., Path], tmp_path: Path, arguments: dict[str, str]
) -> None:
    with pytest.raises(ImportRefused, match=r"head\.pt"):
        import_head(saved(contents(), "head.pt"), tmp_path / "registry", **arguments)
    assert not (tmp_path / "registry").exists()


def test_tensors_that_share_memory_and_half_precision_are_copied(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    stored = contents()
    weights = torch.randn(2, dtype=torch.float16)
    for part in ("weight", "bias"):
        stored["aggregation_network"][f"bottleneck_layers.0.conv1.norm.{part}"] = weights
    head = load_head(import_head(saved(stored), tmp_path / "registry").manifest)
    layer = head.bottleneck_layers[0].conv1.norm
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight, weights.float())
    assert torch.equal(layer.bias, weights.float())
