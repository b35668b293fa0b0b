"""How a scene is drawn from a seed; knows people, places and cameras, but no
pixels and no words.

A seed feeds four independent streams (identity, pose, background, camera), so that each part of a
scene can be replaced alone (`dataclasses.replace`) and the rest stays as it was.
"""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

from world.camera import Camera, fit_bounds
from world.geometry import build_geometry
from world.palette import (
    COLOUR_NAMES,
    GLASSES_KINDS,
    GROUND_KINDS,
    HAIR_COLOURS,
    HAIR_STYLES,
    HAT_KINDS,
    IRIS_COLOURS,
    PROP_COLOURS,
    PROP_KINDS,
    SHOE_COLOURS,
    SKY_KINDS,
)
from world.parts import KINDS, Background, Identity, Kind, Outfit, Person, Prop, Scene
from world.poses import next_pose, sample_pose

__all__ = [
    "KINDS",
    "Background",
    "Identity",
    "Kind",
    "Outfit",
    "Person",
    "Prop",
    "Scene",
    "fit_camera",
    "sample_background",
    "sample_identity",
    "sample_outfit",
    "sample_scene",
    "stream",
]


def stream(seed: int, name: str) -> Random:
    """The random stream of one part of a scene."""
    return Random(f"{seed}/{name}")


def sample_identity(rng: Random, portrait: bool = False) -> Identity:
    """Draws an identity; portraits wear hats and glasses more often."""
    u = rng.uniform
    hair_style = rng.choices(HAIR_STYLES, (8, 34, 28, 15, 15))[0]
    hat = rng.choices(HAT_KINDS, (58, 16, 12, 14))[0]
    glasses = rng.choices(GLASSES_KINDS, (58, 16, 13, 13))[0]
    return Identity(
        height=u(0.93, 1.05),
        build=u(0.92, 1.14),
        head_size=u(1.10, 1.22),
        face=(
            u(0.9, 1.12),
            u(0.93, 1.08),
            u(0.86, 1.14),
            u(0.9, 1.25),
            u(0.8, 1.35),
            u(0.7, 1.5),
            u(0.8, 1.3),
            u(0.85, 1.12),
        ),
        skin_tone=rng.random(),
        hair_style=hair_style,
        hair_colour=rng.choices(tuple(HAIR_COLOURS), (26, 28, 20, 14, 12))[0],
        hat=hat,
        hat_colour=rng.choice(COLOUR_NAMES),
        glasses=glasses,
        glasses_colour="red" if rng.random() < 0.15 else "black",
        iris=rng.choice(tuple(IRIS_COLOURS)),
    )


def sample_outfit(rng: Random) -> Outfit:
    """Draws clothes; shirt and trousers are independent."""
    return Outfit(
        shirt=rng.choice(COLOUR_NAMES),
        trousers=rng.choice(COLOUR_NAMES),
        shoes=rng.choice(tuple(SHOE_COLOURS)),
        long_sleeves=rng.random() < 0.6,
    )


def sample_background(rng: Random, camera_yaw: float, portrait: bool = False) -> Background:
    """Draws ground, sky, sun (from behind or beside the camera) and up to two props beside or
    behind the people."""
    props = []
    for index in range(rng.choices((0, 1, 2), (58, 30, 12))[0]):
        kind = rng.choices(PROP_KINDS, (36, 30, 34))[0]
        side = (1.0 if rng.random() < 0.5 else -1.0) if index == 0 else -side  # noqa: F821
        across = side * rng.uniform(0.9, 2.2) + (side * 0.6 if kind == "tree" else 0.0)
        behind = rng.uniform(1.5, 4.5) if kind == "tree" else rng.uniform(0.3, 2.8)
        across += side * 0.22 * behind
        c, s = math.cos(camera_yaw), math.sin(camera_yaw)
        props.append(
            Prop(
                kind,
                rng.choice(tuple(PROP_COLOURS)),
                (across * c - behind * s, -across * s - behind * c),
                rng.uniform(0.38, 0.6) if kind == "tree" else rng.uniform(0.18, 0.36),
                rng.uniform(0.0, math.pi),
            )
        )
    return Background(
        ground=rng.choice(GROUND_KINDS),
        sky=rng.choice(SKY_KINDS),
        sun_yaw=camera_yaw + rng.uniform(0.25, 1.25) * (1.0 if rng.random() < 0.5 else -1.0),
        sun_height=rng.uniform(0.6, 1.05),
        ground_phase=rng.uniform(0.0, 50.0),
        props=tuple(props),
    )


