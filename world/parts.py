"""The parts of a scene as frozen values; knows neither randomness nor geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from world.camera import Camera
from world.poses import Pose

Kind = Literal["figure", "portrait", "couple"]
KINDS: tuple[Kind, ...] = ("figure", "portrait", "couple")


@dataclass(frozen=True)
class Identity:
    """Who somebody is: continuous body and face factors around 1, hair, hat and glasses."""

    height: float
    build: float
    head_size: float
    face: tuple[float, ...]  # width, length, eye distance, eye size, nose, brow, mouth, jaw
    skin_tone: float  # 0 light .. 1 dark
    hair_style: str
    hair_colour: str
    hat: str
    hat_colour: str
    glasses: str
    glasses_colour: str
    iris: str


@dataclass(frozen=True)
class Outfit:
    """What somebody wears: colour names of `world.palette`."""

    shirt: str
    trousers: str
    shoes: str
    long_sleeves: bool


@dataclass(frozen=True)
class Person:
    """An identity in an outfit, a pose to start from and one to move towards, and the way between
    (metres)."""

    identity: Identity
    outfit: Outfit
    pose: Pose
    pose_end: Pose
    position: tuple[float, float]
    position_end: tuple[float, float]
    heading: float = 0.0


@dataclass(frozen=True)
class Prop:
    """A thing on the ground: kind, colour, place and size in metres, yaw in radians."""

    kind: str
    colour: str
    position: tuple[float, float]
    size: float
    yaw: float


@dataclass(frozen=True)
class Background:
    """Ground, sky, sun and props."""

    ground: str
    sky: str
    sun_yaw: float
    sun_height: float
    ground_phase: float
    props: tuple[Prop, ...]


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows; `moment` 0..1 runs from the first pose and camera to the
    second."""

    seed: int
    kind: Kind
    people: tuple[Person, ...]
    background: Background
    camera: Camera
    camera_end: Camera
    moment: float = 0.0

    def at(self, moment: float) -> Scene:
        """The same scene at another moment; 0 is the start, 1 the end, motion is smooth and swings
        back beyond 1."""
        return replace(self, moment=moment)

    @property
    def progress(self) -> float:
        """How far the motion has come at this moment: 0..1, with gentle start and end."""
        return 0.5 - 0.5 * math.cos(math.pi * self.moment)

    def current_camera(self) -> Camera:
        """The camera at this moment."""
        w = self.progress
        a, b = self.camera, self.camera_end
        if w == 0.0:
            return a
        return Camera(
            tuple(p + (q - p) * w for p, q in zip(a.target, b.target, strict=True)),  # type: ignore[arg-type]
            a.distance + (b.distance - a.distance) * w,
            a.yaw + (b.yaw - a.yaw) * w,
            a.pitch + (b.pitch - a.pitch) * w,
            a.field_of_view + (b.field_of_view - a.field_of_view) * w,
        )
