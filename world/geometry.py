"""From a scene to what the ray-caster reads (primitives, bones, light); knows no pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from world import body
from world.palette import (
    CLOTHING,
    GLASSES_COLOURS,
    GLASSES_KINDS,
    GROUND_KINDS,
    GROUNDS,
    HAIR_COLOURS,
    HAIR_STYLES,
    HAT_KINDS,
    IRIS_COLOURS,
    PROP_COLOURS,
    SHOE_COLOURS,
    SKIES,
    skin_colour,
)
from world.parts import Background, Person, Prop, Scene
from world.poses import blend
from world.primitives import BALL, BOX, WIDTH, add_cone, add_local

MAX_PROPS = 2


@dataclass(frozen=True)
class Geometry:
    """A scene's primitives at its moment: table rows, bones (n, 12) world→canonical, key points
    (people, 18, 3) in metres."""

    table: np.ndarray
    count: int
    people_rows: int
    bones: np.ndarray
    keypoints: np.ndarray


def person_vector(person: Person, progress: float = 0.0) -> np.ndarray:
    """The (PERSON_WIDTH,) parameter vector of `world.body` for a person part of the way to the
    second pose."""
    identity, outfit = person.identity, person.outfit
    angles = person.pose.angles
    if progress != 0.0:
        angles = blend(angles, person.pose_end.angles, progress)
    (x0, z0), (x1, z1) = person.position, person.position_end
    return np.array(
        (
            identity.height,
            identity.build,
            identity.head_size,
            x0 + (x1 - x0) * progress,
            z0 + (z1 - z0) * progress,
            person.heading + angles[22],
            *angles[:22],
            *identity.face,
            *skin_colour(identity.skin_tone),
            *HAIR_COLOURS[identity.hair_colour],
            *CLOTHING[identity.hat_colour],
            *CLOTHING[outfit.shirt],
            *CLOTHING[outfit.trousers],
            *SHOE_COLOURS[outfit.shoes],
            *IRIS_COLOURS[identity.iris],
            *GLASSES_COLOURS[identity.glasses_colour],
            float(HAIR_STYLES.index(identity.hair_style)),
            float(HAT_KINDS.index(identity.hat)),
            float(GLASSES_KINDS.index(identity.glasses)),
            1.0 if outfit.long_sleeves else 0.0,
        )
    )


def build_geometry(scene: Scene, with_props: bool = True) -> Geometry:
    """Builds the primitive table of a scene at its moment."""
    people = scene.people
    table = np.empty((len(people) * body.MAX_PRIMITIVES + MAX_PROPS * 4, WIDTH))
    bones = np.zeros((len(people) * body.BONES + MAX_PROPS + 1, 12))
    keypoints = np.empty((len(people), 18, 3))
    row = 0
    for index, person in enumerate(people):
        vector = person_vector(person, scene.progress)
        row = body.build_person(
            vector, index + 1, index * body.BONES, table, row, bones, keypoints[index]
        )
    people_rows = row
    if with_props:
        for index, prop in enumerate(scene.background.props):
            bone = len(people) * body.BONES + index
            row = _build_prop(prop, 10 + index, bone, table, row, bones)
    return Geometry(table, row, people_rows, bones, keypoints)


def _build_prop(prop: Prop, instance: int, bone: int, table, row: int, bones) -> int:
    c, s = math.cos(prop.yaw), math.sin(prop.yaw)
    frame = np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
    x, z = prop.position
    size = prop.size
    bones[bone, :9] = frame.T.ravel()
    bones[bone, 9:12] = (x, 0.0, z)
    colour = np.array(PROP_COLOURS[prop.colour])
    side = np.array([1.0, 0.0, 0.0])
    if prop.kind == "box":
        half = np.array([size, size, size])
        return add_local(
            table, row, BOX, 2, instance, bone, frame, np.array([x, size, z]), half, colour
        )
    if prop.kind == "ball":
        half = np.array([size, size, size])
        return add_local(
            table, row, BALL, 2, instance, bone, frame, np.array([x, size, z]), half, colour
        )
    trunk = np.array([0.42, 0.28, 0.18])
    leaves = np.array([0.24, 0.47, 0.22])
    height = size * 4.5
    bottom, top = np.array([x, 0.0, z]), np.array([x, height, z])
    row = add_cone(
        table, row, 2, instance, bone, bottom, top, size * 0.36, size * 0.24, trunk, side, 1.0
    )
    for dx, dy, r in ((0.0, 1.12, 1.7), (0.9, 0.92, 1.15), (-0.85, 0.95, 1.2)):
        centre = np.array([x + dx * size * c, height * dy, z - dx * size * s])
        half = np.array([size * r, size * r * 0.9, size * r])
        row = add_local(table, row, BALL, 2, instance, bone, frame, centre, half, leaves)
    return row


def light_vector(background: Background) -> np.ndarray:
    """The ray-caster's light vector of a background."""
    horizon, zenith, tint = SKIES[background.sky]
    flat = math.cos(background.sun_height)
    return np.array(
        (
            flat * math.sin(background.sun_yaw),
            math.sin(background.sun_height),
            flat * math.cos(background.sun_yaw),
            0.46,
            0.72,
            *GROUNDS[background.ground],
            float(GROUND_KINDS.index(background.ground)),
            background.ground_phase,
            *horizon,
            *zenith,
            *tint,
        )
    )
