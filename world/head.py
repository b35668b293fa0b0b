"""Head, face, hair, hats and glasses as primitives; knows one head, but no body and no scene."""

from __future__ import annotations

import numpy as np
from numba import njit

from world.anatomy import (
    FACE,
    GLASSES,
    GLASSES_KIND,
    HAIR,
    HAIR_STYLE,
    HAT,
    HAT_KIND,
    HEAD_SIZE,
    HEIGHT,
    IRIS,
    SKIN,
    apply,
)
from world.primitives import (
    BALL,
    COLOUR_2,
    RING,
    SHAPE,
    TEXTURE,
    add_cone,
    add_local,
    set_clip,
)


@njit(cache=True, nogil=True)
def _on_head(face, skull, centre, radii, x, y, out):
    """World point on (out = 1) or above the front of the head ellipsoid at lateral x and height y
    (metres)."""
    rest = 1.0 - (x / radii[0]) ** 2 - (y / radii[1]) ** 2
    z = radii[2] * np.sqrt(max(rest, 0.05)) * out
    return centre + apply(skull, x, y, z)


@njit(cache=True, nogil=True)
def build_head(person, instance, bone, skull, head, table, row, keypoints):
    """Fills the primitives of head, face, hair, hat and glasses and the five face key points;
    returns the next row."""
    size = person[HEIGHT] * person[HEAD_SIZE]
    face = person[FACE : FACE + 8]
    skin = person[SKIN : SKIN + 3]
    hair = person[HAIR : HAIR + 3]
    hat_colour = person[HAT : HAT + 3]
    radii = np.array([0.098 * face[0], 0.128 * face[1], 0.112]) * size
    row = add_local(table, row, BALL, 3, instance, bone, skull, head, radii, skin)
    jaw_size = np.array([0.078 * face[7] * face[0], 0.072, 0.082]) * size
    jaw = head + apply(skull, 0.0, -0.066 * face[1] * size, 0.026 * size)
    row = add_local(table, row, BALL, 3, instance, bone, skull, jaw, jaw_size, skin)
    lateral = apply(skull, 1.0, 0.0, 0.0)

    eye_x = 0.041 * face[2] * size
    eye_y = 0.006 * size
    eye_size = np.array([0.0225, 0.0175, 0.012]) * (size * face[3])
    white = np.array([0.97, 0.97, 0.97])
    brow_radius = 0.0075 * size * face[5]
    for side in range(2):
        sign = -1.0 if side == 0 else 1.0
        eye = _on_head(face, skull, head, radii, sign * eye_x, eye_y, 0.985)
        for k in range(3):
            table[row, COLOUR_2 + k] = 0.0
        row = add_local(table, row, BALL, 7, instance, bone, skull, eye, eye_size, white)
        table[row - 1, TEXTURE] = 1.0
        for k in range(3):
            table[row - 1, COLOUR_2 + k] = person[IRIS + k]
        keypoints[14 + side] = eye
        brow_y = eye_y + eye_size[1] + 0.017 * size
        a = _on_head(
            face, skull, head, radii, sign * (eye_x - 0.020 * size), brow_y + 0.003 * size, 1.0
        )
        b = _on_head(
            face, skull, head, radii, sign * (eye_x + 0.024 * size), brow_y - 0.002 * size, 1.0
        )
        brow_colour = hair * 0.8 if person[HAIR_STYLE] > 0.5 else skin * 0.55
        row = add_cone(
            table,
            row,
            8,
            instance,
            bone,
            a,
            b,
            brow_radius,
            brow_radius * 0.8,
            brow_colour,
            lateral,
            1.0,
        )
        ear = head + apply(skull, sign * radii[0] * 0.98, -0.004 * size, -0.008 * size)
        ear_size = np.array([0.014, 0.030, 0.021]) * size
        row = add_local(table, row, BALL, 11, instance, bone, skull, ear, ear_size, skin * 0.95)
        keypoints[16 + side] = ear + apply(skull, sign * ear_size[0], 0.0, 0.0)

    nose_top = _on_head(face, skull, head, radii, 0.0, -0.004 * size, 1.0)
    nose_tip = _on_head(face, skull, head, radii, 0.0, -0.036 * size, 1.0) + apply(
        skull, 0.0, 0.0, 0.010 * size * face[4]
    )
    row = add_cone(
        table, row, 9, instance, bone, nose_top, nose_tip, 0.008 * size, 0.0155 * size * face[4],
        np.array([skin[0], skin[1] * 0.93, skin[2] * 0.91]), lateral, 1.0,
    )  # fmt: skip
    keypoints[0] = nose_tip + apply(skull, 0.0, 0.0, 0.0155 * size * face[4])

    lips = np.array([skin[0] * 0.55 + 0.27, skin[1] * 0.45, skin[2] * 0.45 + 0.04])
    mouth_x = 0.024 * face[6] * size
    mouth_z = jaw_size[2] * np.sqrt(1.0 - (mouth_x / jaw_size[0]) ** 2 - 0.01)
    a = jaw + apply(skull, -mouth_x, -0.007 * size, mouth_z + 0.001 * size)
    b = jaw + apply(skull, mouth_x, -0.007 * size, mouth_z + 0.001 * size)
    middle = jaw + apply(skull, 0.0, -0.010 * size, jaw_size[2] * 0.992)
    row = add_cone(
        table, row, 10, instance, bone, a, middle, 0.0075 * size, 0.0095 * size, lips, lateral, 1.0
    )
    row = add_cone(
        table, row, 10, instance, bone, b, middle, 0.0075 * size, 0.0095 * size, lips, lateral, 1.0
    )

    row = _add_hair(person, instance, bone, skull, head, radii, hair, table, row, size)
    row = _add_hat(person, instance, bone, skull, head, radii, hat_colour, table, row, size)
    return _add_glasses(person, instance, bone, skull, head, radii, table, row, size, eye_x, eye_y)


