"""`readout drag` and `readout vary`: what the command line says → the fields of a request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.errors import BadArgument
from client.http import ReadoutClient

_GENERATION = re.compile(r"(gen_[0-9a-f]{24})(?::(\d+))?")
_NUMBER = r"[0-9]*\.?[0-9]+"
_PAIR = re.compile(rf"({_NUMBER}),({_NUMBER}):({_NUMBER}),({_NUMBER})")


def reference_of(text: str, client: ReadoutClient) -> dict[str, Any]:
    """A generation's id, with ``:index`` for its k-th picture, or an image file to upload.

    Raises:
        BadArgument: the file cannot be read.
    """
    if found := _GENERATION.fullmatch(text):
        return {"generation": found[1], "index": int(found[2] or 0)}
    path = Path(text)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadArgument(
            f"{text}: {error.strerror}; name an image file or a generation's id"
        ) from error
    return {"upload_id": client.upload(data, path.name)["id"]}


def prompt_of(reference: Mapping[str, Any], client: ReadoutClient) -> str:
    """What a generation was told to draw; of an upload nobody knows: nothing."""
    if "generation" not in reference:
        return ""
    prompt: str = client.get(reference["generation"])["request"]["prompt"]
    return prompt


def points_of(texts: list[str]) -> list[dict[str, Any]]:
    """Pairs of points, each ``x,y:x,y``.

    Raises:
        BadArgument: one is not of that form.
    """
    points = []
    for text in texts:
        found = _PAIR.fullmatch(text.replace(" ", ""))
        if found is None:
            raise BadArgument(f"--point {text}: write X,Y:X,Y, such as 0.3,0.4:0.3,0.2")
        x, y, to_x, to_y = (float(number) for number in found.groups())
        points.append({"from": {"x": x, "y": y}, "to": {"x": to_x, "y": to_y}})
    return points


def animation_of(frames: int | None, media: str | None, fps: float | None) -> dict[str, Any] | None:
    """The request's `output` of an animated drag; None: it is not animated.

    Raises:
        BadArgument: format or fps of no animation.
    """
    if frames is None:
        if media is not None or fps is not None:
            raise BadArgument("--format and --fps are those of an animation: give --animate too")
        return None
    chosen = {"frames": frames, "format": media, "fps": fps}
    return {"animation": {name: value for name, value in chosen.items() if value is not None}}


def weights_of(text: str | None) -> list[float] | None:
    """Numbers separated by commas.

    Raises:
        BadArgument: one is not a number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise BadArgument(f"--weights {text}: write numbers such as 0,0.5,1") from error
