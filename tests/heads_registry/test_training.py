from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from heads_registry.base_model import BaseModel
from heads_registry.catalogue import Catalogue
from heads_registry.loading import check_fit, load_head
from heads_registry.manifest import ManifestError
from heads_registry.training.data import DataError, load_labelled_images
from heads_registry.training.loop import HeadTrainer
from heads_registry.training.losses import balanced_mse, mse
from heads_registry.training.recipe import HeadRecipe
from heads_registry.training.tasks import SpatialTask
from heads_registry.training.trainee import _moving_average

RECIPES = Path(__file__).parents[2] / "heads_registry" / "training" / "recipes"


def recipe(name: str = "pose", **changes: object) -> HeadRecipe:
    values: dict = {
        "name": name,
        "title": name,
        "kind": "spatial",
        "signal": "pose",
        "label": "pose",
        "loss": "balanced_mse",
        "value_range": (-0.5, 0.5),
        "projection_channels": 16,
        "num_norm_groups": 4,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "batch_size": 2,
    }
    return HeadRecipe(**(values | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images whose label is a white square on black, in the users' format."""
    rows = []
    rng = np.random.default_rng(0)
    for directory in ("images", "labels"):
        (tmp_path / "my data" / directory).mkdir(parents=True)
    for index in range(10):
        image = rng.integers(0, 256, (40, 64, 3), np.uint8)
        label = np.zeros((40, 64, 3), np.uint8)
        label[10:20, 20:40] = 255
        for directory, pixels in (("images", image), ("labels", label)):
            Image.fromarray(pixels).save(tmp_path / "my data" / directory / f"{index}.png")
        rows.append({"file_name": f"images/{index}.png", "labels": {"pose": f"labels/{index}.png"}})
    (tmp_path / "my data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "my data"


def test_a_head_is_trained_saved_and_served(
    tiny_registry_copy: Path, folder: Path, tmp_path: Path
) -> None:
    manifest = Catalogue([tiny_registry_copy]).model("tiny")
    model = BaseModel.load(manifest)
    data = load_labelled_images(folder, ["pose"], 32, 32)
    recipes = [recipe("mine", ema_decay=0.5), recipe("other", loss="mse", output_scale=2)]
    trainer = HeadTrainer(model, recipes, SpatialTask(data, held_out=2), tmp_path / "run")
    trainer.train()
    metrics = trainer.evaluate()
    assert set(metrics) == {"mine", "other"}
    assert {"rmse_t0.1", "rmse_t0.9", "rmse_baseline"} <= set(metrics["mine"])
    trainer.save(tiny_registry_copy / "heads", manifest.family, metrics)
    head = Catalogue([tiny_registry_copy]).head(manifest, "mine")
    check_fit(head, model.unet)
    load_head(head)
    assert head.recipe_hash == recipes[0].hash


def test_a_stopped_training_goes_on_where_it_was(
    tiny_registry: Path, folder: Path, tmp_path: Path
) -> None:
    model = BaseModel.load(Catalogue([tiny_registry]).model("tiny"))
    data = load_labelled_images(folder, ["pose"], 32, 32)

    def trainer(run: str) -> HeadTrainer:
        return HeadTrainer(
            model, [recipe(ema_decay=0.9)], SpatialTask(data, held_out=2), tmp_path / run
        )

    whole = trainer("whole")
    whole.train()
    first = trainer("parts")
    for _ in range(2):
        first.train_step()
    first.checkpoint()
    second = trainer("parts")
    assert second.step == 2
    second.train()
    for name, tensor in whole.trainees[0].trained.state_dict().items():
        torch.testing.assert_close(second.trainees[0].trained.state_dict()[name], tensor)
    with pytest.raises(ValueError, match="other recipes"):
        HeadTrainer(model, [recipe("x")], SpatialTask(data), tmp_path / "parts")


@pytest.mark.parametrize("fractions", [(0.0, 0.25), (0.5, 0.6), (0.9999, 1.0)])
def test_pictures_are_noised_within_the_recipes_timesteps(
    tiny_registry: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fractions: tuple[float, float],
) -> None:
    model = BaseModel.load(Catalogue([tiny_registry]).model("tiny"))
    data = load_labelled_images(folder, ["pose"], 32, 32)
    wanted = recipe(timesteps=fractions, batch_size=16)
    trainer = HeadTrainer(model, [wanted], SpatialTask(data, held_out=2), tmp_path)
    seen, add_noise = [], trainer.frozen.add_noise

    def watched(latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor):
        seen.extend(timesteps.tolist())
        return add_noise(latents, noise, timesteps)

    monkeypatch.setattr(trainer.frozen, "add_noise", watched)
    trainer.train()
    low, high = (round(share * 1000) for share in fractions)
    assert len(seen) == 4 * 16
    assert low - 1 <= min(seen)
    assert max(seen) < max(high, low + 1)
    assert high - low < 2 or max(seen) - min(seen) > (high - low) / 2


def test_timesteps_of_a_recipe_rise() -> None:
    with pytest.raises(ValueError, match="timesteps must rise"):
        recipe(timesteps=(0.5, 0.5))


def test_the_moving_average_forgets_the_untrained_weights_and_ends_at_its_decay() -> None:
    average = _moving_average(0.9)
    kept, step = [torch.ones(1)], [torch.zeros(1)]
    for count in range(1, 21):
        average(kept, step, torch.tensor(count))
    assert float(kept[0]) < 1e-4, "a constant decay of 0.9 would leave 0.12"
    one = [torch.ones(1)]
    average(one, step, torch.tensor(10_000))
    assert float(one[0]) == pytest.approx(0.9)


def test_both_regions_of_a_sparse_label_weigh_equally() -> None:
    target = torch.full((1, 3, 8, 8), -0.5)
    target[..., 0, 0] = 0.5
    wrong_background = target.clone()
    wrong_background[target == -0.5] = 0.0
    wrong_limb = target.clone()
    wrong_limb[..., 0, 0] = 0.0
    span = (-0.5, 0.5)
    torch.testing.assert_close(
        balanced_mse(wrong_background, target, span), balanced_mse(wrong_limb, target, span)
    )
    assert mse(wrong_background, target) > 10 * mse(wrong_limb, target)


@pytest.mark.parametrize("value", [-0.5, 0.5])
def test_a_label_without_one_of_the_regions_is_no_reason_for_nan(value: float) -> None:
    target = torch.full((2, 3, 4, 4), value)
    loss = balanced_mse(torch.zeros_like(target), target, (-0.5, 0.5))
    assert float(loss) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "a JSON object"),
        ('{"labels": {}}', "file_name is missing"),
        ('{"file_name": "images/0.png"}', "no label 'pose'"),
        ('{"file_name": "images/99.png"}', "no such file: images/99.png"),
        ('{"file_name": "metadata.jsonl"}', "cannot read"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(folder: Path, line: str, message: str) -> None:
    metadata = folder / "metadata.jsonl"
    lines = metadata.read_text().splitlines()
    metadata.write_text("\n".join([*lines[:3], line, *lines[3:]]))
    with pytest.raises(DataError, match=message) as caught:
        load_labelled_images(folder, ["pose"], 32, 32)
    assert "metadata.jsonl:4" in str(caught.value)


def test_an_empty_folder_says_where_the_format_is_described(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"docs/data\.md"):
        load_labelled_images(tmp_path, ["pose"], 32, 32)


def test_every_shipped_recipe_loads_and_a_broken_one_is_named(tmp_path: Path) -> None:
    hashes = {HeadRecipe.load(path).hash for path in RECIPES.glob("*.yaml")}
    assert len(hashes) == len(list(RECIPES.glob("*.yaml"))) >= 3
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nsurprise: 1\n")
    with pytest.raises(ManifestError, match=r"recipe\.yaml: "):
        HeadRecipe.load(path)
