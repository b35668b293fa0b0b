"""A perspective camera: its frame, its projection and the distance that fits people into the
picture; knows no scene."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from world.primitives import BALL, MATRIX, SPHERE_A, SPHERE_B, TYPE


@dataclass(frozen=True)
class Camera:
    """A camera on a sphere around `target`: yaw 0 looks at a person's front; angles in radians,
    lengths in metres."""

    target: tuple[float, float, float]
    distance: float
    yaw: float
    pitch: float
    field_of_view: float

    @property
    def position(self) -> tuple[float, float, float]:
        """World position in metres, at least 0.1 m above the ground."""
        flat = self.distance * math.cos(self.pitch)
        return (
            self.target[0] + flat * math.sin(self.yaw),
            max(0.1, self.target[1] + self.distance * math.sin(self.pitch)),
            self.target[2] + flat * math.cos(self.yaw),
        )

    def frame(self) -> np.ndarray:
        """(12,) position, right, up and forward axes in world coordinates, as the ray-caster reads
        them."""
        px, py, pz = self.position
        fx, fy, fz = self.target[0] - px, self.target[1] - py, self.target[2] - pz
        norm = math.sqrt(fx * fx + fy * fy + fz * fz)
        fx, fy, fz = fx / norm, fy / norm, fz / norm
        flat = math.sqrt(fx * fx + fz * fz)
        rx, rz = -fz / flat, fx / flat
        ux, uy, uz = -fy * rz, rz * fx - rx * fz, rx * fy
        if uy < 0.0:
            ux, uy, uz = -ux, -uy, -uz
        return np.array([px, py, pz, rx, 0.0, rz, ux, uy, uz, fx, fy, fz])

    def focal_px(self, size: int) -> float:
        """Focal length in pixels for a square picture of `size` pixels."""
        return 0.5 * size / math.tan(0.5 * self.field_of_view)

    def project(self, points: np.ndarray, size: int) -> np.ndarray:
        """World points (..., 3) in metres → (..., 3): x, y in pixels of a square picture and depth
        in metres."""
        frame = self.frame()
        relative = points - frame[:3]
        x = relative @ frame[3:6]
        y = relative @ frame[6:9]
        z = relative @ frame[9:12]
        focal = self.focal_px(size)
        safe = np.where(np.abs(z) < 1e-6, 1e-6, z)
        return np.stack([size / 2 + focal * x / safe, size / 2 - focal * y / safe, z], axis=-1)


@njit(cache=True, nogil=True)
def fit_bounds(table, start, stop, yaw, pitch, half_tangent, fill_y, fill_x, shift_x, shift_y):
    """Target (3,) and distance so that rows start..stop fill at most `fill_y` of the height and
    `fill_x` of the width.

    shift_x, shift_y (-1..1) push the content towards the borders of the room that is left.
    """
    target = np.zeros(3)
    count = 0
    for row in range(start, stop):
        for k in range(3):
            target[k] += table[row, SPHERE_A + k] + table[row, SPHERE_B + k]
        count += 2
    target /= count
    distance = 4.0
    cy, sy = np.cos(yaw), np.sin(yaw)
    cp, sp = np.cos(pitch), np.sin(pitch)
    right = np.array([cy, 0.0, -sy])
    up = np.array([-sp * sy, cp, -sp * cy])
    forward = np.array([-cp * sy, -sp, -cp * cy])
    for _ in range(6):
        x0, x1, y0, y1 = 1e9, -1e9, 1e9, -1e9
        for row in range(start, stop):
            for end in range(2):
                at = SPHERE_A if end == 0 else SPHERE_B
                d0 = table[row, at] - target[0]
                d1 = table[row, at + 1] - target[1]
                d2 = table[row, at + 2] - target[2]
                radius = table[row, at + 3] * 0.95
                z = d0 * forward[0] + d1 * forward[1] + d2 * forward[2] + distance
                z = max(z, 0.3)
                scale = 1.0 / (z * half_tangent)
                x = (d0 * right[0] + d2 * right[2]) * scale
                y = (d0 * up[0] + d1 * up[1] + d2 * up[2]) * scale
                x0 = min(x0, x - radius * scale)
                x1 = max(x1, x + radius * scale)
                if table[row, TYPE] == BALL:  # flat ones (brims) reach less far than their sphere
                    tall = 0.0
                    for i in range(3):
                        at = MATRIX + 3 * i
                        square = (
                            table[row, at] ** 2 + table[row, at + 1] ** 2 + table[row, at + 2] ** 2
                        )
                        along = (
                            table[row, at] * up[0]
                            + table[row, at + 1] * up[1]
                            + table[row, at + 2] * up[2]
                        )
                        tall += (along / square) ** 2
                    radius = np.sqrt(tall)
                y0 = min(y0, y - radius * scale)
                y1 = max(y1, y + radius * scale)
        growth = max((y1 - y0) / (2.0 * fill_y), (x1 - x0) / (2.0 * fill_x))
        width, height = (x1 - x0) / growth, (y1 - y0) / growth
        room_x, room_y = max(0.0, 0.97 - width / 2.0), max(0.0, 0.98 - height / 2.0)
        centre_x = 0.5 * (x0 + x1) - shift_x * room_x * growth
        centre_y = 0.5 * (y0 + y1) - shift_y * room_y * growth
        for k in range(3):
            target[k] += (right[k] * centre_x + up[k] * centre_y) * half_tangent * distance
        distance *= growth
    return target, distance
