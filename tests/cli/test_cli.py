from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli

runner = CliRunner()
WORKER_SIDE = ("torch", "diffusers", "fastapi", "uvicorn", "httpx", "boto3", "redis", "rq", "numpy")


def test_the_command_alone_imports_no_room() -> None:
    """Which keeps `readout --help` quick: typer is all that is loaded."""
    code = "import cli, sys; print([name for name in sys.argv[1:] if name in sys.modules])"
    command = [sys.executable, "-X", "importtime", "-c", code, *WORKER_SIDE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "command",
    [
        "up",
        "generate",
        "drag",
        "vary",
        "heads pull",
        "acceptance",
        "gateway",
        "worker",
        "reconciler",
        "heads list",
        "adapters list",
        "annotate",
        "heads check",
        "train head",
        "models list",
        "version",
        "keys create",
        "keys list",
        "keys revoke",
    ],
)
def test_every_command_has_help(command: str) -> None:
    result = runner.invoke(cli.app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_version() -> None:
    result = runner.invoke(cli.app, ["version"])
    assert result.output.startswith("0.")


def test_a_broken_registry_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("READOUT_REGISTRY_DIRS", "/nowhere")
    result = runner.invoke(cli.app, ["heads", "list"])
    assert result.exit_code == 2
    assert result.stderr == "readout: /nowhere: no such registry directory\n"


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("READOUT_LOG_FORMAT", "xml")
    result = runner.invoke(cli.app, ["models", "list"])
    assert result.exit_code == 2
    assert result.stderr.startswith("readout: setting log_format: ")


def test_what_is_installed_is_listed(tiny_registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("READOUT_REGISTRY_DIRS", str(tiny_registry))
    assert "tiny/pose" in runner.invoke(cli.app, ["heads", "list"]).output
    assert "Tiny random model" in runner.invoke(cli.app, ["models", "list"]).output


def test_exit_codes_of_generate(tmp_path: Path) -> None:
    nobody = ["--url", "http://127.0.0.1:1"]
    assert runner.invoke(cli.app, ["generate", "x", *nobody]).exit_code == 4
    wrong = runner.invoke(cli.app, ["generate", "x", "--control", "pose", *nobody])
    assert wrong.exit_code == 2
    assert "write HEAD=IMAGE" in wrong.stderr
    missing = runner.invoke(cli.app, ["generate", "x", "--control", "pose=none.png", *nobody])
    assert missing.exit_code == 2
    assert "none.png: No such file" in missing.stderr
    keypoints = tmp_path / "pose.json"
    keypoints.write_text("{")
    broken = runner.invoke(cli.app, ["generate", "x", "--keypoints", str(keypoints), *nobody])
    assert broken.exit_code == 2
    assert "not JSON" in broken.stderr


@pytest.mark.parametrize("room", ["worker", "reconciler"])
def test_health_checks_say_no_without_redis(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:1/{os.getpid() % 16}")
    monkeypatch.delenv("READOUT_REDIS_URL", raising=False)
    result = runner.invoke(cli.app, [room, "--check"])
    assert result.exit_code == 1
    assert "Redis does not answer" in result.stderr
