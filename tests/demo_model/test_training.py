from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from demo_model import train
from demo_model.config import RunConfig
from demo_model.devices import choose_device
from demo_model.export import install_pipeline
from demo_model.loop import Loop
from demo_model.parallel import Group
from demo_model.unet import UnetStage

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def prepared(micro: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its autoencoder, text encoder and latents."""
    folder = tmp_path_factory.mktemp("run")
    device, renders = choose_device(micro), train.load_renders(micro)
    train.train_vae(micro, folder)
    train.train_text(micro, renders, device, folder)
    train.cache_latents(micro, renders, device, folder)
    return folder


def _copy_of(prepared: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("vae.pt", "text.pt", "latents.npy", "captions.npy"):
        (folder / name).symlink_to(prepared / name)
    return folder


def _weights(loop: Loop) -> torch.Tensor:
    stage = loop.stage
    assert isinstance(stage, UnetStage)
    return torch.cat([p.detach().flatten() for p in stage.gradients.parameters])


def test_a_resumed_run_equals_an_uninterrupted_one(
    micro: RunConfig, prepared: Path, tmp_path: Path
) -> None:
    whole = train.build_unet_loop(Group(), micro, _copy_of(prepared, tmp_path / "whole"))
    whole.run(max_steps=3)
    halves = _copy_of(prepared, tmp_path / "halves")
    train.build_unet_loop(Group(), micro, halves).run(max_steps=2)
    resumed = train.build_unet_loop(Group(), micro, halves)
    assert resumed.step == 2
    resumed.run(max_steps=1)
    assert torch.equal(_weights(whole), _weights(resumed))
    for left, right in zip(
        whole.stage.state_dict()["average"], resumed.stage.state_dict()["average"], strict=True
    ):
        assert torch.equal(left, right)


def test_faces_are_seen_beside_the_scenes_and_without_captions(
    micro: RunConfig, prepared: Path, tmp_path: Path
) -> None:
    faces = micro.data.model_copy(update={"faces": tmp_path / "faces", "faces_count": 4})
    config, folder = micro.model_copy(update={"data": faces}), _copy_of(prepared, tmp_path / "run")
    train.cache_latents(config, train.load_renders(config), choose_device(config), folder)
    loop = train.build_unet_loop(Group(), config, folder)
    stage = loop.stage
    assert isinstance(stage, UnetStage)
    scenes = micro.data.latent_count
    assert len(stage.latents) == len(stage.captions) == len(stage.head_weights) == scenes + 4
    assert (stage.captions[scenes:] == stage.empty).all()
    assert not (stage.captions[:scenes] == stage.empty).all()
    loop.run(max_steps=1)
    assert loop.step == 1


def test_the_export_loads_and_generates(micro: RunConfig, prepared: Path, tmp_path: Path) -> None:
    folder = _copy_of(prepared, tmp_path / "run")
    loop = train.build_unet_loop(Group(), micro, folder)
    assert loop.run()
    assert list((folder / "sheets").glob("unet-*.png"))
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "export")
    pipeline.set_progress_bar_config(disable=True)
    prompt = ["a person in a red shirt", "日本 ☃ <b> " * 4, ""]
    images = pipeline(prompt, num_inference_steps=2, output_type="np").images
    assert images.shape == (3, 32, 32, 3)
    assert pipeline.vae_scale_factor == 4
    assert pipeline.scheduler.config.clip_sample is False
    sizes = [path.stat().st_size for path in (folder / "export").rglob("*") if path.is_file()]
    assert max(sizes) <= 16 * 2**20
    assert sum(len(block.resnets) for block in pipeline.unet.up_blocks) == 12


def test_an_export_is_installed_with_its_hashes(
    micro: RunConfig, prepared: Path, tmp_path: Path
) -> None:
    folder = _copy_of(prepared, tmp_path / "run")
    train.export_now(micro, folder)
    name = "vae/diffusion_pytorch_model.safetensors"
    manifest = tmp_path / "micro.yaml"
    manifest.write_text(f"name: micro  # kept\nsha256:\n  {name}: {'0' * 64}\n")
    (tmp_path / "micro").mkdir()
    (tmp_path / "micro" / "of-old-weights").touch()
    install_pipeline(folder / "export", manifest)
    digest = hashlib.sha256((tmp_path / "micro" / name).read_bytes()).hexdigest()
    assert manifest.read_text() == f"name: micro  # kept\nsha256:\n  {name}: {digest}\n"
    assert not (tmp_path / "micro" / "of-old-weights").exists()


def test_a_done_stage_is_not_trained_again(micro: RunConfig, prepared: Path) -> None:
    before = (prepared / "vae.pt").stat().st_mtime_ns
    train.train_vae(micro, prepared)
    assert (prepared / "vae.pt").stat().st_mtime_ns == before


def test_a_run_goes_on_from_exported_networks(
    micro: RunConfig, prepared: Path, tmp_path: Path
) -> None:
    folder = _copy_of(prepared, tmp_path / "first")
    train.export_now(micro, folder)
    config = micro.model_copy(update={"start": folder / "export"})
    onward = tmp_path / "onward"
    onward.mkdir()
    train.train_text(config, train.load_renders(config), choose_device(config), onward)
    train.train_vae(config, onward)
    train.cache_latents(config, train.load_renders(config), choose_device(config), onward)
    stage = train.build_unet_loop(Group(), config, onward).stage
    assert isinstance(stage, UnetStage)
    exported = StableDiffusionPipeline.from_pretrained(folder / "export")
    for name in ("unet", "text_encoder"):
        before, after = getattr(exported, name).state_dict(), getattr(stage.parts, name)
        assert all(torch.equal(before[key], value) for key, value in after.state_dict().items())
    trained = torch.load(onward / "vae.pt")["stage"]["model"]
    distance = sum(
        (trained[key] - value).norm() for key, value in exported.vae.state_dict().items()
    )
    assert 0 < distance < 1.0