@njit(cache=True, nogil=True)
def _add_hair(person, instance, bone, skull, head, radii, hair, table, row, size):
    style = int(person[HAIR_STYLE])
    covered = person[HAT_KIND] > 0.5
    if style == 0:
        return row
    centre = head + apply(skull, 0.0, 0.010 * size, -0.010 * size)
    if style == 3:  # curly: a thick cloud
        shell = radii * 1.0 + np.array([0.045, 0.04, 0.04]) * size
        centre = head + apply(skull, 0.0, 0.026 * size, -0.026 * size)
        if covered:
            shell = radii + np.array([0.04, 0.012, 0.03]) * size
        row = add_local(table, row, BALL, 4, instance, bone, skull, centre, shell, hair)
        set_clip(table, row - 1, 0.0, 0.60, -0.80, -0.10)
        return row
    shell = radii + np.array([0.014, 0.016, 0.018]) * size
    row = add_local(table, row, BALL, 4, instance, bone, skull, centre, shell, hair)
    set_clip(table, row - 1, 0.0, 0.68, -0.73, 0.02)
    if style == 2:  # long: falls to the shoulders at both sides and behind
        for side in range(2):
            sign = -1.0 if side == 0 else 1.0
            a = head + apply(skull, sign * radii[0] * 0.93, 0.02 * size, -0.03 * size)
            b = head + apply(skull, sign * radii[0] * 1.02, -0.20 * size, -0.02 * size)
            lateral = apply(skull, 0.0, 0.0, 1.0)
            row = add_cone(
                table, row, 4, instance, bone, a, b, 0.034 * size, 0.038 * size, hair, lateral, 0.75
            )
        back = head + apply(skull, 0.0, -0.075 * size, -0.068 * size)
        spread = np.array([0.098, 0.155, 0.062]) * size
        row = add_local(table, row, BALL, 4, instance, bone, skull, back, spread, hair)
    elif style == 4:  # bun: a ball on top, or behind under a hat
        if covered:
            bun = head + apply(skull, 0.0, -0.03 * size, -0.145 * size)
        else:
            bun = head + apply(skull, 0.0, 0.150 * size, -0.050 * size)
        ball = np.array([0.055, 0.052, 0.055]) * size
        row = add_local(table, row, BALL, 4, instance, bone, skull, bun, ball, hair)
    return row


