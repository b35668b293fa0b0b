"""One training step of each kind against recordings of the authors' code.

Their training embeds 999 - τ where the noise level is τ and calls the U-Net with τ + 1, since
1000-step leading timesteps carry the scheduler's offset: with t = τ + 1 for the U-Net that is our
convention `reversed`, 1000 - t. Only the noise level is one step less than t; ours is t's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from heads_registry.base_model import BaseModel
from heads_registry.manifest import ModelManifest
from heads_registry.networks import ReadoutHead
from heads_registry.training.frozen import FrozenFeatures
from heads_registry.training.losses import (
    appearance_distance,
    correspondence_loss,
    element_balanced_mse,
    mse,
    triplet_hinge,
)
from heads_registry.training.recipe import HeadRecipe
from heads_registry.training.trainee import Trainee
from tests.parity.golden import DATA, GOLDEN, arrays, needs_golden

CASES: dict[str, dict[str, Any]] = json.loads((DATA / "train" / "cases.json").read_text())
RELATIVE = 3e-4
"""Of the loss, and of gradients in L2: the issue's bar; what is found is about 1e-6."""

cases = pytest.mark.parametrize("case", CASES)


def recorded(case: str) -> dict[str, Tensor]:
    return arrays(DATA / "train" / f"{case}.npz")


def features_of(values: dict[str, Tensor]) -> list[Tensor]:
    return [values[name] for name in sorted(values) if name.startswith("raw_layer")]


def head_of(case: str) -> ReadoutHead:
    """The network before the step."""
    values = recorded(case)
    state = {
        name.removeprefix("head:"): value.clone()
        for name, value in values.items()
        if name.startswith("head:")
    }
    first = state["bottleneck_layers.0.emb_layers.weight"]
    output = state.get("output_head.4.weight")
    head = ReadoutHead(
        [feature.shape[1] for feature in features_of(values)],
        4 * first.shape[0],
        first.shape[1],
        num_norm_groups=CASES[case]["num_norm_groups"],
        output_channels=None if output is None else output.shape[0],
    )
    head.load_state_dict(state)
    return head


def loss_of(case: str, head: ReadoutHead, values: dict[str, Tensor]) -> Tensor:
    fields = CASES[case]
    said = head(features_of(values), values["head_emb"], (16, 16))
    compared = said[:, : values["pred"].shape[1]]
    torch.testing.assert_close(compared, values["pred"], rtol=0, atol=2e-5)
    if case.startswith("correspondence"):
        cells = values["source_idx"][None], values["target_idx"][None]
        valid = torch.ones_like(cells[0], dtype=torch.bool)
        temperature = 1 / fields["logit_scale_exp"]
        return correspondence_loss(said[:1], said[1:], *cells, valid, temperature)
    if case.startswith("appearance"):
        for name, index in (("d_pos", 1), ("d_neg", 2)):
            distance = appearance_distance(said[:1], said[index : index + 1])
            torch.testing.assert_close(distance.detach(), values[name], rtol=RELATIVE, atol=0)
        return triplet_hinge(said[:1], said[1:2], said[2:3], fields["margin"])
    target = values["target_at_latent_res"]
    if "depth" in case:
        return mse(said, target)
    low, high = fields["control_range"]
    share = float((target == low).float().mean())
    assert share == pytest.approx(fields["frac_background"], abs=1e-6)
    return element_balanced_mse(said, target, (low, high))


