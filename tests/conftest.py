"""Fixtures that every room's tests share: real servers, settings on them, tiny models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from jobs.settings import CoreSettings
from stack.servers import Server
from tests.servers import S3, running_s3, running_valkey, settings_for


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """Commands run in the test's process send the logs to a stream that is closed afterwards."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def server_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the embedded servers keep their data; the space is on purpose."""
    return tmp_path_factory.mktemp("servers") / "a path with a space"


@pytest.fixture(scope="session")
def valkey(server_directory: Path) -> Iterator[Server]:
    """A real Valkey for the whole session."""
    with running_valkey(server_directory) as server:
        yield server


@pytest.fixture(scope="session")
def s3(server_directory: Path) -> Iterator[S3]:
    """A real S3 server for the whole session."""
    with running_s3(server_directory) as server:
        yield server


@pytest.fixture
def core_settings(valkey: Server, s3: S3) -> CoreSettings:
    """Settings on the session's servers with a key prefix and a bucket of the test's own."""
    return settings_for(valkey.url, s3.url)


@pytest.fixture(scope="session")
def tiny_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry directory with the random model ``tiny`` and its heads; needs torch."""
    pytest.importorskip("torch")
    from tests.tiny import build_tiny_registry

    directory = tmp_path_factory.mktemp("tiny registry")
    build_tiny_registry(directory)
    return directory


@pytest.fixture
def tiny_registry_copy(tiny_registry: Path, tmp_path: Path) -> Path:
    """The tiny registry, to be changed by one test."""
    return Path(shutil.copytree(tiny_registry, tmp_path / "tiny registry"))
