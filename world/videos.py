"""Scenes over time: the moments of a video, from one moving camera or from one after the other;
knows scenes, but no files."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

from world.camera import Camera, fit_bounds
from world.geometry import build_geometry
from world.parts import Scene
from world.scene import stream


def video_scenes(scene: Scene, frames: int, cuts: bool = False) -> list[Scene]:
    """The scene at `frames` moments from start to end, at even distances.

    Args:
        scene: people move from their first pose and place to their second.
        frames: how many; 1 gives the start.
        cuts: see every moment from a camera of its own, drawn anew: another side, distance and
            lens, and the people elsewhere in the picture. Otherwise the scene's own camera
            follows, and people stay about where they are in the picture, so that a point that
            stays put is often nearly right.
    """
    moments = [scene.at(index / max(1, frames - 1)) for index in range(frames)]
    if not cuts:
        return moments
    return [_seen_anew(moment, index) for index, moment in enumerate(moments)]


def _seen_anew(scene: Scene, index: int) -> Scene:
    camera = _cut_camera(scene, stream(scene.seed, f"cut {index}"))
    return replace(scene, camera=camera, camera_end=camera)


def _cut_camera(scene: Scene, rng: Random) -> Camera:
    """All people in the picture, larger or smaller, from up to 40° to either side."""
    geometry = build_geometry(scene, with_props=False)
    yaw = scene.camera.yaw + rng.uniform(-0.7, 0.7)
    pitch = rng.uniform(0.02, 0.35)
    field = math.radians(rng.uniform(28.0, 46.0))
    target, distance = fit_bounds(
        geometry.table, 0, geometry.people_rows, yaw, pitch, math.tan(0.5 * field),
        rng.uniform(0.55, 0.95), 0.94, rng.uniform(-1.0, 1.0), rng.uniform(-1.0, 1.0),
    )  # fmt: skip
    x, y, z = (float(value) for value in target)
    return Camera((x, y, z), float(distance), yaw, pitch, field)