@cases
def test_losses_gradients_and_the_step_are_the_authors(case: str) -> None:
    values, fields = recorded(case), CASES[case]
    recipe = HeadRecipe(
        name="x",
        title="x",
        kind="correspondence",
        learning_rate=fields["lr"],
        schedule="constant",
    )
    head = head_of(case)
    optimizer = torch.optim.AdamW(head.parameters(), lr=fields["lr"], weight_decay=0.0)
    trainee = Trainee(recipe, head, None, optimizer)
    loss = loss_of(case, head, values)
    assert float(loss.detach()) == pytest.approx(float(values["loss"]), rel=RELATIVE)
    loss.backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in head.named_parameters()
        if parameter.grad is not None
    }
    for name, gradient in gradients.items():
        assert float(gradient.norm()) == pytest.approx(
            fields["grad_norms"][name], rel=RELATIVE, abs=1e-7
        ), name
        if f"grad:{name}" in values:
            theirs = values[f"grad:{name}"]
            difference = float((gradient - theirs).norm())
            assert difference <= RELATIVE * float(theirs.norm()), name
    trainee.step(progress=0.5)
    checked = 0
    for name, parameter in head.named_parameters():
        if f"param_after:{name}" in values:
            # A first Adam step is ±lr: where the gradient is rounding noise its sign is, too.
            sure = gradients[name].abs() > 1e-6
            torch.testing.assert_close(
                parameter.detach()[sure], values[f"param_after:{name}"][sure], rtol=0, atol=1e-6
            )
            checked += int(sure.sum())
    assert checked > 100


def pipeline_directory(family: str) -> Path:
    """The authors' tiny pipeline, copied or in the whole set."""
    name = f"tiny-{family}"
    copied = DATA / "pipelines" / name
    return copied if copied.is_dir() else GOLDEN / "pipelines" / name


def frozen_features(family: str, tmp_path: Path) -> FrozenFeatures:
    path = tmp_path / "models" / "tiny.yaml"
    path.parent.mkdir()
    fields = {
        "name": "tiny",
        "title": "the authors' code's tiny model",
        "family": family,
        "pipeline": "stable-diffusion-xl" if family == "sdxl" else "stable-diffusion",
        "source": str(pipeline_directory(family)),
        "licence": "Apache-2.0",
    }
    path.write_text(yaml.safe_dump(fields))
    return FrozenFeatures(BaseModel.load(ModelManifest.load(path)), 128, 128)


@needs_golden
@cases
def test_from_latents_to_features_as_in_their_training(case: str, tmp_path: Path) -> None:
    frozen = frozen_features(case.rpartition("_")[2], tmp_path)
    whole = arrays(GOLDEN / "train" / f"{case}.npz")
    noise_level = torch.full((len(whole["noise"]),), CASES[case]["add_noise_timestep"])
    timesteps = noise_level + 1
    assert CASES[case]["unet_timestep"] == timesteps[0]
    noised = frozen.add_noise(whole["vae_latents"], whole["noise"], noise_level)
    torch.testing.assert_close(noised, whole["unet_input"], rtol=0, atol=5e-6)
    prompt = frozen.empty_prompt.prompt_embeds.expand(len(noised), -1, -1)
    torch.testing.assert_close(prompt, whole["unet_context"], rtol=0, atol=1e-4)
    for ours, theirs in zip(frozen.features(noised, timesteps), features_of(whole), strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < RELATIVE
    embedding = frozen.embedding("reversed", timesteps)
    assert embedding is not None
    torch.testing.assert_close(embedding, whole["head_emb"], rtol=0, atol=1e-6)


@needs_golden
def test_their_evaluation_reads_clean_latents_at_timestep_1(tmp_path: Path) -> None:
    whole = arrays(GOLDEN / "train" / "eval_mode_sd15.npz")
    frozen = frozen_features("sd15", tmp_path)
    timesteps = torch.ones(len(whole["unet_input"]), dtype=torch.long)
    features = frozen.features(whole["vae_latents"], timesteps)
    embedding = frozen.embedding("reversed", timesteps)
    assert embedding is not None
    torch.testing.assert_close(embedding, whole["head_emb"], rtol=0, atol=1e-6)
    with torch.no_grad():
        said = head_of("spatial_pose_sparse_sd15")(features, embedding, (16, 16))
    torch.testing.assert_close(said, whole["pred"], rtol=0, atol=2e-5)
