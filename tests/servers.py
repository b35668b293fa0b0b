"""Real embedded servers for tests: one a session, or one of its own for a test that breaks it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.settings import CoreSettings
from stack.servers import MissingPiece, Server, start_s3, start_valkey

ACCESS_KEY = "readout-tests"
SECRET_KEY = "a-secret-of-the-tests"


@dataclass(frozen=True)
class S3:
    """Where the embedded object storage is and who may use it."""

    server: Server
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    @property
    def url(self) -> str:
        """The endpoint."""
        return self.server.url


@contextmanager
def running(start: Callable[[], Server]) -> Iterator[Server]:
    """A server for the length of a block; without its wheel: skipped on a laptop, failed in CI."""
    try:
        server = start()
    except MissingPiece as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI must have the embedded servers: {error}")
        pytest.skip(str(error))
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def running_valkey(directory: Path, port: int | None = None) -> Iterator[Server]:
    """Valkey with its data under `directory`."""
    with running(lambda: start_valkey(directory / "valkey", port)) as server:
        yield server


@contextmanager
def running_s3(directory: Path, port: int | None = None) -> Iterator[S3]:
    """Object storage with its data under `directory`."""
    with running(lambda: start_s3(directory / "s3", ACCESS_KEY, SECRET_KEY, port)) as server:
        yield S3(server)


def settings_for(valkey_url: str, s3_url: str, **changes: object) -> CoreSettings:
    """Settings on these servers with a key prefix and a bucket that nobody else has."""
    unique = secrets.token_hex(6)
    values: dict[str, object] = {
        "redis_url": valkey_url,
        "redis_prefix": f"test-{unique}",
        "s3_endpoint_url": s3_url,
        "s3_bucket": f"test-{unique}",
        "s3_access_key_id": ACCESS_KEY,
        "s3_secret_access_key": SECRET_KEY,
    }
    return CoreSettings.model_validate(values | changes)


def environment_of(settings: CoreSettings, **changes: object) -> dict[str, str]:
    """The environment that gives a subprocess the same settings, on top of this process's."""
    variables: Mapping[str, object] = {
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "REDIS_PREFIX": settings.redis_prefix,
        "QUEUE": settings.queue,
        "S3_ENDPOINT_URL": settings.s3_endpoint_url,
        "S3_BUCKET": settings.s3_bucket,
        "S3_ACCESS_KEY_ID": ACCESS_KEY,
        "S3_SECRET_ACCESS_KEY": SECRET_KEY,
        "JOB_DEADLINE_S": settings.job_deadline_s,
        "MAX_ATTEMPTS": settings.max_attempts,
        "LEASE_S": settings.lease_s,
        "REGISTRY_DIRS": ":".join(str(path) for path in settings.registry_dirs),
    }
    ours = {f"READOUT_{name}": str(value) for name, value in (variables | changes).items()}
    return os.environ | {"OMP_NUM_THREADS": "1"} | ours
