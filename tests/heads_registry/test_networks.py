from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import nn

from heads_registry.features import capture_features, decoder_taps
from heads_registry.networks import NormalizedConv2d, ReadoutHead

SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def head_for(unet: nn.Module, output_channels: int | None) -> ReadoutHead:
    return ReadoutHead(
        feature_channels=tuple(decoder_taps(unet).values()),
        projection_channels=384,
        time_embedding_channels=unet.time_embedding.linear_2.out_features,
        output_channels=output_channels,
    )


@pytest.mark.parametrize(
    ("config", "taps", "spatial", "relative"),
    [(SD15, 12, 8_484_751, 8_005_260), (SDXL, 9, 5_907_436, 5_427_945)],
    ids=["sd15", "sdxl"],
)
def test_full_size_heads_have_the_papers_parameter_counts(
    config: dict, taps: int, spatial: int, relative: int
) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        for output_channels, expected in ((3, spatial), (None, relative)):
            head = head_for(unet, output_channels)
            assert sum(parameter.numel() for parameter in head.parameters()) == expected
    assert len(decoder_taps(unet)) == taps


def test_convolving_before_upsampling_is_exact() -> None:
    torch.manual_seed(0)
    layer = NormalizedConv2d(24, 16, 1, num_norm_groups=4).double()
    feature = torch.randn(2, 24, 5, 7, dtype=torch.float64)
    upsampled = F.interpolate(feature, size=(20, 28), mode="bilinear", align_corners=False)
    torch.testing.assert_close(layer(feature, (20, 28)), layer(upsampled), rtol=0, atol=1e-12)


def test_head_is_conditioned_on_the_timestep_and_scales_its_output() -> None:
    torch.manual_seed(0)
    head = ReadoutHead((8, 4), 16, 12, 4, output_channels=3, output_scale=2)
    features = [torch.randn(2, 8, 4, 4), torch.randn(2, 4, 8, 8)]
    first = head(features, torch.zeros(2, 12), (8, 8))
    second = head(features, torch.ones(2, 12), (8, 8))
    assert first.shape == (2, 3, 16, 16)
    assert first.abs().max() <= 1
    assert not torch.equal(first, second)


def test_items_of_a_batch_do_not_touch_each_other() -> None:
    torch.manual_seed(0)
    head = ReadoutHead((8, 4), 16, 12, 4).double()
    features = [
        torch.randn(3, 8, 4, 4, dtype=torch.float64),
        torch.randn(3, 4, 8, 8, dtype=torch.float64),
    ]
    embedding = torch.randn(3, 12, dtype=torch.float64)
    together = head(features, embedding, (8, 8))
    alone = head([feature[1:2] for feature in features], embedding[1:2], (8, 8))
    torch.testing.assert_close(together[1:2], alone)


def test_features_are_the_second_convolutions_and_hooks_do_not_stay() -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    taps = decoder_taps(unet)
    assert list(taps) == [
        f"up_blocks.{block}.resnets.{resnet}.conv2" for block in (0, 1) for resnet in (0, 1, 2)
    ]
    latents = torch.randn(1, 4, 8, 8, requires_grad=True)
    with capture_features(unet, tuple(taps)) as features:
        unet(latents, 3, torch.randn(1, 2, 8))
    assert [tuple(feature.shape) for feature in features] == [(1, 8, 4, 4)] * 3 + [(1, 8, 8, 8)] * 3
    assert features[0].requires_grad
    modules = [unet, *unet.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
