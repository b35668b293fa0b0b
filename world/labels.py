"""Label images from renders: skeleton, depth, edges; knows renders, but no files."""

from __future__ import annotations

import numpy as np
from numba import njit

from openpose import draw_pose, known_points
from world.render import Render
from world.segments import Segment


def openpose_image(keypoints: np.ndarray, size: int) -> np.ndarray:
    """The OpenPose skeleton picture (size, size, 3) uint8 on black, see `openpose.draw_pose`.

    Args:
        keypoints: (people, 18, 3) x, y in pixels of `size` and visibility, see
            `openpose.known_points`.
    """
    people = np.asarray(keypoints, np.float32).reshape(-1, 18, 3)
    return np.array(draw_pose(known_points(people.tolist()), size, size))


def depth_image(depth: np.ndarray) -> np.ndarray:
    """Inverse depth (H, W) float32 in 0..1 as MiDaS shows it: nearest 1, farthest (sky) 0, scaled
    per image.

    Args:
        depth: (H, W) metres, inf in the sky.
    """
    inverse = 1.0 / np.maximum(depth.astype(np.float32), 1e-3)
    low, high = float(inverse.min()), float(inverse.max())
    return (inverse - low) / max(high - low, 1e-6)


def _edge_groups() -> np.ndarray:
    groups = np.full(
        256, 1, np.int64
    )  # body: its parts have no drawn borders, clothes' colours and depth draw them
    skin = (Segment.HEAD, Segment.NOSE, Segment.EARS, Segment.NECK)
    for segment in skin:
        groups[segment] = 2
    own = (
        Segment.SKY, Segment.GROUND, Segment.PROP, Segment.HAIR, Segment.HAT, Segment.GLASSES,
        Segment.EYES, Segment.BROWS, Segment.MOUTH,
    )  # fmt: skip
    for index, segment in enumerate(own):
        groups[segment] = 3 + index
    for segment in (Segment.RIGHT_SHOE, Segment.LEFT_SHOE):
        groups[segment] = 20
    return groups


_EDGE_GROUPS = _edge_groups()


@njit(cache=True, nogil=True)
def _edge_map(rgb, depth, segments, instances, groups):
    height, width = segments.shape
    edges = np.zeros((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            for step in range(2):
                y2, x2 = y + step, x + 1 - step
                if y2 >= height or x2 >= width:
                    continue
                a, b = groups[segments[y, x]], groups[segments[y2, x2]]
                near, far = depth[y, x], depth[y2, x2]
                mine = near <= far
                if not mine:
                    near, far = far, near
                strength = 0.0
                if instances[y, x] != instances[y2, x2]:
                    strength = 1.0
                elif a != b:
                    strength = 0.75
                ground = segments[y, x] == 1 and segments[y2, x2] == 1
                if not ground and far < 1e8:
                    strength = max(strength, min(1.0, (far - near - 0.05) / 0.10))
                change = 0.0
                for k in range(3):
                    change = max(change, abs(float(rgb[y, x, k]) - float(rgb[y2, x2, k])))
                strength = max(strength, min(1.0, (change - 46.0) / 90.0))
                if strength > 0.0:
                    if mine:
                        edges[y, x] = max(edges[y, x], strength)
                    else:
                        edges[y2, x2] = max(edges[y2, x2], strength)
    soft = np.zeros((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            total = 0.0
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    y2, x2 = min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)
                    weight = (2.0 - abs(dy)) * (2.0 - abs(dx)) / 16.0
                    total += weight * edges[y2, x2]
            soft[y, x] = min(1.0, max(edges[y, x] * 0.85, total * 1.1))
    return soft


def edge_image(render: Render) -> np.ndarray:
    """HED-like edges (H, W) float32 in 0..1, white on black, one pixel wide with a soft rim.

    Borders of people, props, hair, hats, faces' features and shoes, depth steps above 5 cm (not on
    the ground) and colour steps.
    """
    depth = np.minimum(render.depth, np.float32(1e9))
    return _edge_map(render.rgb, depth, render.segments, render.instances, _EDGE_GROUPS)


def as_bytes(image: np.ndarray) -> np.ndarray:
    """A 0..1 float image as uint8 0..255."""
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
