"""Writes the model as a StableDiffusionPipeline folder of fp16 safetensors; knows no training.

`python -m demo_model.export FOLDER MANIFEST` installs such a folder as the model of a manifest.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from demo_model.networks import build_scheduler
from demo_model.tokenizer import save_tokenizer
from world.captions import VOCABULARY

MAX_SHARD_SIZE = "15MB"


def _half(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(memory_format=torch.contiguous_format).half().eval()


def export_pipeline(
    folder: Path,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> None:
    """Writes the pipeline beside `folder`, then renames it over `folder`; files of <= 16 MB."""
    temporary = folder.with_name(folder.name + ".new")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline = StableDiffusionPipeline(
        vae=_half(vae),
        text_encoder=_half(text_encoder),
        tokenizer=tokenizer,
        unet=_half(unet),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(temporary, safe_serialization=True, max_shard_size=MAX_SHARD_SIZE)
    save_tokenizer(tokenizer, VOCABULARY, temporary / "tokenizer")
    _load_as_float32(temporary / "text_encoder" / "config.json")
    for file in temporary.rglob("*.safetensors"):
        file.chmod(0o644)  # written for their owner alone, but to be shipped
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def _load_as_float32(path: Path) -> None:
    """transformers loads in the type that a configuration names, diffusers in float32 unless asked:
    both must agree, or a pipeline loaded without `torch_dtype` mixes them."""
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")


def install_pipeline(folder: Path, manifest: Path) -> None:
    """Copies an exported pipeline beside a manifest, into the folder of its name, and writes its
    weights' hashes into the manifest, where everything else stays as it is."""
    installed = manifest.with_suffix("")
    shutil.rmtree(installed, ignore_errors=True)
    shutil.copytree(folder, installed)
    text = manifest.read_text()

    def hashed(line: re.Match[str]) -> str:
        weights = installed / line["path"]
        return f"{line['start']}{hashlib.sha256(weights.read_bytes()).hexdigest()}"

    manifest.write_text(
        re.sub(r"(?m)^(?P<start> +(?P<path>\S+\.safetensors): )[0-9a-f]{64}$", hashed, text)
    )


def main() -> None:
    """Installs an exported pipeline."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("manifest", type=Path)
    options = parser.parse_args()
    install_pipeline(options.folder, options.manifest)


if __name__ == "__main__":
    main()
