"""`readout acceptance`: a model and its heads on examples in the layout of the authors' repository.

    DATA/data/spatial/{signal}/*.png        control images
    DATA/annotations/spatial/{signal}.json  {file stem: prompt}
    DATA/data/drag/real/{name}/             source.png, info.json (prompt, image_dim), tracks_*.npy
    DATA/data/drag/generated/{name}/        info.json (prompt, image_dim, seed), tracks_*.npy

Every example is drawn twice from one seed, with its controls and with their weights at 0, by the
very code that serves requests. A table, a report and a sheet to look at are what comes out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from heads_registry.catalogue import Catalogue
from heads_registry.loading import sha256_of
from heads_registry.manifest import HeadManifest, RegistryError
from jobs.controls import Drag, Point
from jobs.request import (
    AppearanceControl,
    CorrespondenceControl,
    GenerationRequest,
    InvertedReference,
    OutputOptions,
    Reference,
    SampledReference,
    SpatialControl,
    StoredImage,
)
from worker.execute import Execution, execute
from worker.models import ModelCache

MODEL = "acceptance"
PIPELINES = {12: "stable-diffusion", 9: "stable-diffusion-xl"}
"""Number of taps of the heads → the pipeline that has so many."""


class NothingToAccept(RegistryError):
    """Heads or examples are missing; says what was looked for."""


@dataclass(frozen=True)
class Check:
    """One example.

    Attributes:
        name: task and example.
        unguided: distance of each control at weight 0, by head.
        guided: the same with its weight.
        seconds: of the guided picture, without loading.
        peak_gib: of the device's memory; None on the CPU.
        psnr_db: of an inverted reference.
    """

    name: str
    unguided: dict[str, float]
    guided: dict[str, float]
    seconds: float
    peak_gib: float | None
    psnr_db: float | None

    @property
    def is_closer(self) -> bool:
        """Whether every control is nearer to its target than without guidance."""
        return all(self.guided[head] < self.unguided[head] for head in self.guided)


@dataclass(frozen=True)
class Example:
    """A request without the fields that all of them share, and the picture of its control."""

    name: str
    fields: dict[str, Any]
    shown: Image.Image | None


def accept(
    model: str,
    heads: Path,
    data: Path,
    out: Path,
    *,
    size: int,
    steps: int = 100,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    echo: Callable[[str], None] = print,
) -> list[Check]:
    """Draw every example and write ``report.json`` and ``sheet.png`` into `out`.

    Args:
        model: hub id or directory of the pipeline.
        heads: registry directory with its heads.
        data: examples, see above.
        out: made if it is missing.
        size: height and width of the pictures, px.
        steps: denoising steps.
        device: where the model goes.
        dtype: of the model.
        echo: takes the table, line by line.

    Raises:
        RegistryError: model or heads cannot be loaded, or there is nothing to draw.
    """
    found = Catalogue([heads]).heads
    if not found:
        raise NothingToAccept(f"{heads}: no heads/*.yaml; see `readout heads pull` and `import`")
    examples = list(_examples(data, found, size))
    if not examples:
        raise NothingToAccept(f"{data}: no data/spatial/… or data/drag/… that these heads read")
    out.mkdir(parents=True, exist_ok=True)
    checks, rows = [], []
    with TemporaryDirectory() as directory:
        registry = _registry(Path(directory), model, found[0], size)
        models = ModelCache(Catalogue([heads, registry]), 2**63, device, dtype)
        models.model(MODEL)
        for example in examples:
            check, pictures = _check(example, models, size, steps)
            checks.append(check)
            rows.append(pictures)
            echo(_line(check))
    report = [asdict(check) | {"is_closer": check.is_closer} for check in checks]
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    _sheet(rows, size).save(out / "sheet.png")
    return checks


def _registry(directory: Path, model: str, head: HeadManifest, size: int) -> Path:
    """A registry directory with the model alone."""
    source = str(Path(model).resolve()) if Path(model).is_dir() else model
    pipeline = PIPELINES.get(len(head.feature_taps))
    if pipeline is None:
        raise NothingToAccept(
            f"head {head.id} has {len(head.feature_taps)} taps; 12 or 9 are known"
        )
    manifest = {
        "name": MODEL,
        "title": model,
        "family": head.base_model,
        "pipeline": pipeline,
        "source": source,
        "height": size,
        "width": size,
        "licence": "as its own",
    }
    (directory / "models").mkdir()
    (directory / "models" / f"{MODEL}.yaml").write_text(yaml.safe_dump(manifest))
    return directory


def _examples(data: Path, heads: tuple[HeadManifest, ...], size: int) -> Iterator[Example]:
    for head in heads:
        if head.kind == "spatial" and head.signal != "other":
            yield from _spatial(data, head)
    by_kind = {head.kind: head for head in heads}
    if {"appearance", "correspondence"} <= by_kind.keys():
        for folder in sorted((data / "data" / "drag").glob("*/*/")):
            yield from _drags(folder, by_kind, size)


def _spatial(data: Path, head: HeadManifest) -> Iterator[Example]:
    prompts_file = data / "annotations" / "spatial" / f"{head.signal}.json"
    prompts = json.loads(prompts_file.read_text()) if prompts_file.is_file() else {}
    for path in sorted((data / "data" / "spatial" / head.signal).glob("*.png")):
        control = SpatialControl(head=head.id, image=_stored(path), weight=0.5, span=(0.0, 0.5))
        fields = {
            "task": "spatial",
            "prompt": prompts.get(path.stem, ""),
            "eta": 1.0,
            "controls": (control,),
        }
        with Image.open(path) as image:
            yield Example(f"{head.name} {path.stem}", fields, image.convert("RGB"))


def _drags(folder: Path, heads: dict[str, HeadManifest], size: int) -> Iterator[Example]:
    facts = json.loads((folder / "info.json").read_text())
    source, prompt = folder / "source.png", facts.get("prompt", "")
    is_real = folder.parent.name == "real"
    reference: Reference
    if is_real:
        reference = InvertedReference(image=_stored(source), prompt=prompt, negative_prompt="")
    else:
        seed = int(facts.get("seed", 0))
        reference = SampledReference(
            prompt=prompt, negative_prompt="", seed=seed, guidance_scale=7.5, eta=0.0
        )
    for path in sorted(folder.glob("tracks_*.npy")):
        points = _points(np.load(path, allow_pickle=False), facts["image_dim"])
        relative = {"weight": 1.0, "span": (0.0, 0.5)}
        controls = (
            AppearanceControl(head=heads["appearance"].id, **relative),
            CorrespondenceControl(head=heads["correspondence"].id, points=points, **relative),
        )
        fields = {
            "task": "drag",
            "prompt": prompt,
            "seed": 0 if is_real else reference.seed,
            "guidance_scale": 3.5 if is_real else 7.5,
            "controls": controls,
            "reference": reference,
            "start": "reference",
        }
        with Image.open(source) as image:
            shown = image.convert("RGB")
        yield Example(f"drag {folder.name} {path.stem.removeprefix('tracks_')}", fields, shown)


def _points(tracks: np.ndarray, image_dim: list[int]) -> tuple[Drag, ...]:
    """(1, frames, points, 2) in pixels (x, y) of an image of (width, height) → fractions."""
    first, last = tracks[0, 0] / np.array(image_dim), tracks[0, -1] / np.array(image_dim)
    inside = ((first >= 0) & (first < 1) & (last >= 0) & (last < 1)).all(axis=1)
    return tuple(
        Drag(source=Point(x=x, y=y), destination=Point(x=to_x, y=to_y))
        for (x, y), (to_x, to_y) in zip(first[inside].tolist(), last[inside].tolist(), strict=True)
    )


def _stored(path: Path) -> StoredImage:
    with Image.open(path) as image:
        width, height = image.size
    return StoredImage(
        upload_id=path.name,
        key=str(path.resolve()),
        sha256=sha256_of(path),
        width=width,
        height=height,
    )


def _check(
    example: Example, models: ModelCache, size: int, steps: int
) -> tuple[Check, list[Image.Image | None]]:
    request = GenerationRequest(
        **{
            "model": MODEL,
            "negative_prompt": "",
            "num_images": 1,
            "seed": 100,
            "height": size,
            "width": size,
            "num_inference_steps": steps,
            "guidance_scale": 7.5,
            "eta": 0.0,
            "form": "two_pass",
            "branch": "both",
            "update_rule": "elementwise",
            "output": OutputOptions(),
        }
        | example.fields
    )
    off = tuple(control.model_copy(update={"weight": 0.0}) for control in request.controls)
    unguided = _run(request.model_copy(update={"controls": off}), models)
    guided = _run(request, models)
    heads = [control.head for control in request.controls]
    peak = guided.peak_bytes
    check = Check(
        name=example.name,
        unguided=dict(zip(heads, unguided.distances[0], strict=True)),
        guided=dict(zip(heads, guided.distances[0], strict=True)),
        seconds=guided.timings["sample"] + guided.timings["decode"],
        peak_gib=None if peak is None else round(peak / 2**30, 2),
        psnr_db=guided.reference_psnr_db,
    )
    return check, [example.shown, unguided.images[0], guided.images[0], guided.readouts[0][-1]]


def _run(request: GenerationRequest, models: ModelCache) -> Execution:
    def load_image(stored: StoredImage) -> Image.Image:
        with Image.open(stored.key) as image:
            return image.convert("RGB")

    return execute(request, models, load_image, lambda step_index, num_steps: None)


def _line(check: Check) -> str:
    distances = ", ".join(
        f"{head.rpartition('/')[2]} {check.unguided[head]:.4f} → {check.guided[head]:.4f}"
        for head in check.guided
    )
    psnr = "" if check.psnr_db is None else f", reconstruction {check.psnr_db:.1f} dB"
    peak = "" if check.peak_gib is None else f", {check.peak_gib} GiB"
    verdict = "closer" if check.is_closer else "NOT CLOSER"
    return f"{verdict:<10} {check.name}: {distances}{psnr}, {check.seconds:.1f} s{peak}"


def _sheet(rows: list[list[Image.Image | None]], size: int) -> Image.Image:
    """A row an example: control or source, unguided, guided, readout."""
    cell = min(size, 256)
    sheet = Image.new("RGB", (4 * cell, len(rows) * cell), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            if picture is not None:
                sheet.paste(picture.resize((cell, cell)), (column * cell, row * cell))
    return sheet
