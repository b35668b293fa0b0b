from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from heads_registry.base_model import BaseModel
from heads_registry.catalogue import Catalogue
from heads_registry.importers import import_head
from heads_registry.loading import check_fit, load_head
from heads_registry.manifest import ModelManifest
from heads_registry.networks import ReadoutHead
from tests.parity.golden import DATA, GOLDEN, arrays, assert_parity, needs_golden

with np.load(DATA / "heads.npz") as _recorded:
    COPIED = [path for path in sorted(DATA.glob("*.pt")) if f"{path.stem}_emb" in _recorded]
ALL = sorted((GOLDEN / "heads").glob("**/*.pt"))
LAYOUT = GOLDEN / "heads" / "RELEASED_LAYOUT.json"

heads = pytest.mark.parametrize(
    ("checkpoint", "units"),
    [(path, DATA / "heads.npz") for path in COPIED]
    + [
        pytest.param(path, GOLDEN / "units" / "heads_and_resize.npz", marks=needs_golden)
        for path in ALL
    ],
    ids=[f"copy-{path.stem}" for path in COPIED] + [path.stem for path in ALL],
)


def inputs(units: dict[str, Tensor], family: str) -> tuple[list[Tensor], Tensor]:
    """The recorded features at their native sizes, and the time embedding; first item."""
    names = sorted(name for name in units if name.startswith(f"{family}_raw_layer"))
    return [units[name][:1] for name in names], units[f"{family}_emb"][:1]


@heads
def test_imported_heads_say_what_the_authors_code_says(
    checkpoint: Path, units: Path, tmp_path: Path
) -> None:
    recorded = arrays(units)
    manifest = import_head(checkpoint, tmp_path).manifest
    head = load_head(manifest)
    features, embedding = inputs(recorded, manifest.base_model)
    for suffix, time_embedding in (("emb", embedding), ("noemb", None)):
        if manifest.timestep_convention == "none":
            time_embedding = None  # the authors' code drops it, the worker does not pass it
        expected = recorded[f"{checkpoint.stem}_{suffix}"].permute(0, 3, 1, 2)
        with torch.no_grad():
            readout = head(features, time_embedding, tuple(expected.shape[-2:]))
        assert_parity(readout, expected, "head")
    if manifest.timestep_convention != "none":
        difference = recorded[f"{checkpoint.stem}_emb"] - recorded[f"{checkpoint.stem}_noemb"]
        assert difference.abs().max() > 0.1, "the embedding must matter for the test to mean much"


@heads
def test_mixing_weights_are_a_softmax_over_the_taps(
    checkpoint: Path, units: Path, tmp_path: Path
) -> None:
    head = load_head(import_head(checkpoint, tmp_path).manifest)
    expected = arrays(units)[f"{checkpoint.stem}_softmax_mixing"]
    assert_parity(head.mixing_weights.softmax(dim=0), expected, "mixing")


@needs_golden
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_heads_fit_the_authors_tiny_models_and_share_their_time_embedding(
    family: str, tmp_path: Path
) -> None:
    path = tmp_path / "models" / "tiny.yaml"
    path.parent.mkdir()
    fields = {
        "name": "tiny",
        "title": "the authors' code's tiny model",
        "family": family,
        "pipeline": "stable-diffusion-xl" if family == "sdxl" else "stable-diffusion",
        "source": str(GOLDEN / "pipelines" / f"tiny-{family}"),
        "licence": "Apache-2.0",
    }
    path.write_text(yaml.safe_dump(fields))
    model = BaseModel.load(ModelManifest.load(path))
    for checkpoint in (GOLDEN / "heads").glob(f"readout_tiny{family}_*.pt"):
        import_head(checkpoint, tmp_path)
    imported = Catalogue([tmp_path]).heads
    assert [head.name for head in imported] == ["appearance", "correspondence", "depth", "pose"]
    for manifest in imported:
        check_fit(manifest, model.unet)
    recorded = arrays(GOLDEN / "units" / "heads_and_resize.npz")
    for timestep in (-1, 1, 10, 500, 991, 999):
        with torch.no_grad():
            embedding = model.embed_timestep(torch.tensor([float(timestep)]))
        assert_parity(embedding[0], recorded[f"{family}_embed_t{timestep}"], "time_embedding")


@needs_golden
@pytest.mark.parametrize("layout", json.loads(LAYOUT.read_text()) if LAYOUT.is_file() else [])
def test_full_size_networks_have_the_released_keys_and_shapes(layout: str) -> None:
    released = json.loads(LAYOUT.read_text())[layout]
    options = released["aggregation_kwargs"]
    with torch.device("meta"):
        head = ReadoutHead(
            released["dims"],
            384,
            released["emb_channels"],
            output_channels=options["output_head_channels"] if options["use_output_head"] else None,
            output_activation="tanh" if options.get("output_head_act", True) else "none",
        )
    shapes = {key: list(tensor.shape) for key, tensor in head.state_dict().items()}
    assert shapes == released["tensors"]