@njit(cache=True, nogil=True)
def _add_hat(person, instance, bone, skull, head, radii, colour, table, row, size):
    kind = int(person[HAT_KIND])
    if kind == 0:
        return row
    centre = head + apply(skull, 0.0, 0.022 * size, -0.008 * size)
    if kind == 1:  # cap with a visor
        dome = radii + np.array([0.020, 0.020, 0.024]) * size
        row = add_local(table, row, BALL, 5, instance, bone, skull, centre, dome, colour)
        set_clip(table, row - 1, 0.0, 1.0, 0.0, 0.20)
        visor = head + apply(skull, 0.0, 0.058 * size, 0.115 * size)
        flat = np.array([0.090, 0.011, 0.090]) * size
        row = add_local(table, row, BALL, 5, instance, bone, skull, visor, flat, colour * 0.85)
    elif kind == 2:  # beanie: deep, tall, with a rim
        dome = radii + np.array([0.022, 0.040, 0.026]) * size
        row = add_local(table, row, BALL, 5, instance, bone, skull, centre, dome, colour)
        set_clip(table, row - 1, 0.0, 0.98, -0.18, 0.22)
        top = head + apply(skull, 0.0, 0.205 * size, -0.01 * size)
        ball = np.array([0.03, 0.03, 0.03]) * size
        row = add_local(table, row, BALL, 5, instance, bone, skull, top, ball, colour * 0.6 + 0.4)
    else:  # hat with a broad brim
        dome = radii + np.array([0.012, 0.035, 0.014]) * size
        row = add_local(table, row, BALL, 5, instance, bone, skull, centre, dome, colour)
        set_clip(table, row - 1, 0.0, 1.0, 0.0, 0.25)
        brim = head + apply(skull, 0.0, 0.068 * size, -0.005 * size)
        flat = np.array([0.185, 0.014, 0.185]) * size
        row = add_local(table, row, BALL, 5, instance, bone, skull, brim, flat, colour * 0.9)
    return row


@njit(cache=True, nogil=True)
def _add_glasses(person, instance, bone, skull, head, radii, table, row, size, eye_x, eye_y):
    kind = int(person[GLASSES_KIND])
    if kind == 0:
        return row
    colour = person[GLASSES : GLASSES + 3]
    front = radii[2] * 0.97 + 0.012 * size
    half = np.array([0.035, 0.035, 0.01]) * size
    if kind == 2:
        half = np.array([0.037, 0.029, 0.01]) * size
    for side in range(2):
        sign = -1.0 if side == 0 else 1.0
        centre = head + apply(skull, sign * eye_x * 1.03, eye_y - 0.002 * size, front)
        row = add_local(table, row, RING, 6, instance, bone, skull, centre, half, colour)
        table[row - 1, SHAPE] = 0.0 if kind == 3 else 0.74
        table[row - 1, SHAPE + 1] = 1.0
        table[row - 1, SHAPE + 2] = 1.0 if kind == 2 else 0.0
        a = centre + apply(skull, sign * half[0], 0.006 * size, 0.0)
        b = head + apply(skull, sign * radii[0] * 1.02, 0.012 * size, -0.01 * size)
        lateral = apply(skull, 0.0, 1.0, 0.0)
        row = add_cone(
            table, row, 6, instance, bone, a, b, 0.005 * size, 0.005 * size, colour, lateral, 1.0
        )
    a = head + apply(skull, -(eye_x * 1.03 - half[0] * 0.9), eye_y, front)
    b = head + apply(skull, eye_x * 1.03 - half[0] * 0.9, eye_y, front)
    lateral = apply(skull, 0.0, 1.0, 0.0)
    return add_cone(
        table, row, 6, instance, bone, a, b, 0.006 * size, 0.006 * size, colour, lateral, 1.0
    )
