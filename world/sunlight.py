"""Cast shadows: the sun, a grid of who can hide it, and the test of one point; knows no camera."""

from __future__ import annotations

import numpy as np
from numba import njit

from world.intersections import FAR, hit_ball, hit_box, hit_cone
from world.primitives import (
    BALL,
    BOX,
    CENTRE,
    CLIP,
    CONE,
    INSTANCE,
    MATRIX,
    SHAPE,
    SPHERE_A,
    SPHERE_B,
    TYPE,
)

# Layout of the light vector.
SUN, SUN_STRENGTH, AMBIENT = 0, 3, 4
GROUND_COLOUR, GROUND_KIND, GROUND_PHASE = 5, 8, 9
HORIZON, ZENITH, TINT = 10, 13, 16
LIGHT_WIDTH = 19

# Shadow rays look only at the primitives whose bounds across the sun's rays touch their cell of a
# grid per instance.
GRID, MAX_GROUPS, MAX_GROUP_ROWS = 24, 8, 56


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy", inline="always")
def hidden_by(px, py, pz, table, row, sun_local):
    """Whether one primitive lies between a world point and the sun."""
    ex = px - table[row, CENTRE]
    ey = py - table[row, CENTRE + 1]
    ez = pz - table[row, CENTRE + 2]
    ox = table[row, MATRIX] * ex + table[row, MATRIX + 1] * ey + table[row, MATRIX + 2] * ez
    oy = table[row, MATRIX + 3] * ex + table[row, MATRIX + 4] * ey + table[row, MATRIX + 5] * ez
    oz = table[row, MATRIX + 6] * ex + table[row, MATRIX + 7] * ey + table[row, MATRIX + 8] * ez
    dx, dy, dz = sun_local[row, 0], sun_local[row, 1], sun_local[row, 2]
    kind = int(table[row, TYPE])
    if kind == CONE:
        t = hit_cone(
            ox, oy, oz, dx, dy, dz, table[row, SHAPE], table[row, SHAPE + 1], table[row, SHAPE + 2]
        )
    elif kind == BALL:
        c0, c1, c2 = table[row, CLIP], table[row, CLIP + 1], table[row, CLIP + 2]
        clipped = c0 != 0.0 or c1 != 0.0 or c2 != 0.0
        t = hit_ball(ox, oy, oz, dx, dy, dz, c0, c1, c2, table[row, CLIP + 3], clipped)
    elif kind == BOX:
        t = hit_box(ox, oy, oz, dx, dy, dz)
    else:
        return False
    return t > 0.0


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy", inline="always")
def in_shadow(px, py, pz, table, groups, cells, sun_local, sun_box, sun_basis, self_row):
    """Whether the sun is hidden from a world point; `self_row` never shades itself."""
    u = px * sun_basis[0] + py * sun_basis[1] + pz * sun_basis[2]
    v = px * sun_basis[3] + py * sun_basis[4] + pz * sun_basis[5]
    w = px * sun_basis[6] + py * sun_basis[7] + pz * sun_basis[8]
    for group in range(groups.shape[0]):
        if (
            u < groups[group, 0]
            or u > groups[group, 1]
            or v < groups[group, 2]
            or v > groups[group, 3]
            or w > groups[group, 4]
        ):
            continue
        column = min(GRID - 1, int((u - groups[group, 0]) * groups[group, 5]))
        line = min(GRID - 1, int((v - groups[group, 2]) * groups[group, 6]))
        cell = line * GRID + column
        for k in range(1, cells[group, cell, 0] + 1):
            row = cells[group, cell, k]
            if (
                u < sun_box[row, 0]
                or u > sun_box[row, 1]
                or v < sun_box[row, 2]
                or v > sun_box[row, 3]
                or w > sun_box[row, 4]
                or row == self_row
            ):
                continue
            if hidden_by(px, py, pz, table, row, sun_local):
                return True
    return False


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def sun_tables(table, count, light, sun_local, sun_box, sun_basis):
    """Sun direction in each local frame and bounds across the sun's rays of each primitive and
    (returned) each instance."""
    sx, sy, sz = light[SUN], light[SUN + 1], light[SUN + 2]
    norm = np.sqrt(sx * sx + sz * sz)
    sun_basis[0], sun_basis[1], sun_basis[2] = sz / norm, 0.0, -sx / norm
    sun_basis[3] = sy * sun_basis[2]
    sun_basis[4] = sz * sun_basis[0] - sx * sun_basis[2]
    sun_basis[5] = -sy * sun_basis[0]
    sun_basis[6], sun_basis[7], sun_basis[8] = sx, sy, sz
    groups = 0
    bounds = np.empty((MAX_GROUPS, 7))
    member = np.empty(count, np.int64)
    current = -1
    for row in range(count):
        for i in range(3):
            sun_local[row, i] = (
                table[row, MATRIX + 3 * i] * sx
                + table[row, MATRIX + 3 * i + 1] * sy
                + table[row, MATRIX + 3 * i + 2] * sz
            )
        sun_box[row, 0] = sun_box[row, 2] = FAR
        sun_box[row, 1] = sun_box[row, 3] = sun_box[row, 4] = -FAR
        for end in range(2):
            at = SPHERE_A if end == 0 else SPHERE_B
            x, y, z, r = table[row, at], table[row, at + 1], table[row, at + 2], table[row, at + 3]
            u = x * sun_basis[0] + y * sun_basis[1] + z * sun_basis[2]
            v = x * sun_basis[3] + y * sun_basis[4] + z * sun_basis[5]
            w = x * sx + y * sy + z * sz
            sun_box[row, 0] = min(sun_box[row, 0], u - r)
            sun_box[row, 1] = max(sun_box[row, 1], u + r)
            sun_box[row, 2] = min(sun_box[row, 2], v - r)
            sun_box[row, 3] = max(sun_box[row, 3], v + r)
            sun_box[row, 4] = max(sun_box[row, 4], w + r)
        instance = int(table[row, INSTANCE])
        if instance != current:
            current = instance
            bounds[groups, 0] = bounds[groups, 2] = FAR
            bounds[groups, 1] = bounds[groups, 3] = bounds[groups, 4] = -FAR
            groups += 1
        last = groups - 1
        member[row] = last
        for k in (0, 2):
            bounds[last, k] = min(bounds[last, k], sun_box[row, k])
            bounds[last, k + 1] = max(bounds[last, k + 1], sun_box[row, k + 1])
        bounds[last, 4] = max(bounds[last, 4], sun_box[row, 4])
    cells = np.empty((groups, GRID * GRID, 1 + MAX_GROUP_ROWS), np.int16)
    for group in range(groups):
        bounds[group, 5] = GRID / (bounds[group, 1] - bounds[group, 0])
        bounds[group, 6] = GRID / (bounds[group, 3] - bounds[group, 2])
        for cell in range(GRID * GRID):
            cells[group, cell, 0] = 0
    for row in range(count):
        group = member[row]
        left = int((sun_box[row, 0] - bounds[group, 0]) * bounds[group, 5])
        right = min(GRID - 1, int((sun_box[row, 1] - bounds[group, 0]) * bounds[group, 5]))
        low = int((sun_box[row, 2] - bounds[group, 2]) * bounds[group, 6])
        high = min(GRID - 1, int((sun_box[row, 3] - bounds[group, 2]) * bounds[group, 6]))
        for line in range(low, high + 1):
            for column in range(left, right + 1):
                cell = line * GRID + column
                filled = cells[group, cell, 0] + 1
                cells[group, cell, 0] = filled
                cells[group, cell, filled] = row
    return bounds[:groups].copy(), cells
