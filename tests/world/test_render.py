"""Renders: labels agree with each other and with the scene; matches and tracks are exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from world.matches import correspondences, locate, point_tracks, world_points
from world.render import Render, render
from world.scene import sample_scene
from world.segments import KEYPOINT_NAMES, KEYPOINT_SEGMENTS, Segment


def test_visible_keypoints_lie_on_their_segments(renders: list[Render]) -> None:
    checked = hits = 0
    for picture in renders:
        for person, points in enumerate(picture.keypoints):
            for index, (x, y, visibility) in enumerate(points):
                if visibility < 2:
                    continue
                line, column = int(y), int(x)
                near = np.s_[max(0, line - 1) : line + 2, max(0, column - 1) : column + 2]
                shown = picture.segments[near][picture.instances[near] == person + 1]
                checked += 1
                hits += bool(np.isin(shown, KEYPOINT_SEGMENTS[index]).any())
    assert checked > 300
    assert hits / checked > 0.99


def test_backs_hide_faces_and_fronts_show_them() -> None:
    nose = KEYPOINT_NAMES.index("nose")
    front = sample_scene(0, "portrait")
    back = replace(front, camera=replace(front.camera, yaw=front.camera.yaw + np.pi))
    assert render(front).keypoints[0, nose, 2] == 2
    assert render(back).keypoints[0, nose, 2] == 1


def test_left_is_the_persons_own() -> None:
    right, left = KEYPOINT_NAMES.index("right_shoulder"), KEYPOINT_NAMES.index("left_shoulder")
    for seed in range(12):
        scene = sample_scene(seed, "figure")
        facing = replace(scene.camera, yaw=scene.people[0].heading)
        points = render(replace(scene, camera=facing)).keypoints[0]
        assert points[left, 0] > points[right, 0]


def test_depth_sky_and_points_agree(renders: list[Render]) -> None:
    for picture in renders:
        sky = picture.segments == Segment.SKY
        assert np.isinf(picture.depth[sky]).all()
        assert np.isfinite(picture.depth[~sky]).all()
        assert (picture.depth > 0.1).all()
        assert ((picture.instances > 0) == (picture.segments >= Segment.PROP)).all()
        lines, columns = np.nonzero(~sky)
        placed = world_points(
            picture.scene, picture.segments[lines, columns], picture.instances[lines, columns],
            picture.surface_points[lines, columns],
        )  # fmt: skip
        projected = picture.scene.current_camera().project(placed, 64)
        near = picture.depth[lines, columns] < 15.0
        centres = np.stack([columns, lines], axis=1) + 0.5
        offset = np.abs(projected[near, :2] - centres[near])
        assert offset.max() < 0.75
        assert np.abs(projected[near, 2] - picture.depth[lines, columns][near]).max() < 0.02


def test_correspondences_are_exact_between_moments_and_cameras() -> None:
    rng = np.random.default_rng(0)
    for seed in range(12):
        scene = sample_scene(seed)
        first, second = render(scene.at(0.0)), render(scene.at(0.6))
        matches = correspondences(first, second, 100, rng)
        assert len(matches) > 10
        assert matches.dtype == np.float32
        assert matches.min() >= 0
        assert matches.max() <= 64
        a, b = matches[:, :2].astype(int), matches[:, 2:].astype(int)
        keys = (first.segments[a[:, 1], a[:, 0]], second.segments[b[:, 1], b[:, 0]])
        assert np.array_equal(*keys)
        # and back again: the point that b shows there lies within a pixel of where it came from in
        # a
        back = locate(
            first, second.segments[b[:, 1], b[:, 0]], second.instances[b[:, 1], b[:, 0]],
            second.surface_points[b[:, 1], b[:, 0]],
        )  # fmt: skip
        offset = np.linalg.norm(back[:, :2] - matches[:, :2], axis=1)
        assert np.median(offset) <= 1.0


def test_a_render_matches_itself_in_place() -> None:
    picture = render(sample_scene(8))
    matches = correspondences(picture, picture, 200, np.random.default_rng(1), people_only=False)
    assert np.abs(matches[:, :2] - matches[:, 2:]).max() < 0.75


def test_tracks_start_visible_and_move() -> None:
    scene = sample_scene(4, "figure")
    pictures = [render(scene.at(moment)) for moment in (0.0, 0.25, 0.5, 1.0)]
    tracks, parts = point_tracks(pictures, 40, np.random.default_rng(0))
    assert tracks.shape == (40, 4, 3)
    assert parts.shape == (40, 2)
    assert tracks[:, 0, 2].mean() > 0.95
    assert tracks[:, :, 2].mean() > 0.4
    assert np.abs(tracks[:, 3, :2] - tracks[:, 0, :2]).max() > 1.0
