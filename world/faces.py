"""Tight face crops of people who share hair, hat and glasses; knows scenes, but no files.

A *look* is what colour and outline give away: hair, hat, glasses, eye colour. Several people have
it, and differ in the continuous parameters of the face and the skin alone; each is seen in several
*shots*, with other clothes, poses, places, suns and cameras.
"""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np

from world.camera import Camera
from world.geometry import build_geometry
from world.parts import Identity, Person, Scene
from world.poses import sample_pose
from world.scene import sample_background, sample_identity, sample_outfit, stream

FACE_RANGES = (
    (0.9, 1.12), (0.93, 1.08), (0.86, 1.14), (0.9, 1.25),
    (0.8, 1.35), (0.7, 1.5), (0.8, 1.3), (0.85, 1.12),
)  # fmt: skip
"""Width, length, eye distance, eye size, nose, brow, mouth, jaw: what `sample_identity` draws."""

APART = 1.0
"""How far apart two people of one look are at least, as the Euclidean distance of their eight face
parameters and their skin tone, each scaled to 0..1 (1.2 on average where drawn at random)."""


def parameters(identity: Identity) -> np.ndarray:
    """(9,) the face parameters and the skin tone, each 0..1 over its range."""
    scaled = [
        (value - low) / (high - low)
        for value, (low, high) in zip(identity.face, FACE_RANGES, strict=True)
    ]
    return np.array([*scaled, identity.skin_tone])


def lookalikes(seed: int, people: int, same_skin: bool = False) -> list[Identity]:
    """People of one look, pairwise at least `APART`.

    Args:
        seed: of the look.
        people: how many.
        same_skin: give all the first one's skin tone, so that no colour tells them apart.
    """
    look = sample_identity(stream(seed, "look"), portrait=True)
    rng = stream(seed, "people")
    found: list[Identity] = []
    while len(found) < people:
        tone = rng.random()
        candidate = replace(
            look,
            face=tuple(rng.uniform(low, high) for low, high in FACE_RANGES),
            skin_tone=found[0].skin_tone if same_skin and found else tone,
        )
        distances = [np.linalg.norm(parameters(candidate) - parameters(one)) for one in found]
        if not distances or min(distances) >= APART:
            found.append(candidate)
    return found


def face_of(seed: int) -> Scene:
    """A tight crop of the face of one person a seed."""
    return face_scene(seed, lookalikes(seed, 1)[0], person=0, shot=0)


def face_scene(seed: int, identity: Identity, person: int, shot: int) -> Scene:
    """One tight crop of somebody's face; what the shot shows besides depends on the seed, too.

    Args:
        seed: of the look. identity: one of its `lookalikes`. person, shot: their numbers.
    """
    rng = stream(seed, f"person {person} shot {shot}")
    yaw = rng.uniform(-0.6, 0.6)
    pose = sample_pose(rng, calm=True)
    somebody = Person(identity, sample_outfit(rng), pose, pose, (0.0, 0.0), (0.0, 0.0))
    background = sample_background(rng, yaw, portrait=True)
    anywhere = Camera((0.0, 1.0, 0.0), 4.0, yaw, 0.1, 0.7)
    scene = Scene(seed, "portrait", (somebody,), background, anywhere, anywhere)
    camera = _face_camera(scene, rng, yaw)
    return replace(scene, camera=camera, camera_end=camera)


def _face_camera(scene: Scene, rng: Random, yaw: float) -> Camera:
    """Looks at the face from brow to chin; it fills most of the picture."""
    ears = build_geometry(scene, with_props=False).keypoints[0, 16:18]
    centre = 0.5 * (ears[0] + ears[1])
    identity = scene.people[0].identity
    size = identity.height * identity.head_size
    field = math.radians(rng.uniform(28.0, 40.0))
    distance = 0.27 * size / (rng.uniform(0.84, 0.96) * 2.0 * math.tan(0.5 * field))
    across = rng.uniform(-0.012, 0.012) * size
    down = rng.uniform(0.0, 0.025) * size
    target = (
        centre[0] + across * math.cos(yaw),
        centre[1] - down,
        centre[2] - across * math.sin(yaw),
    )
    return Camera(target, distance, yaw, rng.uniform(-0.08, 0.14), field)
