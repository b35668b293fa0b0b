"""Writes trained adapters as registry entries, and sheets of what they draw; knows no training."""

from __future__ import annotations

import copy
import hashlib
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from diffusers import (
    ControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)

from demo_model.data import images_as_bytes
from demo_model.networks import build_scheduler
from demo_model.sheets import write_sheet

Kind = Literal["controlnet", "t2i_adapter"]
KINDS: dict[Kind, str] = {"controlnet": "pose-controlnet", "t2i_adapter": "pose-t2i-adapter"}
"""Kind of adapter → name in the registry."""
WEIGHTS = "diffusion_pytorch_model.safetensors"


def export_adapter(
    manifest: Path, kind: Kind, adapter: torch.nn.Module, family: str, samples: int
) -> None:
    """Writes the adapter as diffusers does, in fp16, and the manifest over it last."""
    folder = manifest.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    half = copy.deepcopy(adapter).to(memory_format=torch.contiguous_format).half().eval()
    half.save_pretrained(folder, safe_serialization=True)
    weights = folder / WEIGHTS
    weights.chmod(0o644)  # written for their owner alone, but to be shipped
    title = "ControlNet" if kind == "controlnet" else "T2I-Adapter"
    content = {
        "name": KINDS[kind],
        "title": f"Pose {title}",
        "description": f"A small {title} trained on the mannequin world's poses.",
        "type": kind,
        "base_model": family,
        "source": f"./{folder.name}",
        "conditioning": "pose",
        "sha256": {WEIGHTS: hashlib.sha256(weights.read_bytes()).hexdigest()},
        "licence": "Apache-2.0",
        "metrics": {"training": {"samples": samples}},
    }
    manifest.write_text(yaml.safe_dump(content, sort_keys=False))


@torch.no_grad()
def draw_sheet(
    path: Path,
    base: StableDiffusionPipeline,
    adapter: Any,
    poses: np.ndarray,
    captions: list[str],
    steps: int,
) -> None:
    """A sheet of control images, each row followed by the row of pictures drawn for them.

    Args:
        path: PNG to write.
        base: the frozen base model.
        adapter: ControlNetModel or T2IAdapter.
        poses: (count, size, size, 3) uint8, a multiple of eight.
        captions: one each.
        steps: of sampling.
    """
    parts = dict(base.components) | {"scheduler": build_scheduler()}
    parts.pop("image_encoder", None)
    pipeline: Any
    if isinstance(adapter, ControlNetModel):
        pipeline = StableDiffusionControlNetPipeline(
            **parts, controlnet=adapter, requires_safety_checker=False
        )
    else:
        pipeline = StableDiffusionAdapterPipeline(
            **parts, adapter=adapter, requires_safety_checker=False
        )
    pipeline.set_progress_bar_config(disable=True)
    images = torch.from_numpy(poses).permute(0, 3, 1, 2).float() / 255
    size = poses.shape[1]
    latents = pipeline(
        prompt=captions,
        image=images,
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(row) for row in range(len(captions))],
        output_type="latent",
    ).images
    pictures = images_as_bytes(base.vae.decode(latents / base.vae.config.scaling_factor).sample)
    rows = [
        part[start : start + 8] for start in range(0, len(poses), 8) for part in (poses, pictures)
    ]
    write_sheet(path, np.concatenate(rows))
