"""Exact correspondences and point tracks between renders of one scene; knows renders and bones,
but no files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from world import body
from world.geometry import build_geometry
from world.parts import Scene
from world.render import Render
from world.segments import Segment

#: Bone of each of a person's segments (see `world.body`); sky, ground and props have none.
_BONE_OF_SEGMENT = np.full(256, -1, np.int64)
for _segment in range(Segment.HEAD, Segment.EARS + 1):
    _BONE_OF_SEGMENT[_segment] = body.SKULL
_BONE_OF_SEGMENT[[Segment.NECK, Segment.TORSO]] = body.CHEST
_BONE_OF_SEGMENT[Segment.HIPS] = body.PELVIS
_BONE_OF_SEGMENT[[Segment.RIGHT_ARM, Segment.LEFT_ARM]] = 3, 5
_BONE_OF_SEGMENT[[Segment.RIGHT_FOREARM, Segment.LEFT_FOREARM]] = 4, 6
_BONE_OF_SEGMENT[[Segment.RIGHT_HAND, Segment.LEFT_HAND]] = 4, 6
_BONE_OF_SEGMENT[[Segment.RIGHT_THIGH, Segment.LEFT_THIGH]] = 7, 9
_BONE_OF_SEGMENT[[Segment.RIGHT_SHIN, Segment.LEFT_SHIN]] = 8, 10
_BONE_OF_SEGMENT[[Segment.RIGHT_SHOE, Segment.LEFT_SHOE]] = 8, 10

#: A surface point counts as visible when the picture shows its part at most this far (metres) from
#: it along the view.
VISIBLE_WITHIN = 0.04


def world_points(
    scene: Scene, segments: np.ndarray, instances: np.ndarray, surface_points: np.ndarray
) -> np.ndarray:
    """World positions (n, 3), metres, of canonical surface points at the scene's moment.

    Args:
        segments, instances: (n,). surface_points: (n, 3) as in `Render`; the sky has no place and
            gives NaN.
    """
    geometry = build_geometry(scene)
    segments = segments.astype(np.int64)
    instances = instances.astype(np.int64)
    people = len(scene.people)
    bone = (instances - 1) * body.BONES + _BONE_OF_SEGMENT[segments]
    bone = np.where(segments == Segment.PROP, people * body.BONES + instances - 10, bone)
    moving = segments >= Segment.PROP
    bones = geometry.bones[np.where(moving, bone, 0)]
    rotation, origin = bones[:, :9].reshape(-1, 3, 3), bones[:, 9:12]
    points = surface_points.astype(np.float64)
    placed = np.einsum("nji,nj->ni", rotation, points) + origin
    placed = np.where(moving[:, None], placed, points)
    placed[segments == Segment.SKY] = np.nan
    return placed


def locate(
    render: Render, segments: np.ndarray, instances: np.ndarray, surface_points: np.ndarray
) -> np.ndarray:
    """Where canonical surface points lie in a render: (n, 3) float64 x, y in pixels and 1 if
    visible there, else 0."""
    scene, size = render.scene, render.rgb.shape[0]
    camera = scene.current_camera()
    projected = camera.project(world_points(scene, segments, instances, surface_points), size)
    x, y, z = projected.T
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size) & (z > 0)
    column = np.where(inside, x, 0).astype(np.int64)
    line = np.where(inside, y, 0).astype(np.int64)
    same = (render.segments[line, column] == segments) & (
        render.instances[line, column] == instances
    )
    # one pixel of ground at a grazing angle spans z^2 / (focal * camera height) metres of depth
    grazing = 0.6 * z**2 / (camera.focal_px(size) * camera.position[1])
    tolerance = VISIBLE_WITHIN + np.where(segments == Segment.GROUND, grazing, 0.0)
    with np.errstate(invalid="ignore"):
        visible = inside & same & (np.abs(render.depth[line, column] - z) < tolerance)
    return np.stack([x, y, visible.astype(np.float64)], axis=1)


def _pick(
    render: Render, count: int, rng: np.random.Generator, people_only: bool
) -> tuple[np.ndarray, np.ndarray]:
    lowest = Segment.HEAD if people_only else Segment.GROUND
    lines, columns = np.nonzero(render.segments >= lowest)
    if len(lines) > count:
        chosen = np.sort(rng.choice(len(lines), count, replace=False))
        lines, columns = lines[chosen], columns[chosen]
    return lines, columns


def correspondences(
    render_a: Render,
    render_b: Render,
    count: int,
    rng: np.random.Generator,
    people_only: bool = True,
) -> np.ndarray:
    """Matching points of two renders of one scene: at most (count, 4) float32 rows x_a, y_a, x_b,
    y_b in pixels.

    Points of a are pixel centres; those of b are the exact projections of the same physical
    surface points, kept where b really shows them (same part, depth within VISIBLE_WITHIN). Pixel
    (column, row) covers x in [column, column + 1).
    """
    lines, columns = _pick(render_a, count * 4, rng, people_only)
    found = locate(
        render_b,
        render_a.segments[lines, columns],
        render_a.instances[lines, columns],
        render_a.surface_points[lines, columns],
    )
    kept = np.nonzero(found[:, 2] > 0.5)[0]
    if len(kept) > count:
        kept = np.sort(rng.choice(kept, count, replace=False))
    centres = np.stack([columns[kept] + 0.5, lines[kept] + 0.5], axis=1)
    return np.concatenate([centres, found[kept, :2]], axis=1).astype(np.float32)


def point_tracks(
    renders: Sequence[Render], count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Follows points of people, picked in the first render, through all: (n, frames, 3) float32 x,
    y, visible (0 or 1).

    Also returns (n, 2) uint8 segment and instance of each point.
    """
    first = renders[0]
    lines, columns = _pick(first, count, rng, people_only=True)
    segments, instances = first.segments[lines, columns], first.instances[lines, columns]
    points = first.surface_points[lines, columns]
    tracks = np.stack([locate(render, segments, instances, points) for render in renders], axis=1)
    return tracks.astype(np.float32), np.stack([segments, instances], axis=1)
