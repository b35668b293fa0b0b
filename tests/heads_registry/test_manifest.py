from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from heads_registry.catalogue import (
    BUILTIN_DIR,
    Catalogue,
    IncompatibleHead,
    UnknownHead,
    UnknownModel,
)
from heads_registry.manifest import HeadManifest, ManifestError

MODEL = {
    "name": "base",
    "title": "Base",
    "family": "fam",
    "pipeline": "stable-diffusion",
    "source": "./base",
    "licence": "Apache-2.0",
}
HEAD = {
    "name": "pose",
    "title": "Pose",
    "kind": "spatial",
    "signal": "pose",
    "base_model": "fam",
    "weights": "pose.safetensors",
    "sha256": "0" * 64,
    "feature_taps": ["up_blocks.0.resnets.0.conv2"],
    "feature_channels": [8],
    "projection_channels": 16,
    "time_embedding_channels": 32,
    "output_channels": 3,
    "licence": "Apache-2.0",
}


def write_registry(directory: Path, models: list[dict], heads: list[dict]) -> Path:
    for kind, manifests in (("models", models), ("heads", heads)):
        (directory / kind).mkdir(parents=True)
        for index, manifest in enumerate(manifests):
            (directory / kind / f"{index}.yaml").write_text(yaml.safe_dump(manifest))
    return directory


def test_a_dropped_manifest_is_found_and_paths_start_beside_it(tmp_path: Path) -> None:
    catalogue = Catalogue([write_registry(tmp_path / "a b", [MODEL], [HEAD])])
    model = catalogue.model("base")
    head = catalogue.head(model, "pose")
    assert head is catalogue.head(model, "fam/pose")
    assert head.weights_path == tmp_path / "a b" / "heads" / "pose.safetensors"
    assert model.location == str(tmp_path / "a b" / "models" / "base")


def test_a_hub_id_stays_as_it_is(tmp_path: Path) -> None:
    model = MODEL | {"source": "owner/name"}
    catalogue = Catalogue([write_registry(tmp_path / "r", [model], [])])
    assert catalogue.model("base").location == "owner/name"


def test_a_fine_tuned_checkpoint_uses_its_familys_heads(tmp_path: Path) -> None:
    tuned = MODEL | {"name": "tuned"}
    catalogue = Catalogue([write_registry(tmp_path / "r", [MODEL, tuned], [HEAD])])
    assert [head.id for head in catalogue.heads_for(catalogue.model("tuned"))] == ["fam/pose"]


def test_later_directories_win(tmp_path: Path) -> None:
    first = write_registry(tmp_path / "1", [MODEL], [HEAD])
    second = write_registry(tmp_path / "2", [MODEL | {"title": "Mine"}], [])
    catalogue = Catalogue([first, second])
    assert catalogue.model("base").title == "Mine"
    assert catalogue.heads


def test_unknown_and_foreign_names_say_what_is_there(tmp_path: Path) -> None:
    other = MODEL | {"name": "other", "family": "elsewhere"}
    catalogue = Catalogue([write_registry(tmp_path / "r", [MODEL, other], [HEAD])])
    with pytest.raises(UnknownModel, match=r"'nope'.*base, other"):
        catalogue.model("nope")
    with pytest.raises(UnknownHead, match=r"'depth'.*heads that fit: pose"):
        catalogue.head(catalogue.model("base"), "depth")
    for name in ("pose", "fam/pose"):
        with pytest.raises(IncompatibleHead, match=r"belongs to the fam family.*'elsewhere'"):
            catalogue.head(catalogue.model("other"), name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "surprise"),
        ({"feature_channels": [8, 8]}, "same length"),
        ({"output_channels": None}, "output_channels"),
        ({"value_range": [1, -1]}, "low < high"),
        ({"sha256": "abc"}, "sha256"),
        ({"defaults": {"span": [0.5, 0.5]}}, "start < end"),
    ],
)
def test_a_broken_manifest_is_named_by_file_and_field(
    tmp_path: Path, change: dict, message: str
) -> None:
    registry = write_registry(tmp_path / "r", [], [HEAD | change])
    with pytest.raises(ManifestError, match=message) as caught:
        Catalogue([registry])
    assert "0.yaml" in str(caught.value)


def test_yaml_that_is_none_and_directories_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "head.yaml"
    path.write_text("a: [")
    with pytest.raises(ManifestError, match="not valid YAML"):
        HeadManifest.load(path)
    with pytest.raises(ManifestError, match="no such registry directory"):
        Catalogue([tmp_path / "missing"])


def test_every_shipped_manifest_loads() -> None:
    Catalogue([BUILTIN_DIR])


def test_every_shipped_weight_is_the_one_its_manifest_names() -> None:
    catalogue = Catalogue([BUILTIN_DIR])
    named = {
        Path(part.location) / file: sha256
        for part in (*catalogue.models.values(), *catalogue.adapters)
        for file, sha256 in part.sha256.items()
    } | {head.weights_path: head.sha256 for head in catalogue.heads}
    for path, sha256 in named.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256, path
    shipped = set(BUILTIN_DIR.rglob("*.safetensors")) - {
        BUILTIN_DIR / "faces/mannequin.safetensors"
    }
    assert shipped == set(named)
    assert all(path.stat().st_size <= 16 * 2**20 for path in shipped)
