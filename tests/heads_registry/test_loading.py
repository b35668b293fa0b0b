from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from heads_registry.base_model import BaseModel, ModelLoadError
from heads_registry.catalogue import Catalogue
from heads_registry.loading import HashMismatch, HeadMismatch, check_fit, load_head, sha256_of


def rewrite(registry: Path, name: str, **changes: object) -> None:
    path = registry / "heads" / f"tiny-{name}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_head_loads_frozen_and_fits(tiny_registry_copy: Path) -> None:
    catalogue = Catalogue([tiny_registry_copy])
    model = BaseModel.load(catalogue.model("tiny"))
    manifest = catalogue.head(catalogue.model("tiny"), "pose")
    head = load_head(manifest)
    check_fit(manifest, model.unet)
    assert not head.training
    assert not any(parameter.requires_grad for parameter in head.parameters())
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


def test_altered_weights_are_refused(tiny_registry_copy: Path) -> None:
    catalogue = Catalogue([tiny_registry_copy])
    manifest = catalogue.head(catalogue.model("tiny"), "pose")
    manifest.weights_path.write_bytes(manifest.weights_path.read_bytes() + b"x")
    with pytest.raises(HashMismatch, match="the manifest says"):
        load_head(manifest)


def test_weights_that_are_not_safetensors_are_refused(tiny_registry_copy: Path) -> None:
    weights = tiny_registry_copy / "heads" / "tiny-pose.safetensors"
    torch.save({"a": torch.zeros(1)}, weights)
    rewrite(tiny_registry_copy, "pose", sha256=sha256_of(weights))
    catalogue = Catalogue([tiny_registry_copy])
    with pytest.raises(HeadMismatch, match="not safetensors"):
        load_head(catalogue.head(catalogue.model("tiny"), "pose"))


def test_weights_of_another_shape_are_refused(tiny_registry_copy: Path) -> None:
    weights = tiny_registry_copy / "heads" / "tiny-pose.safetensors"
    state = load_file(weights)
    del state["mixing_weights"]
    save_file(state, weights)
    rewrite(tiny_registry_copy, "pose", sha256=sha256_of(weights))
    catalogue = Catalogue([tiny_registry_copy])
    with pytest.raises(HeadMismatch, match="mixing_weights"):
        load_head(catalogue.head(catalogue.model("tiny"), "pose"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_taps": ["up_blocks.9.conv"], "feature_channels": [8]}, "no module"),
        ({"feature_taps": ["conv_in"], "feature_channels": [640]}, "8 channels"),
        ({"time_embedding_channels": 1280}, "time embedding"),
    ],
)
def test_heads_that_do_not_fit_the_unet_are_refused(
    tiny_registry_copy: Path, changes: dict, message: str
) -> None:
    rewrite(tiny_registry_copy, "pose", **changes)
    catalogue = Catalogue([tiny_registry_copy])
    model = BaseModel.load(catalogue.model("tiny"))
    with pytest.raises(HeadMismatch, match=message):
        check_fit(catalogue.head(catalogue.model("tiny"), "pose"), model.unet)


def test_a_model_that_is_not_there_says_where_it_looked(tiny_registry_copy: Path) -> None:
    path = tiny_registry_copy / "models" / "tiny.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"source": "./missing"}))
    with pytest.raises(ModelLoadError, match="missing"):
        BaseModel.load(Catalogue([tiny_registry_copy]).model("tiny"))


def test_round_trip_through_the_vae_keeps_the_size(tiny_registry_copy: Path) -> None:
    model = BaseModel.load(Catalogue([tiny_registry_copy]).model("tiny"))
    pixels = torch.rand(2, 3, 32, 64) * 2 - 1
    latents = model.encode(pixels)
    assert latents.shape == (2, *model.latent_shape(32, 64))
    assert model.decode(latents).shape == pixels.shape
