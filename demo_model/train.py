"""`python -m demo_model.train`: the stages of the demo base model in order; wiring only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from demo_model.config import RunConfig, load_config
from demo_model.data import Renders, load_renders, open_faces, open_images, open_keypoints
from demo_model.devices import Device, choose_device, raise_priority
from demo_model.export import export_pipeline
from demo_model.loop import Loop, Stopped
from demo_model.networks import build_text_encoder, build_unet, load_start
from demo_model.parallel import Group, run_in_group
from demo_model.text import TextStage, tokenize_captions
from demo_model.tokenizer import build_tokenizer
from demo_model.unet import Parts, UnetStage
from demo_model.vae import VaeStage, build_vae, encode_latents, scaling_factor
from world.captions import VOCABULARY

LATENTS, FACES = "latents.npy", "faces.npy"
COMMANDS = ("vae", "text", "latents", "unet", "export", "all")


def train_vae(config: RunConfig, folder: Path) -> None:
    """Trains the autoencoder in `config.processes` processes; returns at once where it is done.

    Raises:
        Stopped: a signal asked to stop; the checkpoint is written.
    """
    load_renders(config)  # renders what is missing, once
    _train_in_group("vae", config, folder)


def _vae_loop(group: Group, config: RunConfig, folder: Path) -> Loop:
    stage = VaeStage(config, load_renders(config), choose_device(config), group)
    return Loop(stage, folder, config.seed, group)


def train_text(config: RunConfig, renders: Renders, device: Device, folder: Path) -> None:
    """Pre-trains the text encoder; returns at once where it is done or the run has a start."""
    if config.start is not None:
        return
    tokenizer = build_tokenizer(VOCABULARY, config.text.max_length)
    Loop(TextStage(config, renders, device, tokenizer), folder, config.seed).run()


def _encode(group: Group, config: RunConfig, folder: Path, name: str) -> None:
    device = choose_device(config)
    images = open_faces(config).images if name == FACES else open_images(config)
    vae = build_vae(config).to(device.device)
    vae.load_state_dict(_trained(folder, "vae"))
    encode_latents(vae, images, folder / name, device, group)


def cache_latents(config: RunConfig, renders: Renders, device: Device, folder: Path) -> None:
    """Encodes the renders and tokenizes their captions, where that is not done yet."""
    if not (folder / "captions.npy").exists():
        tokenizer = build_tokenizer(VOCABULARY, config.text.max_length)
        ids = tokenize_captions(tokenizer, renders.train, config.text.max_length)
        np.save(folder / "captions.npy", ids[: config.data.latent_count])
    names = [LATENTS]
    if config.data.faces is not None:
        open_faces(config)  # renders what is missing, once
        names.append(FACES)
    for name in names:
        if not (folder / name).exists():
            run_in_group(config.processes, _encode, config, folder, name)


def _trained(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    path = folder / f"{stage}.pt"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run the stage `{stage}` first")
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu")["stage"]["model"]
    return state


def load_parts(config: RunConfig, device: Device, folder: Path, latents: np.ndarray) -> Parts:
    """The trained autoencoder (with its scaling factor) and text encoder, and a U-Net to train."""
    torch.manual_seed(config.seed)
    tokenizer: CLIPTokenizer = build_tokenizer(VOCABULARY, config.text.max_length)
    text_encoder: CLIPTextModel = build_text_encoder(config, tokenizer)
    vae = build_vae(config)
    vae.load_state_dict(_trained(folder, "vae"))
    factor = scaling_factor(latents, config.vae.latent_channels)
    vae.register_to_config(scaling_factor=factor)
    vae.eval().requires_grad_(False)
    unet = build_unet(config)
    if config.start is None:
        text_encoder.load_state_dict(_trained(folder, "text"))
    else:
        start = StableDiffusionPipeline.from_pretrained(config.start)
        text_encoder.load_state_dict(start.text_encoder.state_dict())
        load_start(unet, start.unet.state_dict())
    text_encoder, unet, vae = (part.to(device.device) for part in (text_encoder, unet, vae))
    return Parts(tokenizer, text_encoder, unet, vae)


def build_unet_loop(group: Group, config: RunConfig, folder: Path) -> Loop:
    """The U-Net's loop of one process of the group, at its last checkpoint."""
    device = choose_device(config)
    latents = np.load(folder / LATENTS)
    captions = np.load(folder / "captions.npy")
    parts = load_parts(config, device, folder, latents)
    if config.data.faces is not None:
        faces = np.load(folder / FACES)
        empty = parts.tokenizer("", padding="max_length", max_length=captions.shape[-1])
        without = np.array(empty["input_ids"], captions.dtype)
        captions = np.concatenate(
            [captions, np.broadcast_to(without, (len(faces), *captions.shape[1:]))]
        )
        latents = np.concatenate([latents, faces])

    def export() -> None:
        where = folder / "export"
        export_pipeline(where, parts.vae, parts.text_encoder, parts.tokenizer, parts.unet)

    heads = open_keypoints(config)
    stage = UnetStage(config, parts, latents, captions, heads, device, group, export)
    return Loop(stage, folder, config.seed, group)


def _train(group: Group, stage: str, config: RunConfig, folder: Path) -> None:
    build = {"vae": _vae_loop, "unet": build_unet_loop}[stage]
    try:
        build(group, config, folder).run()
    except Stopped:
        if group.leads:
            (folder / "stopped").touch()


def _train_in_group(stage: str, config: RunConfig, folder: Path) -> None:
    (folder / "stopped").unlink(missing_ok=True)
    run_in_group(config.processes, _train, stage, config, folder)
    if (folder / "stopped").exists():
        raise Stopped(stage)


def train_unet(config: RunConfig, folder: Path) -> None:
    """Trains U-Net and text encoder in `config.processes` processes.

    Raises:
        Stopped: a signal asked to stop; the checkpoint is written.
    """
    _train_in_group("unet", config, folder)


def export_now(config: RunConfig, folder: Path) -> None:
    """Exports the averaged weights of the last checkpoint (a new U-Net where there is none)."""
    stage = build_unet_loop(Group(), config, folder).stage
    assert isinstance(stage, UnetStage)
    stage.average.swap()
    stage.export()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (3: stopped by a signal)."""
    parser = argparse.ArgumentParser(prog="python -m demo_model.train", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and results")
    parser.add_argument(
        "--minutes", type=float, help="wall-clock plan of the stage, over the config's"
    )
    options = parser.parse_args(arguments)
    config, folder = load_config(options.config), options.run
    if options.minutes is not None:
        config = config.with_minutes(options.command, options.minutes)
    raise_priority()
    try:
        for name in COMMANDS[:-1] if options.command == "all" else (options.command,):
            _run_stage(name, config, folder)
    except Stopped as stopped:
        print(f"stopped in {stopped}; the same command goes on", file=sys.stderr)
        return 3
    return 0


def _run_stage(name: str, config: RunConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    alone: dict[str, Callable[[RunConfig, Path], None]] = {
        "vae": train_vae,
        "unet": train_unet,
        "export": export_now,
    }
    if name in alone:
        alone[name](config, folder)
    else:
        stage = {"text": train_text, "latents": cache_latents}[name]
        stage(config, load_renders(config), choose_device(config), folder)


if __name__ == "__main__":
    sys.exit(main())
