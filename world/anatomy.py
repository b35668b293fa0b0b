"""The layout of a person's parameter vector and small vector algebra; knows no shapes and no scene.

Body frame: +x the person's left, +y up, +z forward; metres, radians.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Layout of a person's parameter vector.
HEIGHT, BUILD, HEAD_SIZE, POSITION_X, POSITION_Z, HEADING = 0, 1, 2, 3, 4, 5
TORSO = 6  # pitch (forward), roll, yaw in radians
HEAD = 9  # pitch (down), yaw, roll in radians
# eight limbs x (polar, azimuth) in radians: right upper arm and forearm, left upper arm and
# forearm, right thigh and shin, left thigh and shin
LIMBS = 12
# factors around 1: width, length, eye distance, eye size, nose size, brow weight, mouth width, jaw
FACE = 28
SKIN, HAIR, HAT, SHIRT, TROUSERS, SHOES, IRIS, GLASSES = 36, 39, 42, 45, 48, 51, 54, 57  # sRGB
HAIR_STYLE, HAT_KIND, GLASSES_KIND, SLEEVES = 60, 61, 62, 63
PERSON_WIDTH = 64


@njit(cache=True, nogil=True)
def rotation(pitch, yaw, roll):
    """Rotation by roll (about z), then pitch (about x: forward or down), then yaw (about y)."""
    cx, sx = np.cos(pitch), np.sin(pitch)
    cy, sy = np.cos(yaw), np.sin(yaw)
    cz, sz = np.cos(roll), np.sin(roll)
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cx, -sx], [0.0, sx, cx]])
    about_y = np.array([[cy, 0.0, sy], [0.0, 1.0, 0.0], [-sy, 0.0, cy]])
    about_z = np.array([[cz, -sz, 0.0], [sz, cz, 0.0], [0.0, 0.0, 1.0]])
    return matmul(about_y, matmul(about_x, about_z))


@njit(cache=True, nogil=True)
def matmul(a, b):
    """Product of two (3, 3) matrices."""
    out = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            out[i, j] = a[i, 0] * b[0, j] + a[i, 1] * b[1, j] + a[i, 2] * b[2, j]
    return out


@njit(cache=True, nogil=True)
def apply(matrix, x, y, z):
    """Matrix times the vector (x, y, z)."""
    return np.array(
        [
            matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z,
            matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z,
            matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z,
        ]
    )


@njit(cache=True, nogil=True)
def cross(a, b):
    """Cross product of two vectors."""
    return np.array(
        [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    )


@njit(cache=True, nogil=True)
def unit(a):
    """A vector divided by its length."""
    return a / np.sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2])


@njit(cache=True, nogil=True)
def minimal_rotation(start, end):
    """Rotation matrix of the smallest rotation that takes unit vector start to unit vector end."""
    v = cross(start, end)
    c = start[0] * end[0] + start[1] * end[1] + start[2] * end[2]
    k = 1.0 / max(1.0 + c, 1e-3)
    return np.array(
        [
            [v[0] * v[0] * k + c, v[0] * v[1] * k - v[2], v[0] * v[2] * k + v[1]],
            [v[1] * v[0] * k + v[2], v[1] * v[1] * k + c, v[1] * v[2] * k - v[0]],
            [v[2] * v[0] * k - v[1], v[2] * v[1] * k + v[0], v[2] * v[2] * k + c],
        ]
    )
