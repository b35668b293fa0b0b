"""`readout keys` against a real Redis, named by the environment or by a data directory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from jobs.settings import CoreSettings
from stack.datadir import DataDir

runner = CliRunner()


@pytest.mark.parametrize("by", ["environment", "data directory"])
def test_create_list_revoke(
    by: str, core_settings: CoreSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = core_settings.redis_url.get_secret_value()
    monkeypatch.setenv("READOUT_REDIS_PREFIX", core_settings.redis_prefix)
    for name in ("REDIS_URL", "READOUT_REDIS_URL"):
        monkeypatch.setenv(name, "-")  # so that what the command sets is taken back
        monkeypatch.delenv(name)
    where = ["--data-dir", str(tmp_path)]
    if by == "environment":
        monkeypatch.setenv("REDIS_URL", url)
    else:
        DataDir(tmp_path).publish_servers({"READOUT_REDIS_URL": url})
        assert (tmp_path / "servers.json").stat().st_mode & 0o077 == 0
    made = runner.invoke(cli.app, ["keys", "create", "the shop", *where])
    assert made.exit_code == 0, made.output
    token = re.fullmatch(r"(rdo_([0-9a-f]{16})_[\w-]{43})\n", made.stdout)
    assert token
    listed = runner.invoke(cli.app, ["keys", "list", *where]).stdout
    assert "the shop" in listed
    assert "valid" in listed
    assert token[1] not in listed
    assert runner.invoke(cli.app, ["keys", "revoke", token[2], *where]).exit_code == 0
    assert "revoked" in runner.invoke(cli.app, ["keys", "list", *where]).stdout
    unknown = runner.invoke(cli.app, ["keys", "revoke", "0", *where])
    assert unknown.exit_code == 1
    assert "no API key '0'" in unknown.stderr
    wrong = runner.invoke(cli.app, ["keys", "create", "x", "--owner", "Ünsinn", *where])
    assert wrong.exit_code == 2
    assert "a-z" in wrong.stderr


def test_without_a_redis_it_says_what_to_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("REDIS_URL", "READOUT_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    result = runner.invoke(cli.app, ["keys", "list", "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "set REDIS_URL" in result.stderr


def test_a_gateway_without_keys_does_not_bind_where_strangers_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("READOUT_AUTH", "none")
    result = runner.invoke(cli.app, ["gateway", "--host", "0.0.0.0"])
    assert result.exit_code == 2
    assert "none-anywhere" in result.stderr
