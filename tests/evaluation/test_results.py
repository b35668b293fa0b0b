"""The report holds what was measured on the weights that ship, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation import results
from evaluation.results import HEADS, PARTS, REPORT, STORED, fingerprint, report, store, stored

ROWS: list[dict[str, str | float]] = [{"head": "pose", "error": 0.5}, {"head": "edge", "n": 3}]


def test_the_report_is_that_of_the_stored_figures() -> None:
    assert REPORT.read_text() == report(STORED), "run `python -m evaluation.results --parts`"


def test_figures_of_other_weights_are_left_out(tmp_path: Path) -> None:
    store(tmp_path, "readouts", 100, ROWS)
    assert stored(tmp_path, "readouts") == (
        "python -m evaluation.results --parts readouts --count 100",
        ROWS,
    )
    written = report(tmp_path)
    assert "| head | error | n |\n| --- | --- | --- |\n| pose | 0.5 |  |" in written
    path = tmp_path / "readouts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"measured_on": "others"}))
    assert stored(tmp_path, "readouts") is None
    assert "| pose | 0.5" not in report(tmp_path)
    assert PARTS["readouts"][0] in report(tmp_path).partition("Not measured yet")[2]


def test_a_part_depends_on_the_heads_that_it_uses() -> None:
    assert set(HEADS) <= set(PARTS)
    assert fingerprint("drag") == fingerprint("drag_real") != fingerprint("second_drag")
    assert fingerprint("drag") != fingerprint("choose_drag"), (
        "a choice depends on no task's defaults"
    )
    assert fingerprint("pose") == fingerprint("best_of") != fingerprint("text")
    assert fingerprint("adapters") != fingerprint("pose")


def test_a_part_depends_on_the_judges_that_it_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {part: fingerprint(part) for part in PARTS}
    monkeypatch.setattr(results, "JUDGES", tmp_path)
    assert {part for part in PARTS if fingerprint(part) == before[part]} == set(results.UNJUDGED)
