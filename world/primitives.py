"""Rows of the primitive table (capsules, ellipsoids, boxes, rings) and how they are filled; knows
no scene and no image.

Every primitive maps world points to its local frame by ``local = M @ (world - centre)`` (M holds
rotation and scale). Local shapes: CONE = round cone along +z (radii at z = 0 and z = length); BALL
= unit sphere, kept where ``clip . (x, y, z) > clip_offset``; BOX = cube |x|,|y|,|z| <= 1; RING =
flat ring in z = 0.
"""

from __future__ import annotations

import numpy as np
from numba import njit

CONE, BALL, BOX, RING = 0, 1, 2, 3

TYPE, SEGMENT, INSTANCE, BONE = 0, 1, 2, 3
MATRIX = 4  # 9 values, row-major
CENTRE = 13  # 3 values, world metres
SHAPE = 16  # 3 values: radius_a, radius_b, length | - | - | inner, outer, squareness
CLIP = 19  # 4 values: direction, offset (BALL only; direction 0 = not clipped)
COLOUR = 23  # 3 values, sRGB 0..1
TEXTURE = 26  # 0 plain, 1 eye
COLOUR_2 = 27  # 3 values, second colour (iris)
SPHERE_A = 30  # bounding capsule: centre and radius of both ends, world metres
SPHERE_B = 34
WIDTH = 38


@njit(cache=True, nogil=True)
def _head(table, row, kind, segment, instance, bone, red, green, blue):
    for column in range(WIDTH):
        table[row, column] = 0.0
    table[row, TYPE] = kind
    table[row, SEGMENT] = segment
    table[row, INSTANCE] = instance
    table[row, BONE] = bone
    table[row, COLOUR] = red
    table[row, COLOUR + 1] = green
    table[row, COLOUR + 2] = blue


@njit(cache=True, nogil=True)
def add_cone(table, row, segment, instance, bone, a, b, radius_a, radius_b, rgb, side, flatness):
    """Fills a row with the round cone from a to b (world); `side` is its local x axis, local y is
    scaled by `flatness`."""
    _head(table, row, CONE, segment, instance, bone, rgb[0], rgb[1], rgb[2])
    axis = b - a
    length = np.sqrt(np.sum(axis * axis))
    if length < 1e-6:
        axis[0], axis[1], axis[2] = 0.0, 1.0, 0.0
        length = 1e-6
    z = axis / length
    x = side - z * np.sum(side * z)
    norm = np.sqrt(np.sum(x * x))
    if norm < 1e-4:
        x = np.array([z[1], -z[0], 0.0]) + np.array([0.0, z[2], -z[1]])
        x = x - z * np.sum(x * z)
        norm = np.sqrt(np.sum(x * x))
    x = x / norm
    for k in range(3):
        y_k = z[(k + 1) % 3] * x[(k + 2) % 3] - z[(k + 2) % 3] * x[(k + 1) % 3]
        table[row, MATRIX + k] = x[k]
        table[row, MATRIX + 3 + k] = y_k / flatness
        table[row, MATRIX + 6 + k] = z[k]
        table[row, CENTRE + k] = a[k]
        table[row, SPHERE_A + k] = a[k]
        table[row, SPHERE_B + k] = b[k]
    # one end inside the other: a plain sphere
    if abs(radius_a - radius_b) >= length:
        radius_b = radius_a
    table[row, SHAPE] = radius_a
    table[row, SHAPE + 1] = radius_b
    table[row, SHAPE + 2] = length
    table[row, SPHERE_A + 3] = radius_a * max(1.0, flatness)
    table[row, SPHERE_B + 3] = radius_b * max(1.0, flatness)
    return row + 1


@njit(cache=True, nogil=True)
def add_local(table, row, kind, segment, instance, bone, frame, centre, size, rgb):
    """Fills a row with a BALL, BOX or RING of half sizes `size` (metres) whose axes are the
    columns of `frame`."""
    _head(table, row, kind, segment, instance, bone, rgb[0], rgb[1], rgb[2])
    for i in range(3):
        for k in range(3):
            table[row, MATRIX + 3 * i + k] = frame[k, i] / size[i]
    reach = max(size[0], max(size[1], size[2]))
    if kind == BOX:
        reach = np.sqrt(size[0] ** 2 + size[1] ** 2 + size[2] ** 2)
    elif kind == RING:
        reach = np.sqrt(size[0] ** 2 + size[1] ** 2)
    for k in range(3):
        table[row, CENTRE + k] = centre[k]
        table[row, SPHERE_A + k] = centre[k]
        table[row, SPHERE_B + k] = centre[k]
    table[row, SPHERE_A + 3] = reach
    table[row, SPHERE_B + 3] = reach
    return row + 1


@njit(cache=True, nogil=True)
def set_clip(table, row, x, y, z, offset):
    """Keeps only the part of a BALL where x*px + y*py + z*pz > offset in unit-sphere
    coordinates."""
    table[row, CLIP] = x
    table[row, CLIP + 1] = y
    table[row, CLIP + 2] = z
    table[row, CLIP + 3] = offset
