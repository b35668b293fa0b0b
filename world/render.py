"""From a scene to its picture and its exact labels; knows scenes and the ray-caster, but no words
and no files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from world.geometry import Geometry, build_geometry, light_vector
from world.parts import Scene
from world.raycast import cast_primary, shade
from world.segments import KEYPOINT_SEGMENTS


@dataclass(frozen=True)
class Render:
    """One picture of a scene with its labels; H = W = size.

    rgb: (H, W, 3) uint8 sRGB. depth: (H, W) float32 metres along the view axis, inf in the sky.
    segments, instances: (H, W) uint8, see `world.segments`. surface_points: (H, W, 3) float32,
    metres in the frame of the body part or prop (ground: world; sky: unit direction), so that an
    equal (segment, instance, point) is the same physical point.
    keypoints: (people, 18, 3) float32: x, y in pixels and visibility (0 outside the picture, 1
        occluded, 2 visible).
    """

    rgb: np.ndarray
    depth: np.ndarray
    segments: np.ndarray
    instances: np.ndarray
    surface_points: np.ndarray
    keypoints: np.ndarray
    caption: str
    scene: Scene


_NO_BYTES = np.empty((1, 1), np.uint8)
_NO_DEPTH = np.empty((1, 1), np.float32)
_NO_POINTS = np.empty((1, 1, 3), np.float32)


def _allowed_segments() -> np.ndarray:
    allowed = np.zeros((18, 256), bool)
    for index, segments in enumerate(KEYPOINT_SEGMENTS):
        allowed[index, list(segments)] = True
    return allowed


_ALLOWED = _allowed_segments()
#: How far (metres) a key point may lie behind the visible surface: joints are inside, face points
#: on it.
_TOLERANCE = np.array([0.05, 0.15] + [0.15] * 6 + [0.2, 0.15, 0.12] * 2 + [0.05] * 4)


def project_keypoints(
    geometry: Geometry, scene: Scene, size: int, depth: np.ndarray, owner: np.ndarray
) -> np.ndarray:
    """(people, 18, 3) pixels and visibility, judged at the z-buffer sample under each key point."""
    camera = scene.current_camera()
    projected = camera.project(geometry.keypoints, size)
    x, y, z = projected[..., 0], projected[..., 1], projected[..., 2]
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size) & (z > 0.02)
    factor = depth.shape[0] / size
    column = np.clip(x * factor, 0, depth.shape[1] - 1).astype(np.int64)
    line = np.clip(y * factor, 0, depth.shape[0] - 1).astype(np.int64)
    row = owner[line, column]
    segment = geometry.table[np.maximum(row, 0), 1].astype(np.int64)
    instance = geometry.table[np.maximum(row, 0), 2].astype(np.int64)
    people = np.arange(1, len(scene.people) + 1)[:, None]
    seen = (
        (row >= 0)
        & (instance == people)
        & _ALLOWED[np.arange(18)[None, :], segment]
        & (z - depth[line, column] < _TOLERANCE)
    )
    visibility = np.where(inside, np.where(seen, 2, 1), 0)
    return np.stack([x, y, visibility], axis=-1).astype(np.float32)


def _cast(scene: Scene, geometry: Geometry, size: int, supersample: int):
    camera = scene.current_camera()
    fine = size * supersample
    depth = np.empty((fine, fine), np.float32)
    owner = np.empty((fine, fine), np.int16)
    frame, focal = camera.frame(), camera.focal_px(fine)
    cast_primary(geometry.table, geometry.count, frame, focal, depth, owner)
    return frame, focal, depth, owner


def render_rgb(
    scene: Scene, size: int = 64, supersample: int = 2, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The fast path: only rgb (H, W, 3) uint8 (into `out` if given) and key points (people, 18,
    3)."""
    geometry, light = build_geometry(scene), light_vector(scene.background)
    frame, focal, depth, owner = _cast(scene, geometry, size, supersample)
    rgb = np.empty((size, size, 3), np.uint8) if out is None else out
    shade(
        geometry.table, geometry.count, geometry.bones, frame, focal, light,
        depth, owner, supersample, False, rgb, _NO_DEPTH, _NO_BYTES, _NO_BYTES, _NO_POINTS,
    )  # fmt: skip
    return rgb, project_keypoints(geometry, scene, size, depth, owner)


def render_segments(scene: Scene, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Only the segments and instances at the pixels' centres, (H, W) uint8 each; the fastest."""
    geometry = build_geometry(scene)
    _, _, _, owner = _cast(scene, geometry, size, 1)
    rows = geometry.table[np.maximum(owner, 0)]
    hit = owner >= 0
    return tuple((rows[..., column] * hit).astype(np.uint8) for column in (1, 2))  # type: ignore[return-value]


def render(scene: Scene, size: int = 64, supersample: int = 2) -> Render:
    """Renders a scene at its moment: picture, labels, key points and caption; deterministic."""
    from world.captions import caption

    geometry, light = build_geometry(scene), light_vector(scene.background)
    frame, focal, depth, owner = _cast(scene, geometry, size, supersample)
    rgb = np.empty((size, size, 3), np.uint8)
    out_depth = np.empty((size, size), np.float32)
    segments = np.empty((size, size), np.uint8)
    instances = np.empty((size, size), np.uint8)
    points = np.empty((size, size, 3), np.float32)
    shade(
        geometry.table, geometry.count, geometry.bones, frame, focal, light,
        depth, owner, supersample, True, rgb, out_depth, segments, instances, points,
    )  # fmt: skip
    out_depth[segments == 0] = np.inf
    keypoints = project_keypoints(geometry, scene, size, depth, owner)
    return Render(rgb, out_depth, segments, instances, points, keypoints, caption(scene), scene)
