"""From one person's parameters to bones, key points and primitives; knows anatomy, but no scene,
camera or image.

Body frame: +x the person's left, +y up, +z forward; metres. Limb directions are (polar, azimuth)
angles in radians: polar 0 is down, pi is up; azimuth 0 is outward to the limb's own side, pi/2
forward, pi inward, so interpolated angles give natural motion.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from world.anatomy import (
    BUILD,
    HEAD,
    HEAD_SIZE,
    HEADING,
    HEIGHT,
    LIMBS,
    POSITION_X,
    POSITION_Z,
    SHIRT,
    SHOES,
    SKIN,
    SLEEVES,
    TORSO,
    TROUSERS,
    apply,
    cross,
    matmul,
    minimal_rotation,
    rotation,
    unit,
)
from world.head import build_head
from world.primitives import (
    add_cone,
)

PELVIS, CHEST, SKULL = 0, 1, 2
BONES = 11  # pelvis, chest, head, then the eight limb bones in the order of LIMBS
MAX_PRIMITIVES = 48

UPPER_ARM, FOREARM, THIGH, SHIN = 0.285, 0.25, 0.42, 0.41
HIP_HALF, SHOULDER_HALF, SHOULDER_UP, NECK_UP, HEAD_UP, SOLE = (
    0.095,
    0.18,
    0.455,
    0.50,
    0.205,
    0.095,
)


@njit(cache=True, nogil=True)
def _direction(person, limb, sign):
    polar, azimuth = person[LIMBS + 2 * limb], person[LIMBS + 2 * limb + 1]
    return np.array(
        [
            sign * np.sin(polar) * np.cos(azimuth),
            -np.cos(polar),
            np.sin(polar) * np.sin(azimuth),
        ]
    )


@njit(cache=True, nogil=True)
def _set_bone(bones, index, frame, origin):
    """Stores world→bone: bone = frame^T (world - origin)."""
    for i in range(3):
        for k in range(3):
            bones[index, 3 * i + k] = frame[k, i]
        bones[index, 9 + i] = origin[i]


@njit(cache=True, nogil=True)
def build_person(person, instance, bone_offset, table, row, bones, keypoints):
    """Fills primitives from `row` on, BONES bones and 18 world key points of one person; returns
    the next free row.

    Args:
        person: (PERSON_WIDTH,) parameters. table: primitive rows. bones: (n, 12) world→bone maps.
        keypoints: (18, 3) world positions in metres, COCO-18 order.
    """
    scale = person[HEIGHT]
    build = person[BUILD]
    pelvis_frame = rotation(0.0, person[HEADING], 0.0)
    chest_frame = matmul(
        pelvis_frame, rotation(person[TORSO], person[TORSO + 2], person[TORSO + 1])
    )
    skull = matmul(chest_frame, rotation(person[HEAD], person[HEAD + 1], person[HEAD + 2]))

    # Legs first, from a pelvis at height 0, to find how high the pelvis stands.
    hips = np.zeros((2, 3))
    knees = np.zeros((2, 3))
    ankles = np.zeros((2, 3))
    shin_directions = np.zeros((2, 3))
    feet = np.zeros((2, 3))
    lowest = 0.0
    for leg in range(2):
        sign = -1.0 if leg == 0 else 1.0
        hip = apply(pelvis_frame, sign * HIP_HALF * build * scale, 0.0, 0.0)
        thigh = _direction(person, 4 + 2 * leg, sign)
        shin = _direction(person, 5 + 2 * leg, sign)
        thigh = apply(pelvis_frame, thigh[0], thigh[1], thigh[2])
        shin = apply(pelvis_frame, shin[0], shin[1], shin[2])
        knee = hip + thigh * (THIGH * scale)
        ankle = knee + shin * (SHIN * scale)
        lateral = apply(pelvis_frame, 0.97, 0.0, -0.24 * sign)
        foot = unit(cross(shin, lateral))
        toe = ankle + shin * (0.05 * scale) + foot * (0.13 * scale)
        lowest = min(lowest, ankle[1] + shin[1] * 0.045 * scale - 0.05 * scale)
        lowest = min(lowest, toe[1] - 0.045 * scale)
        lowest = min(lowest, knee[1] - 0.07 * scale)
        hips[leg] = hip
        knees[leg] = knee
        ankles[leg] = ankle
        shin_directions[leg] = shin
        feet[leg] = foot
    root = np.array([person[POSITION_X], -lowest, person[POSITION_Z]])

    skin = person[SKIN : SKIN + 3]
    shirt = person[SHIRT : SHIRT + 3]
    trousers = person[TROUSERS : TROUSERS + 3]
    shoes = person[SHOES : SHOES + 3]
    long_sleeves = person[SLEEVES] > 0.5
    chest_x = apply(chest_frame, 1.0, 0.0, 0.0)
    pelvis_x = apply(pelvis_frame, 1.0, 0.0, 0.0)

    _set_bone(bones, bone_offset + PELVIS, pelvis_frame, root)
    _set_bone(bones, bone_offset + CHEST, chest_frame, root)

    for leg in range(2):
        hip, knee, ankle = hips[leg] + root, knees[leg] + root, ankles[leg] + root
        shin, foot = shin_directions[leg], feet[leg]
        thigh_bone = bone_offset + 7 + 2 * leg
        thigh = unit(knee - hip)
        frame = np.zeros((3, 3))
        side = unit(pelvis_x - thigh * np.sum(pelvis_x * thigh))
        frame[:, 0], frame[:, 1], frame[:, 2] = side, cross(thigh, side), thigh
        _set_bone(bones, thigh_bone, frame, hip)
        frame = np.zeros((3, 3))
        side = cross(foot, shin)
        frame[:, 0], frame[:, 1], frame[:, 2] = side, -foot, shin
        _set_bone(bones, thigh_bone + 1, frame, knee)
        row = add_cone(
            table, row, 21 + leg, instance, thigh_bone, hip, knee,
            0.094 * build * scale, 0.07 * build * scale, trousers, pelvis_x, 1.0,
        )  # fmt: skip
        hem = knee + (ankle - knee) * 0.93
        row = add_cone(
            table, row, 23 + leg, instance, thigh_bone + 1, knee, hem,
            0.07 * build * scale, 0.056 * build * scale, trousers, pelvis_x, 1.0,
        )  # fmt: skip
        heel = ankle + (shin * 0.045 - foot * 0.025) * scale
        toe = ankle + (shin * 0.05 + foot * 0.13) * scale
        row = add_cone(
            table, row, 25 + leg, instance, thigh_bone + 1, heel, toe,
            0.05 * scale, 0.045 * scale, shoes, pelvis_x, 1.0,
        )  # fmt: skip
        at = 8 + 3 * leg
        keypoints[at] = hip
        keypoints[at + 1] = knee
        keypoints[at + 2] = ankle

    # Pelvis and chest: flattened capsules.
    a = root + apply(pelvis_frame, -0.055 * build * scale, 0.0, 0.0)
    b = root + apply(pelvis_frame, 0.055 * build * scale, 0.0, 0.0)
    up = apply(pelvis_frame, 0.0, 1.0, 0.0)
    row = add_cone(
        table, row, 14, instance, bone_offset + PELVIS, a, b,
        0.115 * build * scale, 0.115 * build * scale, trousers, up, 0.9,
    )  # fmt: skip
    a = root + apply(chest_frame, 0.0, 0.135 * scale, 0.0)
    b = root + apply(chest_frame, 0.0, 0.345 * scale, 0.0)
    row = add_cone(
        table, row, 13, instance, bone_offset + CHEST, a, b,
        0.152 * build * scale, 0.168 * build * scale, shirt, chest_x, 0.68,
    )  # fmt: skip

    neck = root + apply(chest_frame, 0.0, NECK_UP * scale, 0.0)
    shoulders = np.zeros((2, 3))
    for arm in range(2):
        sign = -1.0 if arm == 0 else 1.0
        upper = _direction(person, 2 * arm, sign)
        # raised arms lift the shoulders
        lift = 0.05 * max(0.0, upper[1])
        shoulder = root + apply(
            chest_frame,
            sign * SHOULDER_HALF * (0.6 + 0.4 * build) * scale,
            (SHOULDER_UP + lift) * scale,
            0.0,
        )
        shoulders[arm] = shoulder
        fore = _direction(person, 2 * arm + 1, sign)
        rest = np.zeros((3, 3))
        rest[0, 2] = sign
        rest[1, 0] = 1.0
        rest[2, 1] = sign
        start = np.array([sign, 0.0, 0.0])
        upper_frame = matmul(chest_frame, matmul(minimal_rotation(start, upper), rest))
        fore_frame = matmul(chest_frame, matmul(minimal_rotation(start, fore), rest))
        elbow = shoulder + upper_frame[:, 2] * (UPPER_ARM * scale)
        wrist = elbow + fore_frame[:, 2] * (FOREARM * scale)
        bone = bone_offset + 3 + 2 * arm
        _set_bone(bones, bone, upper_frame, shoulder)
        _set_bone(bones, bone + 1, fore_frame, elbow)
        upper_side, fore_side = upper_frame[:, 0].copy(), fore_frame[:, 0].copy()
        thick = scale * (0.5 + 0.5 * build)
        if long_sleeves:
            row = add_cone(
                table, row, 15 + arm, instance, bone, shoulder, elbow,
                0.07 * thick, 0.057 * thick, shirt, upper_side, 1.0,
            )  # fmt: skip
            cuff = elbow + (wrist - elbow) * 0.9
            row = add_cone(
                table, row, 17 + arm, instance, bone + 1, elbow, cuff,
                0.057 * thick, 0.05 * thick, shirt, fore_side, 1.0,
            )  # fmt: skip
        else:
            row = add_cone(
                table, row, 15 + arm, instance, bone, shoulder, elbow,
                0.055 * thick, 0.049 * thick, skin, upper_side, 1.0,
            )  # fmt: skip
            sleeve = shoulder + (elbow - shoulder) * 0.55
            row = add_cone(
                table, row, 15 + arm, instance, bone, shoulder, sleeve,
                0.072 * thick, 0.068 * thick, shirt, upper_side, 1.0,
            )  # fmt: skip
            row = add_cone(
                table, row, 17 + arm, instance, bone + 1, elbow, wrist,
                0.049 * thick, 0.041 * thick, skin, fore_side, 1.0,
            )  # fmt: skip
        tip = wrist + fore_frame[:, 2] * (0.075 * scale)
        row = add_cone(
            table, row, 19 + arm, instance, bone + 1, wrist, tip,
            0.043 * scale, 0.052 * scale, skin, fore_side, 0.8,
        )  # fmt: skip
        at = 2 + 3 * arm
        keypoints[at] = shoulder
        keypoints[at + 1] = elbow
        keypoints[at + 2] = wrist
    keypoints[1] = 0.5 * (shoulders[0] + shoulders[1])
    a = 0.2 * shoulders[1] + 0.8 * shoulders[0]
    b = 0.8 * shoulders[1] + 0.2 * shoulders[0]
    row = add_cone(
        table, row, 13, instance, bone_offset + CHEST, a, b,
        0.078 * scale, 0.078 * scale, shirt, chest_x, 1.0,
    )  # fmt: skip

    head = neck + apply(skull, 0.0, HEAD_UP * scale * (0.45 + 0.55 * person[HEAD_SIZE]), 0.015)
    _set_bone(bones, bone_offset + SKULL, skull, head)
    skin_shade = skin * 0.93
    row = add_cone(
        table, row, 12, instance, bone_offset + CHEST, neck - (head - neck) * 0.15,
        neck + (head - neck) * 0.55, 0.062 * scale, 0.056 * scale, skin_shade, chest_x, 1.0,
    )  # fmt: skip
    return build_head(person, instance, bone_offset + SKULL, skull, head, table, row, keypoints)
