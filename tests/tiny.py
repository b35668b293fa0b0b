"""Small random models saved to disk, for tests of the real loading code: `build_tiny_registry`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
import yaml
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from heads_registry.features import decoder_taps
from heads_registry.networks import ReadoutHead

FAMILY = "tiny"


def tiny_tokenizer(directory: Path) -> CLIPTokenizer:
    """A character-level CLIP tokenizer: every lower-case letter and digit is a token."""
    directory.mkdir(parents=True, exist_ok=True)
    characters = [chr(code) for code in range(33, 127)]
    tokens = characters + [character + "</w>" for character in characters]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    vocabulary["<|startoftext|>"] = len(vocabulary)
    vocabulary["<|endoftext|>"] = len(vocabulary)
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(directory / "vocab.json"), str(directory / "merges.txt"), model_max_length=77
    )


def tiny_pipeline(directory: Path) -> StableDiffusionPipeline:
    """A random StableDiffusionPipeline with SD1.5's topology (12 decoder resnets), seed 0."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(directory / "tokenizer_source")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=len(tokenizer) - 2,
            eos_token_id=len(tokenizer) - 1,
            pad_token_id=len(tokenizer) - 1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=2,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        skip_prk_steps=True,
        set_alpha_to_one=False,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )


def save_tiny_head(
    directory: Path,
    unet: UNet2DConditionModel,
    name: str,
    signal: str,
    family: str = FAMILY,
    kind: str = "spatial",
) -> None:
    """A random head for `unet`, as manifest and safetensors under ``directory/heads``."""
    torch.manual_seed(hash_of(name))
    taps = decoder_taps(unet)
    head = ReadoutHead(
        feature_channels=tuple(taps.values()),
        projection_channels=16,
        time_embedding_channels=unet.time_embedding.linear_2.out_features,
        num_norm_groups=4,
        output_channels=3 if kind == "spatial" else None,
    )
    weights = directory / "heads" / f"{family}-{name}.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(head.state_dict(), weights)
    manifest = {
        "name": name,
        "title": f"Tiny {name}",
        "kind": kind,
        "signal": signal,
        "base_model": family,
        "weights": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "feature_taps": list(taps),
        "feature_channels": list(taps.values()),
        "projection_channels": 16,
        "num_norm_groups": 4,
        "time_embedding_channels": unet.time_embedding.linear_2.out_features,
        "output_channels": 3 if kind == "spatial" else None,
        "value_range": [-0.5, 0.5],
        "licence": "Apache-2.0",
    }
    weights.with_suffix(".yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))


def add_relative_heads(directory: Path) -> Path:
    """Heads ``correspondence``, ``appearance`` and ``identity`` for a tiny registry's model."""
    unet = UNet2DConditionModel.from_pretrained(directory / "models" / FAMILY / "unet")
    for kind in ("correspondence", "appearance", "identity"):
        save_tiny_head(directory, unet, kind, "other", kind=kind)
    return directory


def save_tiny_adapter(
    directory: Path, unet: UNet2DConditionModel, name: str, kind: str, **changes: object
) -> None:
    """A random pose adapter for `unet`, as manifest and diffusers folder under ``adapters``.

    A ControlNet's zero convolutions are random here, so that it does something.
    """
    torch.manual_seed(hash_of(name))
    family = str(changes.pop("base_model", FAMILY))
    is_xl = unet.config.addition_embed_type == "text_time"
    adapter: ControlNetModel | T2IAdapter
    if kind == "controlnet":
        widths = (8, 8, 16, 16) if is_xl else (8, 8, 16)  # halved as often as by the autoencoder
        adapter = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
        for block in (*adapter.controlnet_down_blocks, adapter.controlnet_mid_block):
            torch.nn.init.normal_(block.weight, std=0.1)
        torch.nn.init.normal_(adapter.controlnet_cond_embedding.conv_out.weight, std=0.3)
    else:
        channels = list(unet.config.block_out_channels)
        adapter = T2IAdapter(
            channels=[*channels, channels[-1]] if is_xl else channels,
            num_res_blocks=1,
            downscale_factor=16 if is_xl else 4,
            adapter_type="full_adapter_xl" if is_xl else "full_adapter",
        )
    folder = directory / "adapters" / f"{family}-{name}"
    adapter.save_pretrained(folder, safe_serialization=True)
    weights = folder / "diffusion_pytorch_model.safetensors"
    manifest = {
        "name": name,
        "title": f"Tiny {name}",
        "type": kind,
        "base_model": family,
        "source": f"./{folder.name}",
        "conditioning": "pose",
        "sha256": {weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()},
        "licence": "Apache-2.0",
    }
    text = yaml.safe_dump(manifest | changes, sort_keys=False)
    folder.with_suffix(".yaml").write_text(text)


def add_adapters(directory: Path) -> Path:
    """Two ControlNets and two T2I-Adapters for a tiny registry's model."""
    unet = UNet2DConditionModel.from_pretrained(directory / "models" / FAMILY / "unet")
    for name, kind in (
        ("net", "controlnet"),
        ("second-net", "controlnet"),
        ("t2i", "t2i_adapter"),
        ("second-t2i", "t2i_adapter"),
    ):
        save_tiny_adapter(directory, unet, name, kind)
    return directory


def hash_of(name: str) -> int:
    """A small stable seed from a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def build_tiny_registry(directory: Path) -> Path:
    """A registry directory with the model ``tiny`` and its heads ``pose`` and ``depth``."""
    pipeline = tiny_pipeline(directory)
    pipeline.save_pretrained(directory / "models" / FAMILY, safe_serialization=True)
    manifest = {
        "name": FAMILY,
        "title": "Tiny random model",
        "family": FAMILY,
        "pipeline": "stable-diffusion",
        "source": f"./{FAMILY}",
        "height": 64,
        "width": 64,
        "size_multiple": 32,
        "min_size": 32,
        "max_size": 128,
        "update_scale": 0.05,
        "defaults": {"num_inference_steps": 10},
        "licence": "Apache-2.0",
    }
    (directory / "models" / f"{FAMILY}.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    save_tiny_head(directory, pipeline.unet, "pose", "pose")
    save_tiny_head(directory, pipeline.unet, "depth", "depth")
    return directory
