from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluation.attributes import (
    FACES,
    PEOPLE,
    Kind,
    Recogniser,
    agreement,
    crop_faces,
    labels_of,
    load_recogniser,
    stacked,
    true_face,
)
from world.render import render_rgb
from world.scene import sample_scene
from world.seeds import TEST


@pytest.mark.parametrize("kind", [PEOPLE, FACES])
def test_a_recogniser_says_all_attributes(kind: Kind) -> None:
    said = Recogniser(kind)(torch.rand(2, 3, kind.size, kind.size))
    assert set(said.named()) == set(kind.attributes)
    for name, names in kind.classes.items():
        assert said.logits[name].shape == (2, len(names))
    assert said.numbers.shape == (2, kind.numbers)


def test_the_shipped_recogniser_is_right_about_held_out_clothes() -> None:
    assert PEOPLE.weights.stat().st_size < 2 * 2**20
    scenes = [sample_scene(seed, kind="figure") for seed in TEST[:12]]
    named = load_recogniser(PEOPLE)(stacked([render_rgb(scene)[0] for scene in scenes])).named()
    truth = np.array([labels_of(scene.people[0], PEOPLE)[0] for scene in scenes])
    assert (named["shirt"] == truth[:, 0]).mean() > 0.9
    assert (named["trousers"] == truth[:, 1]).mean() > 0.9


def test_agreement_is_of_names_and_of_near_skin() -> None:
    first = {"hat": np.array([1, 2, 0]), "skin": np.array([0.2, 0.5, 0.9])}
    second = {"hat": np.array([1, 0, 0]), "skin": np.array([0.3, 0.5, 0.2])}
    agreed = agreement(first, second)
    assert agreed["hat"].tolist() == [1, 0, 1]
    assert agreed["skin"].tolist() == [1, 1, 0]
    assert agreed["mean"].tolist() == [1, 0.5, 0.5]


def test_a_crop_is_the_square_that_was_asked_for() -> None:
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, 0, 16:32, 32:48] = 1
    whole = crop_faces(picture, torch.tensor([[40 / 64, 24 / 64, 16 / 64]]), 8)
    assert float(whole[:, 0].min()) == pytest.approx(1)
    around = crop_faces(picture, torch.tensor([[40 / 64, 24 / 64, 32 / 64]]), 32)
    assert float(around[:, 0].mean()) == pytest.approx(0.25, abs=0.02)


def test_a_portraits_face_lies_in_its_square() -> None:
    for seed in TEST[:6]:
        scene = sample_scene(seed, kind="portrait")
        _, points = render_rgb(scene)
        x, y, side = true_face(scene, points, 64)
        for point in points[0, [0, 14, 15], :2] / 64:
            assert np.abs(point - (x, y)).max() < side / 2