def fit_camera(scene: Scene, rng: Random, yaw: float) -> Camera:
    """Draws a camera at `yaw` that holds the people of the scene (portrait: head and shoulders) in
    the picture."""
    geometry = build_geometry(replace(scene, moment=0.0), with_props=False)
    pitch = rng.uniform(0.02, 0.30)
    field = math.radians(rng.uniform(28.0, 46.0))
    fill = rng.uniform(0.80, 0.95)
    shift_x, shift_y = rng.uniform(-0.6, 0.6), rng.uniform(-0.5, 0.5)
    if scene.kind == "portrait":
        ears = geometry.keypoints[0, 16:18]
        centre = 0.5 * (ears[0] + ears[1])
        size = scene.people[0].identity.height * scene.people[0].identity.head_size
        head_fill = rng.uniform(0.40, 0.54)
        distance = 0.27 * size / (head_fill * 2.0 * math.tan(0.5 * field))
        reach = distance * math.tan(0.5 * field)
        c, s = math.cos(yaw), math.sin(yaw)
        across, down = shift_x * 0.22 * reach, rng.uniform(0.12, 0.30) * reach
        target = (centre[0] + across * c, centre[1] - down, centre[2] - across * s)
        return Camera(target, distance, yaw, rng.uniform(-0.08, 0.14), field)
    target, distance = fit_bounds(
        geometry.table, 0, geometry.people_rows, yaw, pitch, math.tan(0.5 * field),
        fill, 0.94, shift_x, shift_y,
    )  # fmt: skip
    return Camera(
        (float(target[0]), float(target[1]), float(target[2])), float(distance), yaw, pitch, field
    )


def _moving_camera(camera: Camera, rng: Random, drift: tuple[float, float]) -> Camera:
    """Where the camera is at the end: it follows the people and circles a little."""
    target = (camera.target[0] + drift[0], camera.target[1], camera.target[2] + drift[1])
    return Camera(
        target,
        camera.distance * rng.uniform(1.0, 1.12),
        camera.yaw + rng.uniform(-0.45, 0.45),
        min(0.4, max(-0.05, camera.pitch + rng.uniform(-0.06, 0.08))),
        camera.field_of_view,
    )


def sample_scene(seed: int, kind: Kind | None = None) -> Scene:
    """Draws a scene from a seed; kind None mixes 74 % figures, 16 % portraits and 10 % couples."""
    rng = stream(seed, "kind")
    drawn = rng.random()
    if kind is None:
        kind = "figure" if drawn < 0.74 else ("portrait" if drawn < 0.90 else "couple")
    portrait = kind == "portrait"
    identities, poses = stream(seed, "identity"), stream(seed, "pose")
    camera_rng = stream(seed, "camera")
    yaw = camera_rng.uniform(-0.85, 0.85)
    if camera_rng.random() < 0.12 and not portrait:
        yaw = math.pi + camera_rng.uniform(-0.6, 0.6)
    people = []
    gap = poses.uniform(0.44, 0.60)
    drift_x, drift_z = poses.uniform(-0.35, 0.35), poses.uniform(-0.15, 0.55)
    if portrait:
        drift_x, drift_z = drift_x * 0.15, drift_z * 0.15
    for index in range(2 if kind == "couple" else 1):
        identity, outfit = sample_identity(identities, portrait), sample_outfit(identities)
        arms = None
        if kind == "couple":
            arms = poses.choice(("down", "raised", "hips", "one_raised", "down", "waving"))
        pose = sample_pose(poses, arms, calm=portrait)
        if kind == "couple" and pose.legs in ("wide", "one_leg_raised"):
            pose = sample_pose(poses, arms, "standing")
        side = 0.0 if kind != "couple" else (gap if index else -gap)
        place = (side, poses.uniform(-0.08, 0.08))
        end = (place[0] + drift_x, place[1] + drift_z)
        people.append(
            Person(identity, outfit, pose, next_pose(poses, pose), place, end, side * -0.25)
        )
    if kind == "couple":
        yaw = yaw * 0.6 if abs(yaw) < 1.5 else math.pi + (yaw - math.pi) * 0.6
    background = sample_background(stream(seed, "background"), yaw, portrait)
    placeholder = Camera((0.0, 1.0, 0.0), 4.0, yaw, 0.1, 0.7)
    scene = Scene(seed, kind, tuple(people), background, placeholder, placeholder)
    camera = fit_camera(scene, camera_rng, yaw)
    return replace(
        scene, camera=camera, camera_end=_moving_camera(camera, camera_rng, (drift_x, drift_z))
    )
