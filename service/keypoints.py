"""OpenPose JSON to the pose a worker draws: COCO-18 or BODY_25, pixels or fractions, in and out."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from jobs.request import Keypoint, Pose
from service.strict import Strict

NUM_POINTS = 18
MAX_PEOPLE = 20
_BODY_25_TO_COCO_18 = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
_MARGIN = 1.0
"""Points may lie this far outside the canvas, in canvas sizes: limbs leave a picture."""

_Numbers = Annotated[tuple[float, ...], Field(strict=False)]
_Ignored = Annotated[tuple[float, ...] | None, Field(strict=False, max_length=1000)]


class OpenPosePerson(Strict):
    """One person as OpenPose writes it; faces, hands and 3-D points are accepted but not used."""

    pose_keypoints_2d: _Numbers = Field(
        description="x, y, confidence of 18 (COCO) or 25 (BODY_25) points; confidence 0: unknown",
        min_length=54,
        max_length=75,
    )
    person_id: _Ignored = None
    face_keypoints_2d: _Ignored = None
    hand_left_keypoints_2d: _Ignored = None
    hand_right_keypoints_2d: _Ignored = None
    pose_keypoints_3d: _Ignored = None
    face_keypoints_3d: _Ignored = None
    hand_left_keypoints_3d: _Ignored = None
    hand_right_keypoints_3d: _Ignored = None

    @model_validator(mode="after")
    def _known_layout(self) -> Self:
        count = len(self.pose_keypoints_2d)
        if count not in (54, 75):
            raise ValueError(
                "pose_keypoints_2d must have 54 numbers (18 points in COCO order) or 75 "
                f"(25 points, BODY_25); got {count}"
            )
        if any(confidence < 0 for confidence in self.pose_keypoints_2d[2::3]):
            raise ValueError("confidences must not be negative; 0 means that a point is unknown")
        return self

    def points(self) -> list[tuple[float, float, float]]:
        """x, y, confidence of the 18 points of COCO's order."""
        flat = self.pose_keypoints_2d
        triples = list(zip(flat[0::3], flat[1::3], flat[2::3], strict=True))
        if len(triples) == NUM_POINTS:
            return triples
        return [triples[index] for index in _BODY_25_TO_COCO_18]


class OpenPoseKeypoints(Strict):
    """An OpenPose JSON file.

    With `canvas_width` and `canvas_height` the coordinates are pixels of that canvas; without
    them they are fractions of the picture (OpenPose's `--keypoint_scale 3`). A file with a canvas
    whose known points all lie within 0…1 is taken as fractions too: some editors write that.
    """

    people: Annotated[tuple[OpenPosePerson, ...], Field(strict=False)] = Field(
        min_length=1, max_length=MAX_PEOPLE
    )
    canvas_width: float | None = Field(None, gt=0, le=100_000, description="px")
    canvas_height: float | None = Field(None, gt=0, le=100_000, description="px")
    aspect_ratio: float | None = Field(
        None,
        ge=1 / 32,
        le=32,
        description="width ÷ height of the canvas, for fractions; null: the picture's",
    )
    version: float | None = Field(None, description="OpenPose's file version; not used")
    animals: _Ignored = Field(None, description="written by some editors; not used")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.canvas_width is None) != (self.canvas_height is None):
            raise ValueError("give both canvas_width and canvas_height, or neither")
        if self.canvas_width is not None and self.canvas_height is not None:
            if self.aspect_ratio is not None:
                raise ValueError("give aspect_ratio or canvas_width and canvas_height, not both")
            if not 1 / 32 <= self.canvas_width / self.canvas_height <= 32:
                raise ValueError("the canvas must not be longer than 32 times its other side")
        known = self._known()
        if not known:
            raise ValueError("no person has a known key point: every confidence is 0")
        width, height = self._scale()
        low, high = -_MARGIN, 1 + _MARGIN
        if not all(low <= x / width <= high and low <= y / height <= high for x, y in known):
            hint = (
                "the canvas is too small" if self.canvas_width else "for pixels give canvas_width"
            )
            raise ValueError(f"a key point lies far outside the picture: {hint} and canvas_height")
        return self

    def _known(self) -> list[tuple[float, float]]:
        return [(x, y) for person in self.people for x, y, c in person.points() if c > 0]

    def _scale(self) -> tuple[float, float]:
        if self.canvas_width is None or self.canvas_height is None:
            return 1.0, 1.0
        if all(0 <= x <= 1 and 0 <= y <= 1 for x, y in self._known()):
            return 1.0, 1.0
        return self.canvas_width, self.canvas_height

    def to_pose(self, picture_aspect_ratio: float) -> Pose:
        """Normalised points; fractions without an aspect ratio lie on the picture itself."""
        width, height = self._scale()
        if self.canvas_width is not None and self.canvas_height is not None:
            aspect_ratio = self.canvas_width / self.canvas_height
        else:
            aspect_ratio = self.aspect_ratio or picture_aspect_ratio
        return Pose(
            people=tuple(
                tuple(
                    Keypoint(x=x / width, y=y / height, confidence=min(c, 1.0)) if c > 0 else None
                    for x, y, c in person.points()
                )
                for person in self.people
            ),
            aspect_ratio=aspect_ratio,
        )

    @classmethod
    def from_pose(cls, pose: Pose) -> Self:
        """The same pose in fractions, as the effective request echoes it."""
        people = tuple(
            OpenPosePerson(
                pose_keypoints_2d=tuple(
                    number
                    for point in person
                    for number in ((point.x, point.y, point.confidence) if point else (0.0,) * 3)
                )
            )
            for person in pose.people
        )
        return cls(people=people, aspect_ratio=pose.aspect_ratio)
