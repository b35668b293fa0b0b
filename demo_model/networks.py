"""Builds the text encoder, the U-Net and the scheduler; knows configurations, but no training."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
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


NEW_SCALE = 0.3
"""Of the random weights of channels that a start does not have."""


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


def load_start(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads the weights of a start. Where it has fewer latent channels they take the first places
    (of an autoencoder's means, and of its log-variances), and what is new stays small and random.

    Raises:
        RuntimeError: keys differ, or a shape is larger than the network's.
    """
    wider = {}
    for name, own in network.state_dict().items():
        if name in state and own.shape != state[name].shape:
            halves = 2 if name.startswith(("encoder.conv_out.", "quant_conv.")) else 1
            places = [
                _places(old, new, halves)
                for old, new in zip(state[name].shape, own.shape, strict=True)
            ]
            wider[name] = NEW_SCALE * own
            wider[name][np.ix_(*places)] = state[name]
    network.load_state_dict(state | wider)


def _places(old: int, new: int, halves: int) -> np.ndarray:
    """Of `old` channels among `new`: the first ones, of each half."""
    if old == new:
        return np.arange(new)
    return np.concatenate([half[: old // halves] for half in np.split(np.arange(new), halves)])
