"""The ray-caster: a table of primitives, a ground plane, a sky and a camera in, arrays of pixels
out; knows no people.

Primary visibility is z-buffered (each primitive tests only rays inside its screen bounds), shading
is one sun with cast shadows over a hemisphere of sky and ground light. All colours are sRGB 0..1
and shaded as they are, so that hues stay where they are named.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from world.intersections import FAR, hit_ball, hit_box, hit_cone, hit_ring
from world.primitives import (
    BALL,
    BONE,
    BOX,
    CENTRE,
    CLIP,
    COLOUR,
    COLOUR_2,
    CONE,
    INSTANCE,
    MATRIX,
    SEGMENT,
    SHAPE,
    SPHERE_A,
    SPHERE_B,
    TEXTURE,
    TYPE,
)
from world.sunlight import (
    AMBIENT,
    GROUND_COLOUR,
    GROUND_KIND,
    GROUND_PHASE,
    HORIZON,
    SUN,
    SUN_STRENGTH,
    TINT,
    ZENITH,
    in_shadow,
    sun_tables,
)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _screen_bounds(table, row, camera, focal, size_x, size_y):
    """Pixel rectangle (x0, x1, y0, y1) that surely holds a primitive, from the spheres at both its
    ends."""
    x0, x1, y0, y1 = FAR, -FAR, FAR, -FAR
    for end in range(2):
        at = SPHERE_A if end == 0 else SPHERE_B
        dx = table[row, at] - camera[0]
        dy = table[row, at + 1] - camera[1]
        dz = table[row, at + 2] - camera[2]
        r = table[row, at + 3]
        x = dx * camera[3] + dy * camera[4] + dz * camera[5]
        y = dx * camera[6] + dy * camera[7] + dz * camera[8]
        z = dx * camera[9] + dy * camera[10] + dz * camera[11]
        if z - r < 0.02:
            if z + r < 0.02:
                continue
            return 0, size_x, 0, size_y
        root = 1.0 / (z * z - r * r)
        spread = r * np.sqrt(max(x * x + z * z - r * r, 0.0))
        x0 = min(x0, (x * z - spread) * root)
        x1 = max(x1, (x * z + spread) * root)
        spread = r * np.sqrt(max(y * y + z * z - r * r, 0.0))
        y0 = min(y0, (y * z - spread) * root)
        y1 = max(y1, (y * z + spread) * root)
    half_x, half_y = size_x * 0.5, size_y * 0.5
    left = int(np.floor(max(0.0, min(half_x + focal * x0, size_x))))
    right = int(np.ceil(max(0.0, min(half_x + focal * x1 + 1.0, size_x))))
    top = int(np.floor(max(0.0, min(half_y - focal * y1, size_y))))
    bottom = int(np.ceil(max(0.0, min(half_y - focal * y0 + 1.0, size_y))))
    return left, right, top, bottom


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def cast_primary(table, count, camera, focal, depth, owner):
    """Fills the z-buffer: depth (z along the view axis, metres) and owner (row of the table, -1
    ground, -2 sky)."""
    size_y, size_x = depth.shape
    inverse_focal = 1.0 / focal
    height = camera[1]
    for i in range(size_y):
        v = (size_y * 0.5 - (i + 0.5)) * inverse_focal
        for j in range(size_x):
            u = ((j + 0.5) - size_x * 0.5) * inverse_focal
            dy = camera[10] + u * camera[4] + v * camera[7]
            if dy < -1e-4:
                depth[i, j] = -height / dy
                owner[i, j] = -1
            else:
                depth[i, j] = FAR
                owner[i, j] = -2
    for row in range(count):
        left, right, top, bottom = _screen_bounds(table, row, camera, focal, size_x, size_y)
        if left >= right or top >= bottom:
            continue
        kind = int(table[row, TYPE])
        m = table[row, MATRIX : MATRIX + 9]
        ex = camera[0] - table[row, CENTRE]
        ey = camera[1] - table[row, CENTRE + 1]
        ez = camera[2] - table[row, CENTRE + 2]
        ox = m[0] * ex + m[1] * ey + m[2] * ez
        oy = m[3] * ex + m[4] * ey + m[5] * ez
        oz = m[6] * ex + m[7] * ey + m[8] * ez
        rx = m[0] * camera[3] + m[1] * camera[4] + m[2] * camera[5]
        ry = m[3] * camera[3] + m[4] * camera[4] + m[5] * camera[5]
        rz = m[6] * camera[3] + m[7] * camera[4] + m[8] * camera[5]
        ux = m[0] * camera[6] + m[1] * camera[7] + m[2] * camera[8]
        uy = m[3] * camera[6] + m[4] * camera[7] + m[5] * camera[8]
        uz = m[6] * camera[6] + m[7] * camera[7] + m[8] * camera[8]
        fx = m[0] * camera[9] + m[1] * camera[10] + m[2] * camera[11]
        fy = m[3] * camera[9] + m[4] * camera[10] + m[5] * camera[11]
        fz = m[6] * camera[9] + m[7] * camera[10] + m[8] * camera[11]
        p0, p1, p2 = table[row, SHAPE], table[row, SHAPE + 1], table[row, SHAPE + 2]
        c0, c1, c2, c3 = (
            table[row, CLIP],
            table[row, CLIP + 1],
            table[row, CLIP + 2],
            table[row, CLIP + 3],
        )
        clipped = c0 != 0.0 or c1 != 0.0 or c2 != 0.0
        for i in range(top, bottom):
            v = (size_y * 0.5 - (i + 0.5)) * inverse_focal
            bx = fx + v * ux
            by = fy + v * uy
            bz = fz + v * uz
            for j in range(left, right):
                u = ((j + 0.5) - size_x * 0.5) * inverse_focal
                dx = bx + u * rx
                dy = by + u * ry
                dz = bz + u * rz
                if kind == CONE:
                    t = hit_cone(ox, oy, oz, dx, dy, dz, p0, p1, p2)
                elif kind == BALL:
                    t = hit_ball(ox, oy, oz, dx, dy, dz, c0, c1, c2, c3, clipped)
                elif kind == BOX:
                    t = hit_box(ox, oy, oz, dx, dy, dz)
                else:
                    t = hit_ring(ox, oy, oz, dx, dy, dz, p0, p1, p2)
                if t > 0.02 and t < depth[i, j]:
                    depth[i, j] = t
                    owner[i, j] = row


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _lattice(i, j):
    n = (i * 374761393 + j * 668265263) & 0x7FFFFFFF
    n = ((n ^ (n >> 13)) * 1274126177) & 0x7FFFFFFF
    return ((n ^ (n >> 16)) & 0xFFFF) / 65535.0


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _noise(x, y):
    """Smooth value noise 0..1 with features one unit wide."""
    i, j = int(np.floor(x)), int(np.floor(y))
    a, b = x - i, y - j
    a = a * a * (3.0 - 2.0 * a)
    b = b * b * (3.0 - 2.0 * b)
    top = _lattice(i, j) * (1.0 - a) + _lattice(i + 1, j) * a
    bottom = _lattice(i, j + 1) * (1.0 - a) + _lattice(i + 1, j + 1) * a
    return top * (1.0 - b) + bottom * b


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _ground_brightness(x, z, kind, phase, distance):
    fade = 1.0 / (1.0 + 0.012 * distance * distance)
    if kind == 4:  # planks
        plank = np.floor(x / 0.42 + phase)
        tone = 0.10 * (_lattice(int(plank), 7) - 0.5)
        edge = abs(x / 0.42 + phase - plank - 0.5) * 2.0
        seam = -0.22 * max(0.0, (edge - 0.86) / 0.14)
        return 1.0 + (tone + seam) * fade
    grain = 0.7 * (_noise(x * 1.1 + phase, z * 1.1) - 0.5) + 0.3 * (
        _noise(x * 4.0, z * 4.0 + phase) - 0.5
    )
    strength = 0.26 if kind == 0 else (0.14 if kind == 1 else (0.07 if kind == 2 else 0.12))
    return 1.0 + strength * grain * fade


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def shade(table, count, bones, camera, focal, light, depth, owner, supersample, with_labels,
          rgb, out_depth, out_segment, out_instance, out_point):  # fmt: skip
    """Shades the z-buffer into rgb (H, W, 3) uint8 and, with labels, averages depth and canonical
    point over the subsamples of each pixel's commonest (segment, instance)."""
    size_y, size_x = rgb.shape[0], rgb.shape[1]
    inverse_focal = 1.0 / focal
    sun_local = np.empty((count + 1, 3))
    sun_box = np.empty((count + 1, 5))
    sun_basis = np.empty(9)
    groups, cells = sun_tables(table, count, light, sun_local, sun_box, sun_basis)
    sx, sy, sz = light[SUN], light[SUN + 1], light[SUN + 2]
    strength, ambient = light[SUN_STRENGTH], light[AMBIENT]
    ground_kind, phase = int(light[GROUND_KIND]), light[GROUND_PHASE]
    half_x, half_y = size_x * supersample * 0.5, size_y * supersample * 0.5
    samples = supersample * supersample
    keys = np.empty(samples, np.int64)
    depths = np.empty(samples)
    points = np.empty((samples, 3))
    for py in range(size_y):
        for px in range(size_x):
            red = green = blue = 0.0
            brightness = -1.0
            sky_known = False
            sky_red = sky_green = sky_blue = 0.0
            for sample in range(samples):
                i = py * supersample + sample // supersample
                j = px * supersample + sample % supersample
                v = (half_y - (i + 0.5)) * inverse_focal
                u = ((j + 0.5) - half_x) * inverse_focal
                dx = camera[9] + u * camera[3] + v * camera[6]
                dy = camera[10] + u * camera[4] + v * camera[7]
                dz = camera[11] + u * camera[5] + v * camera[8]
                row = owner[i, j]
                t = depth[i, j]
                if row == -2:
                    if sky_known and not with_labels:
                        red += sky_red
                        green += sky_green
                        blue += sky_blue
                        continue
                    sky_known = True
                    length = np.sqrt(dx * dx + dy * dy + dz * dz)
                    k = min(1.0, max(0.0, dy / length * 1.7))
                    k = np.sqrt(k)
                    if not (sky_known and sample > 0 and sky_red > 0.0):
                        sky_red = light[HORIZON] + (light[ZENITH] - light[HORIZON]) * k
                        sky_green = (
                            light[HORIZON + 1] + (light[ZENITH + 1] - light[HORIZON + 1]) * k
                        )
                        sky_blue = light[HORIZON + 2] + (light[ZENITH + 2] - light[HORIZON + 2]) * k
                    red += sky_red
                    green += sky_green
                    blue += sky_blue
                    if with_labels:
                        keys[sample] = 0
                        depths[sample] = FAR
                        points[sample, 0] = dx / length
                        points[sample, 1] = dy / length
                        points[sample, 2] = dz / length
                    continue
                x = camera[0] + t * dx
                y = camera[1] + t * dy
                z = camera[2] + t * dz
                if row == -1:
                    if (
                        brightness < 0.0 or ground_kind == 4
                    ):  # soft grain: once a pixel; planks: every sample
                        brightness = _ground_brightness(x, z, ground_kind, phase, t)
                    r, g, b = (
                        light[GROUND_COLOUR] * brightness,
                        light[GROUND_COLOUR + 1] * brightness,
                        light[GROUND_COLOUR + 2] * brightness,
                    )
                    nx, ny, nz = 0.0, 1.0, 0.0
                    if with_labels:
                        keys[sample] = 1
                        depths[sample] = t
                        points[sample, 0] = x
                        points[sample, 1] = 0.0
                        points[sample, 2] = z
                else:
                    ex = x - table[row, CENTRE]
                    ey = y - table[row, CENTRE + 1]
                    ez = z - table[row, CENTRE + 2]
                    lx = (
                        table[row, MATRIX] * ex
                        + table[row, MATRIX + 1] * ey
                        + table[row, MATRIX + 2] * ez
                    )
                    ly = (
                        table[row, MATRIX + 3] * ex
                        + table[row, MATRIX + 4] * ey
                        + table[row, MATRIX + 5] * ez
                    )
                    lz = (
                        table[row, MATRIX + 6] * ex
                        + table[row, MATRIX + 7] * ey
                        + table[row, MATRIX + 8] * ez
                    )
                    kind = int(table[row, TYPE])
                    ax, ay, az = lx, ly, lz
                    if kind == CONE:
                        slope = table[row, SHAPE] - table[row, SHAPE + 1]
                        d2 = table[row, SHAPE + 2] * table[row, SHAPE + 2] - slope * slope
                        along = table[row, SHAPE + 2] * lz - table[row, SHAPE] * slope
                        if along >= d2:
                            az = lz - table[row, SHAPE + 2]
                        elif along > 0.0:
                            ax, ay, az = d2 * lx, d2 * ly, d2 * lz - table[row, SHAPE + 2] * along
                    elif kind == BOX:
                        bx, by, bz = abs(lx), abs(ly), abs(lz)
                        if bx > by and bx > bz:
                            ay, az = 0.0, 0.0
                        elif by > bz:
                            ax, az = 0.0, 0.0
                        else:
                            ax, ay = 0.0, 0.0
                    elif kind != BALL:
                        ax, ay, az = 0.0, 0.0, 1.0
                    nx = (
                        table[row, MATRIX] * ax
                        + table[row, MATRIX + 3] * ay
                        + table[row, MATRIX + 6] * az
                    )
                    ny = (
                        table[row, MATRIX + 1] * ax
                        + table[row, MATRIX + 4] * ay
                        + table[row, MATRIX + 7] * az
                    )
                    nz = (
                        table[row, MATRIX + 2] * ax
                        + table[row, MATRIX + 5] * ay
                        + table[row, MATRIX + 8] * az
                    )
                    if nx * dx + ny * dy + nz * dz > 0.0:
                        nx, ny, nz = -nx, -ny, -nz
                    scale = 1.0 / np.sqrt(nx * nx + ny * ny + nz * nz + 1e-20)
                    nx *= scale
                    ny *= scale
                    nz *= scale
                    r, g, b = table[row, COLOUR], table[row, COLOUR + 1], table[row, COLOUR + 2]
                    if table[row, TEXTURE] > 0.5 and lx * lx + ly * ly * 0.62 < 0.36:
                        r, g, b = (
                            table[row, COLOUR_2],
                            table[row, COLOUR_2 + 1],
                            table[row, COLOUR_2 + 2],
                        )
                        if lx * lx + ly * ly * 0.62 < 0.09:
                            r, g, b = 0.05, 0.05, 0.05
                    if with_labels:
                        bone = int(table[row, BONE])
                        keys[sample] = int(table[row, SEGMENT]) + 256 * int(table[row, INSTANCE])
                        depths[sample] = t
                        ex = x - bones[bone, 9]
                        ey = y - bones[bone, 10]
                        ez = z - bones[bone, 11]
                        for k in range(3):
                            points[sample, k] = (
                                bones[bone, 3 * k] * ex
                                + bones[bone, 3 * k + 1] * ey
                                + bones[bone, 3 * k + 2] * ez
                            )
                facing = nx * sx + ny * sy + nz * sz
                lit = 0.0
                if facing > 0.0:
                    lit = facing
                    if in_shadow(
                        x + nx * 0.012,
                        y + ny * 0.012,
                        z + nz * 0.012,
                        table,
                        groups,
                        cells,
                        sun_local,
                        sun_box,
                        sun_basis,
                        row,
                    ):
                        lit = 0.0
                hemisphere = 0.5 + 0.5 * ny
                amount = ambient * (0.72 + 0.28 * hemisphere) + strength * lit
                grazing = 0.0
                if row >= 0:
                    length = np.sqrt(dx * dx + dy * dy + dz * dz)
                    grazing = 1.0 + (nx * dx + ny * dy + nz * dz) / length
                    grazing = 0.16 * grazing * grazing * grazing * hemisphere
                r = r * amount * light[TINT] + grazing * light[HORIZON]
                g = g * amount * light[TINT + 1] + grazing * light[HORIZON + 1]
                b = b * amount * light[TINT + 2] + grazing * light[HORIZON + 2]
                if row == -1:
                    haze = t * t / (t * t + 900.0)
                    r += (light[HORIZON] - r) * haze
                    g += (light[HORIZON + 1] - g) * haze
                    b += (light[HORIZON + 2] - b) * haze
                red += min(r, 1.0)
                green += min(g, 1.0)
                blue += min(b, 1.0)
            scale = 255.0 / samples
            rgb[py, px, 0] = np.uint8(min(255.0, red * scale + 0.5))
            rgb[py, px, 1] = np.uint8(min(255.0, green * scale + 0.5))
            rgb[py, px, 2] = np.uint8(min(255.0, blue * scale + 0.5))
            if with_labels:
                best, best_votes = 0, 0
                for a in range(samples):
                    votes = 0
                    for c in range(samples):
                        if keys[c] == keys[a]:
                            votes += 1
                    if votes > best_votes or (votes == best_votes and depths[a] < depths[best]):
                        best, best_votes = a, votes
                key = keys[best]
                total, q0, q1, q2 = 0.0, 0.0, 0.0, 0.0
                for a in range(samples):
                    if keys[a] == key:
                        total += depths[a]
                        q0 += points[a, 0]
                        q1 += points[a, 1]
                        q2 += points[a, 2]
                out_segment[py, px] = np.uint8(key & 255)
                out_instance[py, px] = np.uint8(key >> 8)
                out_depth[py, px] = total / best_votes if key != 0 else FAR
                out_point[py, px, 0] = q0 / best_votes
                out_point[py, px, 1] = q1 / best_votes
                out_point[py, px, 2] = q2 / best_votes
