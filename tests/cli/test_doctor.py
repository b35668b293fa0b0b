"""What doctor says of real servers, healthy and not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import cli
import doctor
from jobs.connection import connect
from jobs.references import REFERENCES
from jobs.settings import CoreSettings
from jobs.store import ObjectStore
from stack.datadir import DataDir
from stack.servers import Server
from tests.servers import S3, running_valkey, settings_for


def examine(settings: CoreSettings) -> dict[str, doctor.Finding]:
    return {finding.about: finding for finding in doctor.examine(settings)}


def test_the_embedded_servers_are_well(core_settings: CoreSettings) -> None:
    lines: list[str] = []
    assert doctor.main(core_settings, lines.append) == 0
    found = examine(core_settings)
    wrong = {about for about, finding in found.items() if finding.state != "ok"}
    assert wrong == {"workers", "reconciler"}  # none runs here
    assert "fsync always" in found["redis persistence"].says
    assert found["model mannequin-64"].says.startswith("files are there")
    assert found["adapter mannequin-64/pose-controlnet"].says == "files are there, 1 hashes"
    assert any(line.startswith("WEAK  workers: none is alive") for line in lines)


def test_it_finds_the_servers_of_a_running_stack(
    core_settings: CoreSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    access_key, secret = core_settings.s3_access_key_id, core_settings.s3_secret_access_key
    assert access_key is not None
    assert secret is not None
    servers = {
        "READOUT_REDIS_URL": core_settings.redis_url.get_secret_value(),
        "READOUT_S3_ENDPOINT_URL": core_settings.s3_endpoint_url,
        "READOUT_S3_ACCESS_KEY_ID": access_key.get_secret_value(),
        "READOUT_S3_SECRET_ACCESS_KEY": secret.get_secret_value(),
    }
    for name in ("REDIS_URL", "READOUT_S3_BUCKET", *servers):
        monkeypatch.setenv(name, "-")  # so that what the command sets is taken back
        monkeypatch.delenv(name)
    DataDir(tmp_path).publish_servers(servers)
    examined = CliRunner().invoke(cli.app, ["doctor", "--data-dir", str(tmp_path)])
    assert "ok    redis persistence" in examined.stdout
    assert "ok    storage" in examined.stdout


def test_weak_redis_settings_are_named_with_their_remedy(tmp_path: Path, s3: S3) -> None:
    with running_valkey(tmp_path) as valkey:
        settings = settings_for(valkey.url, s3.url)
        client = connect(settings)
        client.config_set("appendfsync", "everysec")
        client.config_set("maxmemory-policy", "allkeys-lru")
        found = examine(settings)
        assert found["redis persistence"].state == "weak"
        assert "up to a second" in found["redis persistence"].says
        assert found["redis persistence"].mend == "set appendfsync always"
        assert found["redis eviction"].state == "weak"
        client.config_set("appendonly", "no")
        client.config_set("maxmemory", "100mb")
        found = examine(settings)
        assert found["redis persistence"].state == found["redis eviction"].state == "wrong"
        assert doctor.main(settings, lambda line: None) == 1
        client.close()


def test_peers_that_are_away_are_findings_too(valkey: Server, s3: S3) -> None:
    away = settings_for("redis://127.0.0.1:1/0", "http://127.0.0.1:1")
    found = examine(away)
    assert {"redis", "redis clock", "storage", "workers"} <= set(found)
    assert "REDIS_URL" in found["redis"].mend
    assert "READOUT_S3" in found["storage"].mend
    refused = settings_for(valkey.url, s3.url, s3_secret_access_key="wrong")
    assert examine(refused)["storage"].state == "wrong"


@pytest.mark.torch
def test_damaged_files_are_named(core_settings: CoreSettings, tiny_registry_copy: Path) -> None:
    settings = core_settings.model_copy(update={"registry_dirs": (tiny_registry_copy,)})
    assert examine(settings)["head tiny/pose"].state == "ok"
    weights = tiny_registry_copy / "heads" / "tiny-pose.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    (tiny_registry_copy / "heads" / "tiny-depth.safetensors").unlink()
    (tiny_registry_copy / "models" / "tiny" / "model_index.json").unlink()
    found = examine(settings)
    assert "not the file" in found["head tiny/pose"].says
    assert "no weights" in found["head tiny/depth"].says
    assert found["model tiny"].state == "wrong"
    manifest = tiny_registry_copy / "models" / "tiny.yaml"
    manifest.write_text(yaml.safe_dump(yaml.safe_load(manifest.read_text()) | {"height": "tall"}))
    assert "height" in examine(settings)["registry"].says


@pytest.mark.parametrize(("ahead_s", "state"), [(0.2, "ok"), (-30.0, "weak"), (4000.0, "wrong")])
def test_clocks_that_differ(ahead_s: float, state: str) -> None:
    finding = doctor._clock("redis", ahead_s)
    assert finding.state == state
    assert ("behind" in finding.says) == (ahead_s < 0)


def test_where_references_are_kept_is_looked_at(
    core_settings: CoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("READOUT_REFERENCE_DIR", str(tmp_path / "references"))
    monkeypatch.setenv("READOUT_REFERENCE_DISK_BYTES", "1000")
    shared = core_settings.model_copy(update={"reference_storage_bytes": 100})
    store = ObjectStore(core_settings)
    store.ensure_bucket()
    store.put_bytes(f"{REFERENCES}{'0' * 64}.safetensors", b"0" * 150)
    found = examine(shared)
    assert found["reference directory"].state == "ok"
    assert found["shared references"].says.startswith("150 of 100 bytes")
    store.put_bytes(f"{REFERENCES}{'1' * 64}.safetensors", b"0" * 150)
    monkeypatch.setenv("READOUT_REFERENCE_DISK_BYTES", str(2**60))
    found = examine(shared)
    assert found["reference directory"].state == "weak"
    assert "reconciler" in found["shared references"].mend
    store.close()
