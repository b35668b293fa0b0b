"""`readout generate`: one generation from the command line, with a progress bar."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from client.edit import prompt_of, reference_of
from client.errors import BadArgument, ClientError
from client.http import Generation, ReadoutClient


@dataclass(frozen=True)
class Job:
    """What to ask for and where to put it."""

    prompt: str | None
    url: str
    out: Path
    controls: tuple[str, ...] = ()
    """``head=image.png`` or ``head=image.png:weight``."""
    keypoints: tuple[str, ...] = ()
    """``pose.json`` or ``pose.json:weight``, for the pose head."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request, such as seed; None is left out."""
    api_key: str | None = field(default=None, repr=False)
    reference: str | None = None
    """An image file, or ``gen_…`` or ``gen_…:index``."""
    init_image: str | None = None
    """What to start from; said as a reference is."""
    mask: Path | None = None
    """An image file: where the init image, or else the reference, is repainted."""
    adapters: tuple[str, ...] = ()
    """``name=image.png`` or ``name=image.png:scale``."""


def generate(job: Job) -> list[Path]:
    """Upload the controls, create, wait and download; Ctrl-C cancels the generation.

    Raises:
        ClientError: see client/errors.py.
        KeyboardInterrupt: after the generation was canceled.
    """
    with ReadoutClient(job.url, job.api_key) as client, _progress() as progress:
        task = progress.add_task("uploading", total=None, steps="", distances="")
        request = build_request(job, client)
        generation = client.create(request)
        try:
            generation = client.wait(
                generation["id"],
                timeout_s=24 * 3600,
                on_update=lambda state: progress.update(task, **_bar(state)),
            )
        except KeyboardInterrupt:
            progress.update(task, description="canceling")
            with _no_interrupt(), suppress(ClientError):
                client.cancel(generation["id"])
            raise
        progress.update(task, description="downloading")
        return save(client, generation, job.out)


def build_request(job: Job, client: ReadoutClient) -> dict[str, Any]:
    """The request's JSON; control images are uploaded on the way.

    Raises:
        BadArgument: a control cannot be understood or read.
    """
    controls = []
    for text in job.controls:
        head, weight, image = _uploaded(text, "--control", "HEAD=IMAGE", client)
        controls.append(_control(head, weight, image=image))
    for text in job.keypoints:
        path, weight = _split_weight(text)
        try:
            keypoints = json.loads(_read(path, "--keypoints"))
        except ValueError as error:
            raise BadArgument(f"--keypoints {path}: not JSON: {error}") from error
        controls.append(_control("pose", weight, keypoints=keypoints))
    chosen = {name: value for name, value in job.parameters.items() if value is not None}
    if job.init_image is not None:
        chosen["init_image"] = reference_of(job.init_image, client)
    if job.mask is not None:
        upload = client.upload(_read(job.mask, "--mask"), job.mask.name)
        chosen["mask"] = {"upload_id": upload["id"]}
    if job.adapters:
        chosen["adapters"] = []
    for text in job.adapters:
        adapter, scale, image = _uploaded(text, "--adapter", "ADAPTER=IMAGE", client)
        chosen["adapters"].append({"model": adapter, "image": image, "scale": scale})
    prompt = job.prompt
    if job.reference is not None:
        chosen["reference"] = reference_of(job.reference, client)
        if prompt is None:
            prompt = prompt_of(chosen["reference"], client)
    return {"prompt": prompt or "", "controls": controls, **chosen}


def save(client: ReadoutClient, generation: Generation, out: Path) -> list[Path]:
    """Download all pictures, readouts and the manifest; the paths of pictures and animation."""
    out.mkdir(parents=True, exist_ok=True)
    result = generation["result"]
    for warning in result.get("warnings", ()):
        Console(stderr=True).print(f"warning: {warning}", markup=False, highlight=False)
    pictures = []
    for image in result["images"]:
        stem = f"image-{image['index']:03d}"
        path = out / f"{stem}{_suffix(image['url'])}"
        path.write_bytes(client.download(image["url"]))
        pictures.append(path)
        for readout in image["readouts"]:
            name = f"{stem}-readout-{readout['head'].rpartition('/')[2]}{_suffix(readout['url'])}"
            (out / name).write_bytes(client.download(readout["url"]))
    if animation := result.get("animation"):
        path = out / f"animation{_suffix(animation['url'])}"
        path.write_bytes(client.download(animation["url"]))
        pictures.append(path)
    (out / "manifest.json").write_bytes(client.download(result["manifest_url"]))
    return pictures


def _uploaded(
    text: str, option: str, form: str, client: ReadoutClient
) -> tuple[str, float | None, dict[str, Any]]:
    """The name, the strength and the uploaded image of ``name=image.png:strength``."""
    name, separator, rest = text.partition("=")
    if not name or not separator:
        raise BadArgument(f"{option} {text}: write {form}, such as pose=pose.png:0.8")
    path, strength = _split_weight(rest)
    upload = client.upload(_read(path, option), path.name)
    return name, strength, {"upload_id": upload["id"]}


def _control(head: str, weight: float | None, **target: Any) -> dict[str, Any]:
    control = {"type": "spatial", "head": head, **target}
    return control if weight is None else control | {"weight": weight}


def _split_weight(text: str) -> tuple[Path, float | None]:
    path, separator, tail = text.rpartition(":")
    if separator:
        with suppress(ValueError):
            return Path(path), float(tail)
    return Path(text), None


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadArgument(f"{option} {path}: {error.strerror}") from error


def _suffix(url: str) -> str:
    return Path(url.partition("?")[0]).suffix or ".png"


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.fields[steps]}"),
        TextColumn("{task.fields[distances]}"),
    )
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))


def _bar(generation: Generation) -> dict[str, Any]:
    step = generation.get("progress") or {}
    total = step.get("total_steps") or None
    return {
        "description": step.get("stage") or generation["state"],
        "completed": step.get("step", 0),
        "total": total,
        "steps": f"{step['step']}/{total}" if total else "",
        "distances": "  ".join(
            f"{one['head'].rpartition('/')[2]} {one['distance']:.3f}"
            for one in step.get("distances") or ()
        ),
    }


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Let the cancel go out even when Ctrl-C is pressed again."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
