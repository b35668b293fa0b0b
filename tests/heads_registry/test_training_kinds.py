"""Every kind of head trains on the repository's example data and is served at once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from heads_registry.base_model import BaseModel
from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from heads_registry.features import decoder_taps
from heads_registry.fit import check_head
from heads_registry.loading import load_head
from heads_registry.manifest import HeadManifest
from heads_registry.training.command import Options, train_heads
from heads_registry.training.data import DataError, load_labelled_images
from heads_registry.training.groups import Grouped, load_faces, load_videos
from heads_registry.training.loop import HeadTrainer
from heads_registry.training.losses import appearance_distance, triplet_hinge
from heads_registry.training.negatives import anchor_rows, make_negatives
from heads_registry.training.recipe import HeadRecipe, NegativesRecipe
from heads_registry.training.tasks import (
    HELD_OUT_GROUPS,
    CorrespondenceTask,
    TripletTask,
    point_cells,
)
from heads_registry.training.trainee import Trainee

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = {
    "spatial": "images",
    "correspondence": "videos",
    "appearance": "videos",
    "identity": "faces",
}


def write_recipe(path: Path, kind: str) -> Path:
    values: dict = {
        "name": f"my-{kind}",
        "title": kind,
        "kind": kind,
        "projection_channels": 16,
        "num_norm_groups": 4,
        "max_steps": 3,
        "batch_size": 4,
        "accumulation_steps": 2,
        "ema_decay": 0.5,
    }
    if kind == "spatial":
        values |= {"signal": "depth", "label": "depth", "loss": "mse"}
    if kind in ("appearance", "identity"):
        values["negatives"] = {"num_inference_steps": 4, "per_group": 1, "others": 0.5}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("kind", FOLDERS)
def test_ten_examples_make_a_head_that_is_served_at_once(
    kind: str, tiny_registry: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    options = Options(
        recipes=[write_recipe(tmp_path / "recipe.yaml", kind)],
        data=EXAMPLES / FOLDERS[kind],
        out=tmp_path / "mine",
        run=tmp_path / "run",
        model="tiny",
        registries=[tiny_registry],
        device="cpu",
    )
    (path,) = train_heads(options, said.append)
    catalogue = Catalogue([BUILTIN_DIR, tiny_registry, tmp_path / "mine"])
    head = catalogue.head(catalogue.model("tiny"), f"my-{kind}")
    assert head.weights_path.parent == path.parent
    assert head.kind == kind
    assert check_head(catalogue, f"my-{kind}", "tiny").problems == ()
    assert load_head(head).output_head is None or kind == "spatial"
    training = head.metrics["training"]
    assert training["steps"] == 3
    assert training["peak_memory_mb"] > 0
    assert any("fewer than 100" in line for line in said)
    assert len(list((tmp_path / "run").glob(f"my-{kind}-*.png"))) == 2


def test_an_installed_head_is_trained_on(tiny_registry: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    recipe = write_recipe(tmp_path / "recipe.yaml", "spatial")
    options = Options(
        recipes=[recipe],
        data=EXAMPLES / FOLDERS["spatial"],
        out=mine,
        run=tmp_path / "first",
        model="tiny",
        registries=[tiny_registry],
        device="cpu",
    )
    (path,) = train_heads(options, str)
    first = HeadManifest.load(path)
    weights = load_head(first).state_dict()
    registries = [tiny_registry, mine]
    again = replace(
        options, run=tmp_path / "second", registries=registries, fine_tune=True, minutes=1e-9
    )
    model = BaseModel.load(Catalogue([BUILTIN_DIR, tiny_registry]).model("tiny"))
    trainee = Trainee.create(HeadRecipe.load(recipe), decoder_taps(model.unet), model, first)
    for name, tensor in trainee.trained.state_dict().items():
        assert torch.equal(tensor, weights[name])
    (path,) = train_heads(again, str)
    assert HeadManifest.load(path).metrics["training"]["started_from"] == first.sha256

    values = yaml.safe_load(recipe.read_text()) | {"projection_channels": 32}
    recipe.write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match="other widths than its recipe asks for"):
        train_heads(replace(again, run=tmp_path / "third"), str)


def grouped(kind: str = "faces") -> Grouped:
    load = load_faces if kind == "faces" else load_videos
    return load(EXAMPLES / kind, 32, 32)


def triplets_of(data: Grouped, plan: NegativesRecipe, held_out: int = 1) -> TripletTask:
    """The task with black pictures for edits."""
    anchors = anchor_rows(data, 1)
    edits = torch.zeros(len(anchors), 3, 32, 32, dtype=torch.uint8)
    return TripletTask(data, anchors, edits, plan, held_out)


def groups_by_row(data: Grouped) -> dict[int, int]:
    return {row: index for index, group in enumerate(data.groups) for row in group}


def test_triplets_are_what_they_should_be() -> None:
    data = grouped()
    task = triplets_of(data, NegativesRecipe(others=0.5, group_pictures=3))
    anchors = task.anchors
    group_of = groups_by_row(data)
    assert task.examples == 4, "the two people of the last look are held out together"
    drawn = task.draw(50, torch.Generator().manual_seed(0)).rows.tolist()
    for edit, *pictures in drawn:
        anchor, *positives = pictures[:3]
        assert anchor in anchors
        assert anchor not in positives
        assert {group_of[positive] for positive in positives} == {group_of[anchor]}
        assert group_of[anchor] < task.examples
        assert anchors[edit - len(data.images)] == anchor
        (other,) = {group_of[row] for row in pictures[3:]}
        assert other != group_of[anchor]
        assert data.looks[other] == data.looks[group_of[anchor]]
    assert {group_of[row] for row in task.validation.rows[:, :2].flatten().tolist()} == {4, 5}


def test_others_share_the_loss_with_edits_and_all_their_triplets_count() -> None:
    data = grouped()
    recipe = HeadRecipe(name="x", title="x", kind="identity")
    task = triplets_of(data, NegativesRecipe(others=0.25))
    generator = torch.Generator().manual_seed(0)
    said = torch.randn(3, 5, 8, 4, 4, generator=generator)
    edit, *first, third, fourth = said.unbind(1)
    second = [third, fourth]
    triplets = [
        triplet_hinge(group[anchor], group[1 - anchor], negative)
        for group, others in ((first, second), (second, first))
        for anchor in (0, 1)
        for negative in others
    ]
    expected = 0.75 * triplet_hinge(*first, edit) + 0.25 * torch.stack(triplets).mean()
    examples = task.draw(3, generator)
    assert examples.rows.shape == (3, 5)
    torch.testing.assert_close(task.loss(recipe, said, examples), expected)
    alone = triplets_of(data, NegativesRecipe(group_pictures=3))
    assert alone.draw(3, generator).rows.shape == (3, 3)
    torch.testing.assert_close(
        alone.loss(recipe, said[:, :3], examples), triplet_hinge(*first, edit)
    )


def test_a_temperature_asks_of_each_picture_whose_it_is_among_all_of_its_example() -> None:
    data = grouped()
    recipe = HeadRecipe(name="x", title="x", kind="identity")
    task = triplets_of(data, NegativesRecipe(others=1.0, temperature=0.1))
    generator = torch.Generator().manual_seed(0)
    said = torch.randn(3, 5, 8, 4, 4, generator=generator)
    entropies = []
    for picture, other_of_group in ((1, 2), (2, 1), (3, 4), (4, 3)):
        others = [index for index in range(5) if index != picture]
        distances = [appearance_distance(said[:, picture], said[:, index]) for index in others]
        logits = torch.stack(distances, dim=1) / -0.1
        right = torch.full((3,), others.index(other_of_group))
        entropies.append(cross_entropy(logits, right))
    examples = task.draw(3, generator)
    torch.testing.assert_close(
        task.loss(recipe, said, examples), torch.stack(entropies).mean(), rtol=1e-4, atol=1e-5
    )


def test_others_are_of_the_same_look_first_and_then_of_others() -> None:
    data = grouped()
    task = triplets_of(data, NegativesRecipe(others=0.5, other_groups=3))
    group_of = groups_by_row(data)
    seen = set()
    for _, *rows in task.draw(50, torch.Generator().manual_seed(0)).rows.tolist():
        own, alike, *others = [group_of[row] for row in rows[::2]]
        assert data.looks[alike] == data.looks[own]
        assert all(data.looks[other] != data.looks[own] for other in others)
        assert len({own, alike, *others}) == 4
        assert max(own, alike, *others) < task.examples
        seen |= {(own, other) for other in others}
    assert seen == {
        (own, other) for own in range(4) for other in range(4) if own // 2 != other // 2
    }


def test_nobody_is_an_other_of_his_own_and_too_few_others_are_refused(
    tmp_path: Path, tiny_registry: Path
) -> None:
    data = grouped()
    said = "other_groups is 4, but .* only 3 others"
    with pytest.raises(ValueError, match=said):
        triplets_of(data, NegativesRecipe(others=0.5, other_groups=4))
    alone = replace(data, looks=[])
    task = triplets_of(alone, NegativesRecipe(others=0.5, other_groups=3), HELD_OUT_GROUPS)
    for _, *rows in task.draw(20, torch.Generator().manual_seed(0)).rows.tolist():
        assert len({groups_by_row(data)[row] for row in rows}) == 4

    recipe = write_recipe(tmp_path / "recipe.yaml", "identity")
    values = yaml.safe_load(recipe.read_text())
    values["negatives"]["other_groups"] = 4
    recipe.write_text(yaml.safe_dump(values))
    options = Options(
        recipes=[recipe],
        data=EXAMPLES / "faces",
        out=tmp_path / "mine",
        run=tmp_path / "run",
        model="tiny",
        registries=[tiny_registry],
    )
    with pytest.raises(ValueError, match=said):
        train_heads(options, str)
    assert not (tmp_path / "run" / "negatives").exists()


def test_pairs_are_two_frames_and_points_that_both_show() -> None:
    data = grouped("videos")
    task = CorrespondenceTask(data, points=8, held_out=1)
    examples = task.draw(50, torch.Generator().manual_seed(0))
    assert examples.points is not None
    assert examples.valid is not None
    for rows, points, valid in zip(examples.rows, examples.points, examples.valid, strict=True):
        video = next(index for index, group in enumerate(data.groups) if int(rows[0]) in group)
        frames = [data.groups[video].index(int(row)) for row in rows]
        assert video < task.examples
        assert frames[0] != frames[1]
        tracks = data.tracks[video][:, frames]
        for pair in points[valid]:
            matches = (tracks[..., :2] == pair).all(dim=2).all(dim=1)
            assert bool((tracks[matches][..., 2] > 0.5).all())
            assert bool(matches.any())


def test_points_fall_into_the_cells_that_hold_them() -> None:
    points = torch.tensor([[0.0, 0.0], [0.49, 0.0], [0.5, 0.0], [0.99, 0.99], [0.1, 0.6]])
    assert point_cells(points, 2, 4).tolist() == [0, 1, 2, 7, 4]


def test_negatives_are_edits_that_the_cache_keeps(tiny_registry: Path, tmp_path: Path) -> None:
    model = BaseModel.load(Catalogue([tiny_registry]).model("tiny"))
    data, recipe = grouped(), NegativesRecipe(num_inference_steps=4, strength=(0.3, 0.9))
    rows = anchor_rows(data, 1)
    whole = make_negatives(model, data, rows, recipe, tmp_path / "a")
    files = sorted((tmp_path / "a").glob("*/*.png"))
    assert len(files) == len(rows) == len(whole)
    assert (whole != data.images[rows]).float().mean() > 0.5
    for path in files[::2]:
        path.unlink()
    again = make_negatives(model, data, rows, recipe, tmp_path / "a")
    assert int((again.int() - whole.int()).abs().max()) <= 1, "its own noise, whatever the batch"


def test_a_training_that_is_timed_follows_the_clock(tiny_registry: Path, tmp_path: Path) -> None:
    model = BaseModel.load(Catalogue([tiny_registry]).model("tiny"))
    recipe = HeadRecipe(
        name="c", title="c", kind="correspondence", projection_channels=16, num_norm_groups=4,
        max_steps=10_000, batch_size=1,
    )  # fmt: skip
    trainer = HeadTrainer(
        model, [recipe], CorrespondenceTask(grouped("videos")), tmp_path, minutes=0.02
    )
    trainer.train()
    assert 0 < trainer.step < 10_000
    assert trainer.cost.seconds >= 1.2
    assert trainer.trainees[0].optimizer.param_groups[0]["lr"] < 0.5e-3, "the end of the schedule"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": ["images/x.png"]}, "two files or more"),
        ({"frames": ["nowhere.png", "nowhere.png"]}, "no such file"),
        ({"tracks": [[[1, 2, 1]]]}, r"tracks have the shape \[1, 1, 3\]"),
        ({"tracks": [[["a", 2, 1]] * 3]}, "tracks must be"),
        ({"tracks": [[[1, 2, 0]] * 3]}, "no two frames share"),
        ({"frames": ["../videos/metadata.jsonl"] * 3}, "cannot read"),
        ({"frames": ["../../images/images/x.png"] * 3}, "lies outside"),
    ],
)
def test_a_broken_video_is_named_by_file_and_line(
    change: dict, message: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "videos", tmp_path / "videos"))
    tracks = folder / "tracks.jsonl"
    rows = [json.loads(line) for line in tracks.read_text().splitlines()]
    rows[1] |= change
    tracks.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=message) as caught:
        load_videos(folder, 32, 32)
    assert "tracks.jsonl:2" in str(caught.value)


def test_a_person_with_one_picture_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "faces", tmp_path / "faces"))
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join([*lines[:-2], lines[-1]]))
    with pytest.raises(DataError, match=r"metadata\.jsonl:11: identity .* one picture"):
        load_faces(folder, 32, 32)


def test_poses_may_come_as_key_points_alone(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "images", tmp_path / "images"))
    drawn = load_labelled_images(folder, ["pose"], 64, 64).labels["pose"]
    metadata = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    metadata.write_text("\n".join(json.dumps(row | {"labels": {}}) for row in rows))
    again = load_labelled_images(folder, ["pose"], 64, 64).labels["pose"]
    assert (again.float() - drawn.float()).abs().mean() < 0.1, "key points have two decimals"
    assert (drawn.flatten(1).amax(dim=1) > 150).all(), "a skeleton in every picture"
    assert drawn.float().mean() > 4
    rows[3]["keypoints"] = [[1, 2]]
    metadata.write_text("\n".join(json.dumps(row | {"labels": {}}) for row in rows))
    with pytest.raises(DataError, match=r"metadata\.jsonl:4: keypoints must be"):
        load_labelled_images(folder, ["pose"], 64, 64)
