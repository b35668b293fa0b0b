"""`python -m evaluation.results`, or `make results`: measures, and writes docs/results.md.

Every part can be measured alone. Its rows lie in docs/results/, with the command and a fingerprint
of what they were measured on: models, heads, adapters, their defaults, and the judges. The report
leaves out what was measured on anything else. Pictures are kept under runs/results, so that a
stopped run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path

from evaluation import (
    adapters,
    best_of,
    choices,
    heads,
    learning,
    second_drag,
    spatial,
    tasks,
)
from evaluation.generate import MODEL
from heads_registry.catalogue import BUILTIN_DIR, Catalogue, UnknownHead
from service.errors import UnknownHeadName

STORED = Path("docs/results")
REPORT = Path("docs/results.md")
BENCHES = "bench.md"
"""In `STORED`: what `bench/` and the parity tests print, which are started by hand."""
JUDGES = Path(__file__).with_name("weights")

Row = dict[str, str | float]
Part = tuple[str, Callable[[int], list[Row]]]
PARTS: dict[str, Part] = (
    spatial.PARTS
    | heads.PARTS
    | learning.PARTS
    | adapters.PARTS
    | tasks.PARTS
    | second_drag.PARTS
    | choices.PARTS
    | best_of.PARTS
)
"""name → title, function of the count of held-out scenes."""

DRAG = ("appearance", "correspondence")
SPATIAL = ("pose", "depth", "edge")
HEADS: dict[str, tuple[str, ...]] = {
    "text": (),
    "data": (),
    "conditioning": (),
    "recognisers": (),
    "choose_raw": (),
    "choose": SPATIAL,
    "depth_and_edge": ("depth", "edge"),
    "readouts": SPATIAL,
    "training_cost": (*SPATIAL, *DRAG, "identity"),
    "correspondence": ("correspondence",),
    "appearance": ("appearance",),
    "identity": ("identity",),
    "keep_appearance": ("appearance",),
    "keep_identity": ("appearance", "identity"),
    "choose_appearance": ("appearance",),
    "choose_identity": ("appearance", "identity"),
    "second_drag": DRAG,
} | dict.fromkeys(("drag", "drag_real", "choose_drag", "choose_masked_drag"), (*DRAG, "pose"))
"""part → heads that it depends on, beside the base model; of the others, pose alone."""

UNJUDGED = (*heads.PARTS, "readouts", "training_cost")
"""Parts that no judge has a say in."""

TASKS = {
    "drag": "drag",
    "drag_real": "drag",
    "second_drag": "drag",
    "keep_appearance": "appearance",
    "keep_identity": "identity",
}
"""part → task whose defaults it depends on; choices name all that they change."""


def fingerprint(part: str) -> str:
    """SHA-256 of what a part's figures depend on, as it is now."""
    catalogue = Catalogue([BUILTIN_DIR])
    model = catalogue.model(MODEL)
    used = [model, *(catalogue.head(model, name) for name in HEADS.get(part, ("pose",)))]
    if part in adapters.PARTS:
        used += catalogue.adapters_for(model)
    digest = hashlib.sha256()
    for manifest in used:
        said = manifest.model_dump_json(exclude={"metrics", "description", "tasks"})
        digest.update(said.encode())
    if part in TASKS and (defaults := model.tasks.get(TASKS[part])) is not None:
        digest.update(defaults.model_dump_json(exclude_none=True).encode())
    for judge in sorted(JUDGES.glob("*.safetensors")) if part not in UNJUDGED else ():
        digest.update(judge.read_bytes())
    return digest.hexdigest()


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def store(folder: Path, part: str, count: int, rows: list[Row]) -> None:
    """Keep what a part measured."""
    content = {
        "command": f"python -m evaluation.results --parts {part} --count {count}",
        "measured_on": fingerprint(part),
        "rows": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{part}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def stored(folder: Path, part: str) -> tuple[str, list[Row]] | None:
    """Command and rows of a part that was measured on what is there now."""
    path = folder / f"{part}.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    if content.get("measured_on") != fingerprint(part):
        return None
    return content["command"], content["rows"]


def report(folder: Path) -> str:
    """The report, of all parts that were measured on what is there now."""
    lines = [
        "# Results",
        "",
        "Written by `make results`; every table names its command. Intervals are 95 % bootstrap",
        "over pictures; guided and unguided pictures share their noise seeds. The judge is a",
        "network trained on clean renders alone (`evaluation/judge.py`). PCK@a counts a key point",
        "as right within a times the longer side of the predicted pose's box (section 5).",
    ]
    missing = []
    for name, (title, measure) in PARTS.items():
        found = stored(folder, name)
        if found is None:
            missing.append(title)
            continue
        command, rows = found
        says = inspect.cleandoc(measure.__doc__ or "")
        lines += ["", f"## {title}", "", says, "", f"`{command}`", "", table(rows)]
    if missing:
        lines += ["", "Not measured yet on these weights: " + "; ".join(missing) + "."]
    if (folder / BENCHES).is_file():
        lines += ["", (folder / BENCHES).read_text().strip()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the parts that are asked for and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--count", type=int, default=400, help="held-out scenes")
    options = parser.parse_args()
    for name in options.parts:
        title, measure = PARTS[name]
        try:
            rows = measure(options.count)
        except (UnknownHead, UnknownHeadName) as error:
            print(f"\n{title}: left out, {error}", flush=True)
            continue
        store(STORED, name, options.count, rows)
        print(f"\n## {title}\n\n{table(rows)}", flush=True)
    REPORT.write_text(report(STORED))


if __name__ == "__main__":
    main()
