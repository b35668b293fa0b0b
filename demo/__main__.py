"""`python -m demo`, or `make demo`: what the service does, shown end to end in a few minutes.

Starts the stack, asks for pictures that follow poses, depth maps and edges of scenes that nothing
was trained on, each once with its control and once without; then for one case of every task (drag,
alone and with all key points, appearance, identity, a ControlNet beside a head). Leaves in
out/demo/ two contact sheets, all pictures and report.json.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from client import ClientError, ReadoutClient
from demo.controls import SIGNALS, Control, make_controls
from demo.sheet import SheetRow, contact_sheet
from demo.stack import StackFailed, running_stack
from demo.tasks import COLUMNS as TASK_COLUMNS
from demo.tasks import Case, make_cases

GENERATION_TIMEOUT_S = 1200.0


@dataclass(frozen=True)
class Options:
    """The command line."""

    seed: int
    rows: int
    images: int
    out: Path
    model: str | None
    signals: tuple[str, ...]
    steps: int | None
    tasks: bool
    measures: bool


@dataclass
class Pair:
    """A control and the two generations that are compared: equal seeds, prompt and eta."""

    control: Control
    guided: dict[str, Any]
    unguided: dict[str, Any]


class DemoFailed(Exception):
    """A step of the demo failed; the message says which."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when every step succeeded."""
    options = parse(arguments)
    console = Console()
    try:
        run(options, console)
    except (DemoFailed, StackFailed, ClientError) as error:
        console.print(f"[bold red]the demo failed:[/] {error}", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> Options:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=7, help="any integer; other scenes and noise")
    parser.add_argument("--rows", type=int, default=4, help="controls of each kind")
    parser.add_argument("--images", type=int, default=2, help="pictures of each control")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--model", default=None, help="default: the service's")
    parser.add_argument("--signals", default=",".join(SIGNALS), help="of pose, depth and edge")
    parser.add_argument("--steps", type=int, default=None, help="default: the model's")
    parser.add_argument(
        "--tasks", action=argparse.BooleanOptionalAction, default=True, help="a row of every task"
    )
    parser.add_argument(
        "--measures", action=argparse.BooleanOptionalAction, default=True, help="ask the judges"
    )
    given = vars(parser.parse_args(arguments))
    signals = tuple(given.pop("signals").split(","))
    if not set(signals) <= set(SIGNALS) or not 1 <= given["rows"] <= 100:
        parser.error("--signals are of pose, depth and edge, --rows 1 to 100")
    return Options(signals=signals, **given)


def run(options: Options, console: Console) -> None:
    """All steps, in order."""
    start = time.monotonic()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    log_path = options.out / "stack.log"
    console.print("starting the stack (readout up) and loading the model")
    with running_stack(options.out / "stack", log_path) as url, ReadoutClient(url) as client:
        started_s = time.monotonic() - start
        model = _model(client, options.model)
        size = int(model["parameters"]["height"]["default"])
        controls = make_controls(options.seed, options.rows, size, options.signals)
        console.print(f"{url} is ready; {len(controls)} controls, model {model['name']}")
        pairs = _generate(client, controls, options, model["name"], console)
        report = _save(client, pairs, options)
        if options.tasks:
            report["tasks"] = _tasks(
                client, make_cases(client, model, options.seed), options, model
            )
        versions = client.download(pairs[0].guided["result"]["manifest_url"])
    shutil.rmtree(options.out / "stack")
    report["manifest_of_first"] = json.loads(versions)
    if options.measures:
        report["measures"] = _measures(report["rows"], options.out, console)
    report["seconds"] = {"stack_start": started_s, "all": time.monotonic() - start}
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"done in {report['seconds']['all']:.0f} s; look at", soft_wrap=True)
    for sheet in sorted(options.out.glob("*.png")):
        console.print(f"  [bold]{sheet}[/]", soft_wrap=True)
    console.print(f"  {options.out / 'report.json'}", soft_wrap=True)


def _model(client: ReadoutClient, name: str | None) -> dict[str, Any]:
    models = client.models()
    for model in models:
        if model["name"] == name or (name is None and model["is_default"]):
            return model
    installed = ", ".join(model["name"] for model in models) or "none"
    raise DemoFailed(f"the model {name or 'by default'} is not installed; installed: {installed}")


def _generate(
    client: ReadoutClient,
    controls: Sequence[Control],
    options: Options,
    model: str,
    console: Console,
) -> list[Pair]:
    """Ask for everything at once, then wait for each; one bar over all pictures."""
    pairs = []
    for index, control in enumerate(controls):
        request = {
            "model": model,
            "prompt": control.prompt,
            "seed": options.seed % 2**32 + 1000 * index,
            "num_images": options.images,
            "num_inference_steps": options.steps,
        }
        guided = client.create(request | {"controls": [_request_control(client, control)]})
        # The same noise at every step too: the task of a control has its own eta.
        unguided = client.create(request | {"eta": guided["request"]["eta"]})
        pairs.append(Pair(control, guided, unguided))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("generating", total=2 * len(pairs) * options.images)
        for pair in pairs:
            pair.guided = client.wait(pair.guided["id"], timeout_s=GENERATION_TIMEOUT_S)
            progress.advance(task, options.images)
            pair.unguided = client.wait(pair.unguided["id"], timeout_s=GENERATION_TIMEOUT_S)
            progress.advance(task, options.images)
    return pairs


