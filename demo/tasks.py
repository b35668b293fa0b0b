"""One case of every task that a model's heads and adapters allow, each at three weights."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from client import ReadoutClient
from demo.controls import make_controls, openpose_file
from world.captions import caption
from world.render import Render, render
from world.scene import Scene, sample_scene
from world.seeds import demo_seeds

FACTORS = (0.0, 0.5, 1.0)
"""Of the guidance weights, a column each."""

COLUMNS = ("given", "no guidance", "half the weight", "the task's weight")

Request = dict[str, Any]
NECK, RIGHT_EAR, LEFT_EAR = 1, 16, 17
ARMS = ((2, 3, 4), (5, 6, 7))
"""Shoulder, elbow and wrist, right and left."""
TURN = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2.0)
"""By 45 degrees; its transpose turns back."""


@dataclass(frozen=True)
class Case:
    """A task of one picture.

    Attributes:
        given: what is to be followed, for people: a reference or a control.
        requests: one whose weight sweep gives every column, or one a column.
    """

    task: str
    prompt: str
    note: str
    given: Image.Image
    requests: tuple[Request, ...]


def make_cases(client: ReadoutClient, model: dict[str, Any], user_seed: int) -> list[Case]:
    """Cases of the tasks that `model`, as `/v1/models` describes it, is equipped for.

    Args:
        client: of the service; references are uploaded.
        model: what will draw.
        user_seed: any integer; another one means other scenes.
    """
    installed = {name.rpartition("/")[2] for name in [*model["heads"], *model["adapters"]]}
    size = int(model["parameters"]["height"]["default"])
    seeds = reversed(demo_seeds(user_seed))  # the controls' scenes come from the other end
    cases = []
    for makers in _MAKERS:
        seed = next(seeds)
        cases += [make(client, model, seed, size) for needed, make in makers if needed <= installed]
    return cases


def _drag(client: ReadoutClient, _model: dict[str, Any], seed: int, size: int) -> Case:
    """The lower arm of a picture that the model has never seen is turned up around its shoulder, or
    down where it is up; the prompt says nothing of poses."""
    case, _, _ = _dragged(client, seed, size)
    return case


def _drag_with_pose(client: ReadoutClient, model: dict[str, Any], seed: int, size: int) -> Case:
    """The same; the pose head is shown where all key points are to be, and only the arm may
    change."""
    case, moved, mask = _dragged(client, seed, size)
    (drag,) = case.requests
    drag = drag | {"mask": _sent(client, mask, "mask.png")}
    pose = {"type": "spatial", "head": "pose", "keypoints": openpose_file(moved, size)}
    weight = float(model["parameters"]["controls[].weight"]["default"])
    requests = [
        drag | {"weight_sweep": [factor], "controls": [pose | {"weight": weight * factor}]}
        for factor in FACTORS
    ]
    return replace(case, task="drag with pose and mask", requests=tuple(requests))


def _dragged(client: ReadoutClient, seed: int, size: int) -> tuple[Case, np.ndarray, Image.Image]:
    """The drag of points, where all key points are to be, and the arm painted white."""
    scene, rendered = _scene(seed, size)
    points = rendered.keypoints[0, :, :2]
    arm = max(ARMS, key=lambda arm: float(points[arm[-1]][1]))
    shoulder, *_, start = points[list(arm)]
    up = start[1] >= shoulder[1]
    turn = (min if up else max)((TURN, TURN.T), key=lambda turn: (turn @ (start - shoulder))[1])
    moved = rendered.keypoints.copy()
    for joint in arm[1:]:
        moved[0, joint, :2] = np.clip(shoulder + turn @ (points[joint] - shoulder), 2, size - 3)
    end = moved[0, arm[-1], :2]
    ends = (("from", start), ("to", end))
    pair = {place: {"x": float(x), "y": float(y)} for place, (x, y) in ends}
    prompt = caption(scene, pose=False)
    request: Request = {
        "task": "drag",
        "prompt": prompt,
        "reference": _uploaded(client, rendered),
        "unit": "px",
        "points": [pair],
        "weight_sweep": FACTORS,
    }
    note = f"scene {seed}"
    given = _with_arrow(rendered.rgb, start, end)
    mask = _painted([points[list(arm)], moved[0, arm, :2], np.array([start, end])], size)
    return Case("drag", prompt, note, given, (request,)), moved, mask


def _painted(lines: Sequence[np.ndarray], size: int) -> Image.Image:
    """White around lines through points (x, y), black elsewhere."""
    mask = Image.new("L", (size, size))
    draw, width = ImageDraw.Draw(mask), size / 5
    for line in lines:
        corners = [(float(x), float(y)) for x, y in line]
        draw.line(corners, 255, round(width))
        for corner in corners:
            draw.circle(corner, width / 2, 255)
    return mask


def _appearance(client: ReadoutClient, _model: dict[str, Any], seed: int, size: int) -> Case:
    """Another picture of somebody who looks like this."""
    scene, rendered = _scene(seed, size)
    request = {
        "task": "appearance",
        "prompt": "a person",
        "seed": seed,
        "reference": _uploaded(client, rendered) | {"prompt": caption(scene)},
        "weight_sweep": FACTORS,
    }
    given = Image.fromarray(rendered.rgb)
    return Case("appearance", "a person", f"scene {seed}", given, (request,))


def _identity(client: ReadoutClient, _model: dict[str, Any], seed: int, size: int) -> Case:
    """The same face in other clothes, somewhere else."""
    scene, rendered = _scene(seed, size, portrait=True)
    points = rendered.keypoints[0, :, :2]
    ears = points[[RIGHT_EAR, LEFT_EAR]].mean(axis=0)
    reach = 0.7 * np.linalg.norm(points[NECK] - ears)
    low, high = np.clip([ears - reach, ears + reach], 0, size) / size
    box = {"x0": float(low[0]), "y0": float(low[1]), "x1": float(high[0]), "y1": float(high[1])}
    prompt = "a portrait of a person in a red shirt, under a golden sky"
    request = {
        "task": "identity",
        "prompt": prompt,
        "seed": seed,
        "reference": _uploaded(client, rendered) | {"prompt": caption(scene)},
        "boxes": [{"reference": box, "picture": box}],
        "weight_sweep": FACTORS,
    }
    given = _with_box(rendered.rgb, size * np.array([*low, *high]))
    return Case("identity", prompt, f"scene {seed}", given, (request,))


def _spatial(client: ReadoutClient, model: dict[str, Any], seed: int, size: int) -> Case:
    """A pose by the pose head alone."""
    return _posed("spatial", model, seed, size, {})


def _controlnet(client: ReadoutClient, model: dict[str, Any], seed: int, size: int) -> Case:
    """A pose by ControlNet, without and with the pose head beside it."""
    adapter = {"type": "controlnet", "model": "pose-controlnet"}
    return _posed("ControlNet", model, seed, size, adapter)


def _posed(name: str, model: dict[str, Any], seed: int, size: int, adapter: dict[str, Any]) -> Case:
    (control,) = make_controls(seed, 1, size, ("pose",))
    shown = {"keypoints": control.keypoints}
    base: Request = {"prompt": control.prompt, "seed": seed, "eta": 1.0}
    if adapter:
        base["adapters"] = [adapter | shown]
    weight = float(model["parameters"]["controls[].weight"]["default"])
    pose = {"type": "spatial", "head": "pose", **shown}
    requests = [base | {"controls": [pose | {"weight": weight * factor}]} for factor in FACTORS[1:]]
    note = f"scene {control.scene_seed}"
    return Case(name, control.prompt, note, control.picture, (base, *requests))


_Maker = Callable[[ReadoutClient, dict[str, Any], int, int], Case]
_MAKERS: Sequence[Sequence[tuple[set[str], _Maker]]] = (
    [({"pose"}, _spatial)],
    [
        ({"correspondence", "appearance"}, _drag),
        ({"correspondence", "appearance", "pose"}, _drag_with_pose),
    ],
    [({"appearance"}, _appearance)],
    [({"identity", "appearance"}, _identity)],
    [({"pose", "pose-controlnet"}, _controlnet)],
)
"""What each needs; those of one scene together."""


def _scene(seed: int, size: int, portrait: bool = False) -> tuple[Scene, Render]:
    scene = sample_scene(seed, kind="portrait" if portrait else "figure")
    return scene, render(scene, size)


def _uploaded(client: ReadoutClient, rendered: Render) -> Request:
    return _sent(client, Image.fromarray(rendered.rgb), "reference.png")


def _sent(client: ReadoutClient, image: Image.Image, name: str) -> Request:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"upload_id": client.upload(buffer.getvalue(), name)["id"]}


def _with_arrow(rgb: np.ndarray, start: np.ndarray, end: np.ndarray) -> Image.Image:
    """The picture, eight times as large, with the way of the point on it."""
    picture, ends = _enlarged(rgb), [tuple(float(c) * 8 for c in point) for point in (start, end)]
    draw = ImageDraw.Draw(picture)
    draw.line(ends, "white", 6)
    for (x, y), colour in zip(ends, ("white", "red"), strict=True):
        draw.ellipse((x - 10, y - 10, x + 10, y + 10), colour, "white", 3)
    return picture


def _with_box(rgb: np.ndarray, edges: np.ndarray) -> Image.Image:
    picture = _enlarged(rgb)
    ImageDraw.Draw(picture).rectangle([float(edge) * 8 for edge in edges], outline="white", width=5)
    return picture


def _enlarged(rgb: np.ndarray) -> Image.Image:
    height, width = rgb.shape[:2]
    return Image.fromarray(rgb).resize((8 * width, 8 * height), Image.Resampling.BICUBIC)
