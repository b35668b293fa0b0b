"""Builds the text encoder, the U-Net and the scheduler; knows configurations, but no training."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo_model.config import RunConfig

#: SD1.5's schedule.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}


def build_scheduler() -> DDIMScheduler:
    """DDIM on SD1.5's schedule; any other scheduler of diffusers reads the same configuration."""
    return DDIMScheduler(**SCHEDULE)


def build_text_encoder(config: RunConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A new CLIPTextModel."""
    text = config.text
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=text.width,
            intermediate_size=4 * text.width,
            projection_dim=text.width,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            max_position_embeddings=text.max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(config: RunConfig) -> UNet2DConditionModel:
    """A new U-Net of SD1.5's topology; residual branches and the output begin at zero.

    The plain attention processor trains faster on CPU than the fused; the weights are the same.
    """
    unet = config.unet
    down = ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in unet.attention]
    up = ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(unet.attention)]
    model = UNet2DConditionModel(
        sample_size=config.latent_size,
        in_channels=config.vae.latent_channels,
        out_channels=config.vae.latent_channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=unet.channels,
        layers_per_block=unet.layers_per_block,
        cross_attention_dim=config.text.width,
        attention_head_dim=tuple(max(1, width // unet.head_width) for width in unet.channels),
        norm_num_groups=unet.norm_num_groups,
    )
    model.set_attn_processor(AttnProcessor())
    for name, module in model.named_modules():
        if name.endswith((".conv2", ".proj_out")) or name == "conv_out":
            for parameter in module.parameters():
                torch.nn.init.zeros_(parameter)
    return model.to(memory_format=torch.channels_last)