def _request_control(client: ReadoutClient, control: Control) -> dict[str, Any]:
    common = {"type": "spatial", "head": control.signal}
    if control.keypoints is not None:
        return common | {"keypoints": control.keypoints}
    upload = client.upload(control.png(), f"{control.signal}.png")
    return common | {"image": {"upload_id": upload["id"]}}


def _save(client: ReadoutClient, pairs: Sequence[Pair], options: Options) -> dict[str, Any]:
    """Store every picture and the contact sheet; the report without its measures."""
    rows, sheet_rows = [], []
    for index, pair in enumerate(pairs):
        directory = Path("images") / f"{index:02d}-{pair.control.signal}"
        (options.out / directory).mkdir(parents=True)
        control_path = directory / "control.png"
        pair.control.picture.save(options.out / control_path)
        guided = _download(client, pair.guided, options.out, directory / "guided")
        unguided = _download(client, pair.unguided, options.out, directory / "unguided")
        rows.append(
            {
                "signal": pair.control.signal,
                "scene_seed": pair.control.scene_seed,
                "prompt": pair.control.prompt,
                "control": str(control_path),
                "guided": guided,
                "unguided": unguided,
            }
        )
        first = guided["images"][0]
        paths = (control_path, unguided["images"][0]["path"], first["path"], first["readout"])
        pictures = tuple(_load(options.out / path) for path in paths)
        note = f"scene {pair.control.scene_seed}, seed {first['seed']}"
        sheet_rows.append(SheetRow(pair.control.signal, pair.control.prompt, note, pictures))
    title = f"Readout Guidance, first picture of every control (make demo SEED={options.seed})"
    contact_sheet(sheet_rows, title).save(options.out / "contact-sheet.png", optimize=True)
    return {"seed": options.seed, "rows": rows}


def _tasks(
    client: ReadoutClient, cases: Sequence[Case], options: Options, model: dict[str, Any]
) -> list[dict[str, Any]]:
    """Generate every case's columns and store them with their sheet; the report's rows."""
    common = {"model": model["name"], "num_inference_steps": options.steps}
    created = [[client.create(common | request) for request in case.requests] for case in cases]
    rows, sheet_rows = [], []
    for index, (case, generations) in enumerate(zip(cases, created, strict=True)):
        directory = Path("images") / f"task-{index}-{case.task.lower().replace(' ', '-')}"
        (options.out / directory).mkdir(parents=True)
        case.given.save(options.out / directory / "given.png")
        done = [client.wait(one["id"], timeout_s=GENERATION_TIMEOUT_S) for one in generations]
        drawn = [
            _download(client, one, options.out, directory / f"{number}")
            for number, one in enumerate(done)
        ]
        rows.append({"task": case.task, "prompt": case.prompt, "generations": drawn})
        pictures = [_load(options.out / image["path"]) for one in drawn for image in one["images"]]
        sheet_rows.append(SheetRow(case.task, case.prompt, case.note, (case.given, *pictures)))
    if sheet_rows:
        title = f"Tasks, at three weights each (make demo SEED={options.seed})"
        sheet = contact_sheet(sheet_rows, title, TASK_COLUMNS)
        sheet.save(options.out / "tasks.png", optimize=True)
    return rows


def _download(
    client: ReadoutClient, generation: dict[str, Any], out: Path, stem: Path
) -> dict[str, Any]:
    images = []
    for image in generation["result"]["images"]:
        path = Path(f"{stem}-{image['index']}.png")
        _store_picture(out / path, client.download(image["url"]))
        saved = {"path": str(path), "seed": image["seed"], "distances": image["distances"]}
        if image["readouts"]:
            readout = Path(f"{stem}-{image['index']}-readout.png")
            _store_picture(out / readout, client.download(image["readouts"][0]["url"]))
            saved["readout"] = str(readout)
        images.append(saved)
    return {
        "id": generation["id"],
        "request": generation["request"],
        "timings": generation["result"]["timings"],
        "created_at": generation["created_at"],
        "started_at": generation["started_at"],
        "finished_at": generation["finished_at"],
        "images": images,
    }


def _store_picture(path: Path, data: bytes) -> None:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.verify()
    except OSError as error:
        raise DemoFailed(f"{path.name}: the service's answer is no picture: {error}") from error
    path.write_bytes(data)


def _load(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _measures(rows: list[dict[str, Any]], out: Path, console: Console) -> dict[str, Any]:
    """The hook for the judges: obedience and what it cost, of the pictures just made."""
    from evaluation.demo import demo_measures

    console.print("measuring with independent judges")
    return demo_measures(rows, out)


if __name__ == "__main__":
    sys.exit(main())
