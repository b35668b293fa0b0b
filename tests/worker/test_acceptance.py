"""The acceptance script on the recordings' tiny pipeline: real files, real heads, few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heads_registry.importers import import_head
from tests.parity.golden import DATA
from worker.acceptance import NothingToAccept, accept


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    registry = tmp_path_factory.mktemp("heads")
    for name in ("spatial_depth", "drag_appearance", "drag_correspondence"):
        import_head(DATA / f"readout_tinysd15_{name}.pt", registry)
    return registry


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """One control and one real drag, in the authors' layout."""
    depth, drag = tmp_path / "data" / "spatial" / "depth", tmp_path / "data" / "drag" / "real" / "a"
    for folder in (depth, drag, tmp_path / "annotations" / "spatial"):
        folder.mkdir(parents=True)
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[:, None, None], (1, 64, 3))
    Image.fromarray(ramp).save(depth / "one.png")
    Image.fromarray(ramp).save(drag / "source.png")
    (tmp_path / "annotations" / "spatial" / "depth.json").write_text('{"one": "a giraffe"}')
    (drag / "info.json").write_text('{"prompt": "a wolf", "image_dim": [64, 64]}')
    np.save(drag / "tracks_head.npy", np.array([[[[8, 8], [900, 8]], [[40, 40], [8, 8]]]]))
    return tmp_path


def test_examples_become_a_table_a_report_and_a_sheet(
    heads: Path, examples: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    model = str(DATA / "pipelines" / "tiny-sd15")
    out = tmp_path / "out"
    checks = accept(model, heads, examples, out, size=64, steps=4, echo=lines.append)
    assert [check.name for check in checks] == ["depth one", "drag a head"]
    assert set(checks[1].guided) == {"sd15/appearance", "sd15/correspondence"}
    assert checks[0].psnr_db is None
    assert checks[1].psnr_db is not None
    assert len(lines) == 2
    assert json.loads((out / "report.json").read_text())[0]["name"] == "depth one"
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size == (4 * 64, 2 * 64)


def test_what_is_missing_is_said(heads: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingToAccept, match="heads pull"):
        accept("m", tmp_path, tmp_path, tmp_path, size=64)
    with pytest.raises(NothingToAccept, match="data/spatial"):
        accept("m", heads, tmp_path, tmp_path, size=64)
