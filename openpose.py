"""OpenPose's COCO-18 skeleton: names, limbs, colours, and its picture; a leaf.

The picture is the one that pose-conditioned models expect: limbs as ellipses in the standard
colours at 0.6 intensity, joints as dots, on black; widths scale with the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

KEYPOINTS = (
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
"""Names of the 18 key points, in order; left and right are the person's own."""

# fmt: off
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12),
    (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)
"""Pairs of key points that are joined, in drawing order."""
COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0),
    (0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255),
    (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
)
"""Colour of each key point; limb i has colour i."""
# fmt: on

FACE = (0, 14, 15, 16, 17)
"""Nose, eyes and ears: known only where they are seen, as a head from behind has no nose."""

LIMB_INTENSITY = 0.6
HALF_WIDTH = 4 / 512
"""Half the width of a limb and the radius of a joint, as a fraction of the picture's height."""
MIN_HALF_WIDTH_PX = 1.0
_OVERSAMPLING = 4

Point = tuple[float, float]


def known_points(people: Sequence[Sequence[Sequence[float]]]) -> list[list[Point | None]]:
    """Which of people's labelled points a skeleton has: those that OpenPose would find.

    Joints count wherever they are in the picture; points of the face only where they are seen,
    which is what tells a front from a back.

    Args:
        people: 18 key points each, (x, y, visibility): 0 is outside, 1 hidden, 2 seen.
    """
    return [
        [
            (float(x), float(y)) if visibility > (1.5 if index in FACE else 0.5) else None
            for index, (x, y, visibility) in enumerate(person)
        ]
        for person in people
    ]


def draw_pose(people: Sequence[Sequence[Point | None]], width: int, height: int) -> Image.Image:
    """Draw people's skeletons.

    Args:
        people: 18 key points each, (x, y) in px of the picture; None where a point is not known.
        width, height: of the picture, px.

    Returns:
        An RGB image, anti-aliased.
    """
    scale = _OVERSAMPLING
    half = max(MIN_HALF_WIDTH_PX, HALF_WIDTH * min(width, height)) * scale
    image = Image.new("RGB", (width * scale, height * scale))
    draw = ImageDraw.Draw(image)
    scaled = [
        [None if point is None else (point[0] * scale, point[1] * scale) for point in person]
        for person in people
    ]
    for limb, colour in zip(LIMBS, COLOURS, strict=False):
        dimmed = tuple(round(channel * LIMB_INTENSITY) for channel in colour)
        for person in scaled:
            start, end = person[limb[0]], person[limb[1]]
            if start is not None and end is not None:
                draw.polygon(_ellipse(start, end, half), fill=dimmed)
    for index, colour in enumerate(COLOURS):
        for person in scaled:
            point = person[index]
            if point is not None:
                x, y = point
                draw.ellipse((x - half, y - half, x + half, y + half), fill=colour)
    return image.resize((width, height), Image.Resampling.BOX)


def _ellipse(start: Point, end: Point, half_width: float) -> list[Point]:
    """The outline of a limb: an ellipse from joint to joint."""
    centre_x, centre_y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    along_x, along_y = (end[0] - start[0]) / 2, (end[1] - start[1]) / 2
    length = math.hypot(along_x, along_y) or 1.0
    across_x, across_y = -along_y / length * half_width, along_x / length * half_width
    angles = [2 * math.pi * step / 36 for step in range(36)]
    return [
        (
            centre_x + math.cos(angle) * along_x + math.sin(angle) * across_x,
            centre_y + math.cos(angle) * along_y + math.sin(angle) * across_y,
        )
        for angle in angles
    ]
