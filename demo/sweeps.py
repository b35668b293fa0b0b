"""`python -m demo.sweeps`: what each parameter does to each task, as the sheets of docs/tasks/.

For one case of every task: weight, end of the span, eta and guidance_scale at five values each, all
else as the task has it (figures 6 and 13 of the paper). Everything goes through the HTTP API.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from client import ReadoutClient
from demo.sheet import labelled_grid
from demo.stack import running_stack
from demo.tasks import Case, Request, make_cases

Tile = tuple[str, Request]


def variations(echo: Request) -> list[list[Tile]]:
    """Rows of five requests, each with what it changes in one that the service has echoed."""

    def scaled(factor: float) -> Request:
        return _controls(echo, lambda one: {"weight": factor * one["weight"]})

    first = echo["controls"][0]["span"][0]
    ends = [round(first + (1 - first) * share, 2) for share in (0.2, 0.35, 0.5, 0.65, 0.8)]

    def until(last: float) -> Request:
        return _controls(echo, lambda one: {"span": [one["span"][0], last]})

    return [
        [(f"weight x {value:g}", scaled(value)) for value in (0.0, 0.25, 0.5, 1.0, 2.0)],
        [(f"span to {value:g}", until(value)) for value in ends],
        [(f"eta {value:g}", echo | {"eta": value}) for value in (0.0, 0.25, 0.5, 0.75, 1.0)],
        [
            (f"guidance_scale {value:g}", echo | {"guidance_scale": value})
            for value in (1.0, 2.0, 4.0, 7.5, 12.0)
        ],
    ]


def _controls(echo: Request, change: Any) -> Request:
    return echo | {"controls": [control | change(control) for control in echo["controls"]]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Starts a stack, makes the pictures and writes one sheet a task."""
    parser = argparse.ArgumentParser(prog="python -m demo.sweeps", description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--tasks", nargs="*", help="of these alone, such as drag")
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as directory,
        running_stack(Path(directory) / "stack", Path(directory) / "log") as url,
        ReadoutClient(url) as client,
    ):
        model = next(one for one in client.models() if one["is_default"])
        for case in make_cases(client, model, options.seed):
            name = case.task.lower()
            if options.tasks and name not in options.tasks:
                continue
            options.out.mkdir(parents=True, exist_ok=True)
            path = options.out / f"{name}.png"
            given = ("given", case.given)
            sheet = labelled_grid([[given, *row] for row in _rows(client, case)])
            sheet.save(path, optimize=True)
            print(path)


def _rows(client: ReadoutClient, case: Case) -> Iterator[list[tuple[str, Image.Image]]]:
    request = {key: value for key, value in case.requests[-1].items() if key != "weight_sweep"}
    echo = client.create(request)["request"]
    for row in variations(echo):
        created = [(name, client.create(changed)["id"]) for name, changed in row]
        described = row[0][0].rsplit(" ", 1)[0]
        yield [
            (name, _picture(client, generation))
            for name, generation in track(created, f"{case.task}, {described}")
        ]


def _picture(client: ReadoutClient, generation: str) -> Image.Image:
    result = client.wait(generation, timeout_s=1200)["result"]
    with Image.open(io.BytesIO(client.download(result["images"][0]["url"]))) as image:
        return image.convert("RGB")


if __name__ == "__main__":
    main()
