from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from demo_model import train
from demo_model.config import RunConfig
from demo_model.devices import choose_device
from demo_model.loop import Loop
from demo_model.parallel import Group
from demo_model.unet import UnetStage

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def prepared(micro: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its autoencoder, text encoder and latents."""
    folder = tmp_path_factory.mktemp("run")
    device, renders = choose_device(micro), train.load_renders(micro)
    train.train_vae(micro, renders, device, folder)
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


def test_a_done_stage_is_not_trained_again(micro: RunConfig, prepared: Path) -> None:
    before = (prepared / "vae.pt").stat().st_mtime_ns
    train.train_vae(micro, train.load_renders(micro), choose_device(micro), prepared)
    assert (prepared / "vae.pt").stat().st_mtime_ns == before


def test_training_the_decoder_on_keeps_the_encoder_and_is_exported(
    micro: RunConfig, prepared: Path, tmp_path: Path
) -> None:
    folder = _copy_of(prepared, tmp_path / "run")
    before = torch.load(folder / "vae.pt")["stage"]["model"]
    train.train_decoder(micro, train.load_renders(micro), choose_device(micro), folder)
    after = torch.load(folder / "decoder.pt")["stage"]["model"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert {name.split(".")[0] for name in changed} == {"decoder", "post_quant_conv"}
    stage = train.build_unet_loop(Group(), micro, folder).stage
    assert isinstance(stage, UnetStage)
    exported = stage.parts.vae.state_dict()
    assert all(torch.equal(exported[name], after[name]) for name in after)
