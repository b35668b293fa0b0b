"""Captions agree with attributes and keep to their vocabulary; label images follow their
formats."""

from __future__ import annotations

import numpy as np

from openpose import COLOURS as POSE_COLOURS
from world.captions import (
    CLAUSES,
    MAX_TOKENS,
    VOCABULARY,
    arm_words,
    attributes,
    caption,
    caption_variants,
    leg_words,
    tokens,
)
from world.labels import depth_image, edge_image, openpose_image
from world.render import Render
from world.scene import sample_scene

SCENES = [sample_scene(seed) for seed in range(400)]


def test_captions_keep_to_the_vocabulary_and_length() -> None:
    assert len(VOCABULARY) == len(set(VOCABULARY)) < 150
    for scene in SCENES:
        for text in (
            *caption_variants(scene),
            caption(scene, pose=False),
            caption(scene, drop=CLAUSES),
        ):
            words = tokens(text)
            assert len(words) <= MAX_TOKENS
            assert set(words) <= set(VOCABULARY)


def test_full_captions_say_what_attributes_say() -> None:
    for scene in SCENES:
        text, facts = caption(scene), attributes(scene)
        assert f"{facts['sky']} sky" in text
        for person, row in zip(scene.people, facts["people"], strict=True):
            assert f"{row['shirt']} shirt" in text
            if scene.kind != "portrait":
                assert f"{row['shirt']} shirt and {row['trousers']} trousers" in text
                assert f"on {facts['ground']}" in text
            if scene.kind == "figure":
                assert arm_words(person.pose) in text
                assert leg_words(person.pose) in text


def test_pose_words_can_be_left_out() -> None:
    for scene in SCENES:
        if scene.kind == "figure":
            text = caption(scene, pose=False)
            for part in text.split(", "):
                assert part not in (
                    arm_words(scene.people[0].pose),
                    leg_words(scene.people[0].pose),
                )


def test_clothes_are_nearly_always_named() -> None:
    texts = [text for scene in SCENES for text in caption_variants(scene)]
    assert sum("shirt" in text for text in texts) / len(texts) > 0.9
    assert len({len(set(caption_variants(scene))) for scene in SCENES}) > 1


def test_skeleton_has_openposes_colours_and_skips_what_is_outside() -> None:
    points = np.zeros((1, 18, 3), np.float32)
    assert openpose_image(points, 64).max() == 0
    points[0, 1] = 20.5, 20.5, 2
    points[0, 2] = 44.5, 20.5, 1
    image = openpose_image(points, 64)
    assert image.dtype == np.uint8
    assert image.shape == (64, 64, 3)
    assert tuple(image[20, 20]) == POSE_COLOURS[1]
    assert tuple(image[20, 44]) == POSE_COLOURS[2]
    assert np.abs(image[20, 32].astype(int) - [153, 0, 0]).max() <= 1
    assert image[40].max() == 0


def test_depth_and_edges_are_images(renders: list[Render]) -> None:
    for picture in renders[:10]:
        depth = depth_image(picture.depth)
        assert depth.min() == 0.0
        assert depth.max() == 1.0
        assert (depth[picture.segments == 0] == 0.0).all()
        people = picture.instances == 1
        assert depth[people].mean() > depth.mean()
        edges = edge_image(picture)
        assert edges.min() >= 0.0
        assert 0.5 < edges.max() <= 1.0
        assert 0.01 < edges.mean() < 0.35
