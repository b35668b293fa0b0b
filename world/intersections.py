"""Rays against shapes in their local frames, in closed form; knows one ray and one shape."""

from __future__ import annotations

import numpy as np
from numba import njit

#: Farther than anything.
FAR = 1e9


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def hit_ball(ox, oy, oz, dx, dy, dz, clip_x, clip_y, clip_z, clip_offset, clipped):
    """Ray parameter where a ray first meets the unit sphere, or its kept part; -1 if nowhere."""
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - 1.0
    h = b * b - a * c
    if h < 0.0:
        return -1.0
    h = np.sqrt(h)
    t = (-b - h) / a
    if not clipped:
        return t
    if (
        t > 0.0
        and clip_x * (ox + t * dx) + clip_y * (oy + t * dy) + clip_z * (oz + t * dz) > clip_offset
    ):
        return t
    t = (-b + h) / a
    if clip_x * (ox + t * dx) + clip_y * (oy + t * dy) + clip_z * (oz + t * dz) > clip_offset:
        return t
    return -1.0


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def hit_cone(ox, oy, oz, dx, dy, dz, radius_a, radius_b, length):
    """Ray parameter where a ray first meets a round cone along +z (after Quilez); -1 if nowhere."""
    norm = np.sqrt(dx * dx + dy * dy + dz * dz)
    inverse = 1.0 / norm
    dx *= inverse
    dy *= inverse
    dz *= inverse
    rr = radius_a - radius_b
    m0 = length * length
    m1 = length * oz
    m2 = length * dz
    m3 = ox * dx + oy * dy + oz * dz
    m5 = ox * ox + oy * oy + oz * oz
    d2 = m0 - rr * rr
    k2 = d2 - m2 * m2
    k1 = d2 * m3 - m1 * m2 + m2 * rr * radius_a
    k0 = d2 * m5 - m1 * m1 + m1 * rr * radius_a * 2.0 - m0 * radius_a * radius_a
    h = k1 * k1 - k0 * k2
    if h < 0.0:
        return -1.0
    t = (-np.sqrt(h) - k1) / k2
    y = m1 - radius_a * rr + t * m2
    if y > 0.0 and y < d2:
        return t * inverse
    best = FAR
    h1 = m3 * m3 - m5 + radius_a * radius_a
    if h1 > 0.0:
        best = -m3 - np.sqrt(h1)
    bz = oz - length
    m6 = ox * dx + oy * dy + bz * dz
    h2 = m6 * m6 - (ox * ox + oy * oy + bz * bz) + radius_b * radius_b
    if h2 > 0.0:
        t = -m6 - np.sqrt(h2)
        if t < best:
            best = t
    if best >= FAR:
        return -1.0
    return best * inverse


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def hit_box(ox, oy, oz, dx, dy, dz):
    """Ray parameter where a ray enters the cube of half size 1; -1 if nowhere."""
    near = -FAR
    far = FAR
    for axis in range(3):
        o = ox if axis == 0 else (oy if axis == 1 else oz)
        d = dx if axis == 0 else (dy if axis == 1 else dz)
        if abs(d) < 1e-9:
            if abs(o) > 1.0:
                return -1.0
        else:
            t1 = (-1.0 - o) / d
            t2 = (1.0 - o) / d
            if t1 > t2:
                t1, t2 = t2, t1
            near = max(near, t1)
            far = min(far, t2)
    if near > far:
        return -1.0
    return near


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def hit_ring(ox, oy, oz, dx, dy, dz, inner, outer, squareness):
    """Ray parameter where a ray meets a flat ring in z = 0; -1 if nowhere."""
    if abs(dz) < 1e-9:
        return -1.0
    t = -oz / dz
    x = ox + t * dx
    y = oy + t * dy
    r = (x * x * x * x + y * y * y * y) ** 0.25 if squareness > 0.5 else np.sqrt(x * x + y * y)
    if r < inner or r > outer:
        return -1.0
    return t
