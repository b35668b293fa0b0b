"""Controls for the demo: labels of mannequin scenes that no model, head or judge was trained on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from world.captions import caption
from world.labels import as_bytes, depth_image, edge_image, openpose_image
from world.render import Render, render
from world.scene import sample_scene
from world.seeds import demo_seeds

SIGNALS = ("pose", "depth", "edge")


@dataclass(frozen=True)
class Control:
    """One thing to follow: its picture for people, and what the request says."""

    signal: str
    scene_seed: int
    prompt: str
    picture: Image.Image
    keypoints: dict[str, Any] | None

    def png(self) -> bytes:
        """The picture as a file."""
        buffer = io.BytesIO()
        self.picture.save(buffer, "PNG")
        return buffer.getvalue()


def make_controls(user_seed: int, rows: int, size: int, signals: Sequence[str]) -> list[Control]:
    """`rows` controls of each signal, every one from a scene of its own.

    Args:
        user_seed: any integer; another one means other scenes.
        rows: of each signal.
        size: of the labels, px: the model's.
        signals: of SIGNALS.
    """
    seeds = iter(demo_seeds(user_seed, rows * len(SIGNALS)))
    wanted = [(signal, next(seeds)) for signal in SIGNALS for _ in range(rows)]
    return [_control(signal, seed, size) for signal, seed in wanted if signal in signals]


def _control(signal: str, seed: int, size: int) -> Control:
    scene = sample_scene(seed, kind="figure")
    rendered = render(scene, size)
    return Control(
        signal=signal,
        scene_seed=seed,
        prompt=caption(scene, pose=False),
        picture=_picture(signal, rendered, size),
        keypoints=openpose_file(rendered.keypoints, size) if signal == "pose" else None,
    )


def _picture(signal: str, rendered: Render, size: int) -> Image.Image:
    if signal == "pose":
        return Image.fromarray(openpose_image(rendered.keypoints, size))
    label = depth_image(rendered.depth) if signal == "depth" else edge_image(rendered)
    return Image.fromarray(as_bytes(label)).convert("RGB")


def openpose_file(keypoints: np.ndarray, size: int) -> dict[str, Any]:
    """Key points (people, 18, [x, y, visibility]) as OpenPose writes them; what is outside the
    picture is unknown."""
    people = []
    for points in keypoints:
        known = np.where(points[:, 2:] > 0, points, 0.0)
        known[:, 2] = known[:, 2] > 0
        flat = [round(float(value), 3) for value in known.reshape(-1)]
        people.append({"pose_keypoints_2d": flat})
    return {"people": people, "canvas_width": size, "canvas_height": size}
