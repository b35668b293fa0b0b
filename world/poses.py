"""Classes of poses and their jitter; knows angles, but no bodies and no scenes.

A pose is a tuple of 23 angles in radians in the order of `world.body`: torso (pitch, roll, yaw),
head (pitch, yaw, roll), eight limbs x (polar, azimuth), heading.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

ARM_POSES = ("down", "raised", "out", "one_raised", "hips", "waving", "pointing", "forward")
LEG_POSES = ("standing", "wide", "walking", "kneeling", "one_leg_raised")
_ARM_WEIGHTS = (16, 14, 14, 13, 11, 11, 11, 10)
_LEG_WEIGHTS = (38, 18, 18, 12, 14)
_DEGREE = math.pi / 180.0


@dataclass(frozen=True)
class Pose:
    """One pose: its classes, the acting side ("left", "right" or "both" of the person), and its 23
    angles in radians."""

    arms: str
    legs: str
    arm_side: str
    leg_side: str
    angles: tuple[float, ...]


def _weighted(rng: Random, names: tuple[str, ...], weights: tuple[int, ...]) -> str:
    draw = rng.random() * sum(weights)
    for name, weight in zip(names, weights, strict=True):
        draw -= weight
        if draw < 0.0:
            return name
    return names[-1]


def _arm(rng: Random, kind: str) -> list[float]:
    """(polar, azimuth) of upper arm and forearm in degrees."""
    u = rng.uniform
    if kind == "raised":
        polar = u(142, 172)
        return [polar, u(-15, 25), min(178.0, polar + u(-6, 22)), u(-15, 25)]
    if kind == "out":
        polar = u(82, 100)
        return [polar, u(-8, 12), polar + u(-8, 10), u(-5, 18)]
    if kind == "hips":
        return [u(42, 54), u(-28, -8), u(48, 60), u(150, 166)]
    if kind == "waving":
        return [u(86, 112), u(-8, 25), u(150, 172), u(-10, 20)]
    if kind == "pointing":
        polar, azimuth = u(80, 98), u(15, 50)
        return [polar, azimuth, polar + u(-4, 4), azimuth + u(-4, 4)]
    if kind == "forward":
        polar = u(72, 96)
        return [polar, u(72, 94), polar + u(-4, 12), u(78, 98)]
    return [u(8, 20), u(-20, 25), u(6, 22), u(10, 70)]


def sample_pose(
    rng: Random, arms: str | None = None, legs: str | None = None, calm: bool = False
) -> Pose:
    """Draws a pose; given classes are kept; `calm` (portraits) prefers arms down, standing and a
    quiet head."""
    if arms is None:
        arms = "down" if calm and rng.random() < 0.75 else _weighted(rng, ARM_POSES, _ARM_WEIGHTS)
    if legs is None:
        legs = "standing" if calm else _weighted(rng, LEG_POSES, _LEG_WEIGHTS)
    arm_side = leg_side = "both"
    left = rng.random() < 0.5
    if arms in ("one_raised", "waving", "pointing"):
        arm_side = "left" if left else "right"
        active = _arm(rng, "raised" if arms == "one_raised" else arms)
        rest = _arm(rng, "hips" if rng.random() < 0.2 else "down")
        right_arm, left_arm = (rest, active) if left else (active, rest)
    else:
        right_arm = _arm(rng, arms)
        left_arm = [angle + rng.uniform(-4, 4) for angle in right_arm]
    u = rng.uniform
    standing = [u(1, 6), u(-10, 30), u(0, 4), u(-20, 0)]
    left = rng.random() < 0.5
    if legs == "wide":
        polar = u(15, 25)
        first = [polar, u(-5, 5), polar - u(0, 5), u(-5, 5)]
        second = [polar + u(-3, 3), u(-5, 5), polar - u(0, 5), u(-5, 5)]
    elif legs == "walking":
        first = [u(20, 32), u(78, 90), u(2, 10), u(-95, -85)]
        second = [u(14, 26), u(-96, -82), u(36, 58), u(-94, -84)]
    elif legs == "kneeling":
        first = [u(74, 90), u(66, 84), u(0, 8), u(-90, -80)]
        second = [u(2, 12), u(-90, -60), u(82, 94), u(-92, -84)]
    elif legs == "one_leg_raised":
        sideways = rng.random() < 0.35
        polar = u(48, 80)
        if sideways:
            polar = u(38, 58)
            first = [polar, u(0, 20), polar + u(-10, 5), u(0, 15)]
        else:
            first = [polar, u(62, 84), u(5, 40), u(-90, -60) if rng.random() < 0.7 else u(60, 90)]
        second = [u(0, 3), u(-10, 10), u(0, 3), u(-20, 0)]
    else:
        first = standing
        second = [u(1, 6), u(-10, 30), u(0, 4), u(-20, 0)]
    if legs in ("walking", "kneeling", "one_leg_raised"):
        leg_side = "left" if left else "right"
    right_leg, left_leg = (second, first) if left else (first, second)
    lean = u(0, 9) if legs in ("walking", "kneeling") else u(-4, 6)
    torso = [lean, u(-5, 5), u(-8, 8)]
    head = [u(-8, 12), u(-14, 14) if calm else u(-28, 28), u(-6, 6)]
    degrees = torso + head + right_arm + left_arm + right_leg + left_leg + [u(-12, 12)]
    return Pose(arms, legs, arm_side, leg_side, tuple(d * _DEGREE for d in degrees))


def next_pose(rng: Random, pose: Pose) -> Pose:
    """A second pose to move towards: walkers take the next step, others draw new arms over
    jittered legs."""
    arms = pose.arms if rng.random() < 0.25 else None
    if pose.legs == "walking":
        other = sample_pose(rng, arms, "walking")
        legs = other.angles[14:22]
        if other.leg_side == pose.leg_side:
            legs = legs[4:] + legs[:4]
        side = "right" if pose.leg_side == "left" else "left"
        angles = other.angles[:14] + legs + other.angles[22:]
        return Pose(other.arms, "walking", other.arm_side, side, angles)
    other = sample_pose(rng, arms, None if rng.random() < 0.3 else pose.legs)
    if other.legs != pose.legs or other.leg_side != pose.leg_side:
        legs = tuple(angle + rng.uniform(-0.08, 0.08) for angle in pose.angles[14:22])
        angles = other.angles[:14] + legs + other.angles[22:]
        return Pose(other.arms, pose.legs, other.arm_side, pose.leg_side, angles)
    return other


def blend(first: tuple[float, ...], second: tuple[float, ...], weight: float) -> tuple[float, ...]:
    """Angles between two poses; weight 0 is the first."""
    return tuple(a + (b - a) * weight for a, b in zip(first, second, strict=True))
