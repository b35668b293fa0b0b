from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from pydantic import ValidationError

from demo_model.compile_ahead import double_by_copies
from demo_model.config import PlanConfig, RunConfig, load_config
from demo_model.data import EpochOrder, images_as_bytes, images_as_tensor
from demo_model.heads import head_weights
from demo_model.networks import build_scheduler, build_unet, load_start
from demo_model.schedule import learning_rate, progress
from demo_model.tokenizer import build_tokenizer, save_tokenizer
from demo_model.unet import Average, min_snr_weights
from demo_model.vae import build_vae
from world.captions import VOCABULARY, tokens

pytestmark = pytest.mark.torch
CONFIGS = Path(__file__).parents[2] / "demo_model" / "configs"


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = build_tokenizer(VOCABULARY, 32)
    for word in VOCABULARY:
        assert tokenizer.tokenize(word) == [word + "</w>"]
    caption = "A person in a Red shirt and blue trousers, arms raised"
    assert tokenizer.tokenize(caption) == [word.lower() + "</w>" for word in tokens(caption)]


@pytest.mark.parametrize(
    "text", ["", "日本 ☃ \x00", "🎉" * 100, "qwxyz 'tis <|endoftext|>", "\ud7ff"]
)
def test_any_text_has_tokens(text: str) -> None:
    tokenizer = build_tokenizer(VOCABULARY, 32)
    ids = tokenizer(text, padding="max_length", truncation=True)["input_ids"]
    assert len(ids) == 32
    assert all(0 <= token < len(tokenizer) for token in ids)


def test_a_saved_tokenizer_reads_back_with_and_without_its_fast_file(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(VOCABULARY, 32)
    tokenizer(["used", "before it is saved"], padding="max_length", truncation=True)
    save_tokenizer(tokenizer, VOCABULARY, tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["padding"] is saved["truncation"] is None
    text = "a person in a purple shirt, ünïcode"
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.model_max_length == 32
    (tmp_path / "tokenizer.json").unlink()
    assert type(tokenizer).from_pretrained(tmp_path)(text)["input_ids"] == again(text)["input_ids"]


@pytest.mark.parametrize("name", ["mannequin-64.yaml", "mannequin-128.yaml"])
def test_configurations_build_twelve_decoder_resnets(name: str) -> None:
    config = load_config(CONFIGS / name)
    with torch.device("meta"):
        unet = build_unet(config)
    assert sum(len(block.resnets) for block in unet.up_blocks) == 12


def test_a_start_with_fewer_latent_channels_goes_on_as_it_was(micro: RunConfig) -> None:
    wider = micro.vae.model_copy(update={"latent_channels": 8})
    narrow, wide = build_unet(micro), build_unet(micro.model_copy(update={"vae": wider}))
    for parameter in narrow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    load_start(wide, narrow.state_dict())
    latents, context = torch.randn(1, 4, 8, 8), torch.randn(1, 4, micro.text.width)
    with torch.no_grad():
        before = narrow(latents, 500, context).sample
        after = wide(F.pad(latents, (0, 0, 0, 0, 0, 4)), 500, context).sample
    torch.testing.assert_close(after[:, :4], before, rtol=1e-4, atol=1e-4)


def test_moments_of_a_wider_autoencoder_begin_with_those_of_its_start(micro: RunConfig) -> None:
    wider = micro.vae.model_copy(update={"latent_channels": 8})
    narrow, wide = build_vae(micro), build_vae(micro.model_copy(update={"vae": wider}))
    load_start(wide, narrow.state_dict())
    means, variances = wide.encoder.conv_out.weight.chunk(2)
    assert means[:4].equal(narrow.encoder.conv_out.weight[:4])
    assert variances[:4].equal(narrow.encoder.conv_out.weight[4:])


def test_unknown_fields_are_refused(micro: RunConfig) -> None:
    with pytest.raises(ValidationError):
        RunConfig.model_validate({**micro.model_dump(), "learning_rat": 1})


def test_the_schedule_ends_by_samples_or_by_the_clock() -> None:
    plan = PlanConfig(samples=1000, minutes=2, batch_size=1, learning_rate=1.0, warmup=0.1)
    assert progress(plan, 500, 0) == 0.5
    assert progress(plan, 500, 90) == 0.75
    assert progress(plan, 0, 1000) == 1.0
    assert learning_rate(plan, 0.05) == pytest.approx(0.5)
    assert learning_rate(plan, 0.1) == pytest.approx(1.0)
    assert learning_rate(plan, 1.0) == pytest.approx(0.01)


def test_every_epoch_shows_every_item_once() -> None:
    order = EpochOrder(10, seed=3)
    first, second = order.batch(0, 10), order.batch(10, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert EpochOrder(10, seed=3).batch(5, 10).tolist() == [*first[5:], *second[:5]]


def test_images_survive_the_round_trip() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    assert (images_as_bytes(images_as_tensor(images)) == images).all()


def test_the_schedule_is_stable_diffusions() -> None:
    scheduler = build_scheduler()
    assert scheduler.alphas_cumprod[-1].item() == pytest.approx(0.0047, abs=1e-4)
    weights = min_snr_weights(scheduler.alphas_cumprod, 5.0)
    assert weights[-1] == 1.0
    assert weights[0] < 0.01


def test_the_average_warms_up_and_swaps() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    average = Average([parameter], limit=0.999)
    with torch.no_grad():
        parameter.fill_(11.0)
    average.update()
    assert average.values[0].item() == pytest.approx(9.0)  # decay (1 + 1) / (10 + 1)
    average.swap()
    assert parameter.item() == pytest.approx(9.0)
    average.swap()
    assert parameter.item() == 11.0


def test_heads_count_more_and_images_the_same() -> None:
    keypoints = np.zeros((2, 2, 18, 3), np.float32)
    keypoints[0, 0, 1] = (20, 40, 2)  # neck
    keypoints[0, 0, 16], keypoints[0, 0, 17] = (17, 30, 2), (23, 30, 2)  # ears
    weights = head_weights(keypoints, 64, extra=8.0)
    assert weights.shape == (2, 1, 64, 64)
    assert weights[0, 0, 30, 20] / weights[0, 0, 60, 60] == pytest.approx(9.0)
    assert weights.mean(dim=(1, 2, 3)).tolist() == pytest.approx([1.0, 1.0], rel=1e-4)
    assert (weights[1] == 1.0).all()


def test_doubling_by_copies_is_what_diffusers_does() -> None:
    upsampler = Upsample2D(8, use_conv=True)
    hidden = torch.randn(2, 8, 4, 4, requires_grad=True)
    expected = upsampler(hidden)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), hidden)
    double_by_copies(upsampler)
    doubled = upsampler(hidden)
    (gradient,) = torch.autograd.grad(doubled.square().sum(), hidden)
    assert torch.equal(doubled, expected)
    assert torch.allclose(gradient, expected_gradient)
