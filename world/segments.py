"""The enumeration of segment ids and of the 18 key points; knows nothing else.

Segment ids are the same for every person; `instance` tells people apart (0 background, 1 and 2
people, 10... props). Left and right are the person's own.
"""

from __future__ import annotations

from enum import IntEnum


class Segment(IntEnum):
    """What a pixel shows."""

    SKY = 0
    GROUND = 1
    PROP = 2
    HEAD = 3
    HAIR = 4
    HAT = 5
    GLASSES = 6
    EYES = 7
    BROWS = 8
    NOSE = 9
    MOUTH = 10
    EARS = 11
    NECK = 12
    TORSO = 13
    HIPS = 14
    RIGHT_ARM = 15
    LEFT_ARM = 16
    RIGHT_FOREARM = 17
    LEFT_FOREARM = 18
    RIGHT_HAND = 19
    LEFT_HAND = 20
    RIGHT_THIGH = 21
    LEFT_THIGH = 22
    RIGHT_SHIN = 23
    LEFT_SHIN = 24
    RIGHT_SHOE = 25
    LEFT_SHOE = 26


#: OpenPose / COCO-18 order of key points.
KEYPOINT_NAMES = (
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
)

_S = Segment
_FACE = (_S.HEAD, _S.EYES, _S.BROWS, _S.NOSE, _S.MOUTH, _S.GLASSES)
#: Per key point: the segments that show it when it is visible.
KEYPOINT_SEGMENTS: tuple[tuple[Segment, ...], ...] = (
    (_S.NOSE, _S.HEAD, _S.MOUTH),
    (_S.NECK, _S.TORSO, _S.HEAD),
    (_S.RIGHT_ARM, _S.TORSO),
    (_S.RIGHT_ARM, _S.RIGHT_FOREARM),
    (_S.RIGHT_FOREARM, _S.RIGHT_HAND),
    (_S.LEFT_ARM, _S.TORSO),
    (_S.LEFT_ARM, _S.LEFT_FOREARM),
    (_S.LEFT_FOREARM, _S.LEFT_HAND),
    (_S.HIPS, _S.RIGHT_THIGH, _S.TORSO),
    (_S.RIGHT_THIGH, _S.RIGHT_SHIN),
    (_S.RIGHT_SHIN, _S.RIGHT_SHOE),
    (_S.HIPS, _S.LEFT_THIGH, _S.TORSO),
    (_S.LEFT_THIGH, _S.LEFT_SHIN),
    (_S.LEFT_SHIN, _S.LEFT_SHOE),
    _FACE,
    _FACE,
    (_S.EARS, _S.HEAD),
    (_S.EARS, _S.HEAD),
)
