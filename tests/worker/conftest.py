from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from jobs.connection import connect
from jobs.queue import JobQueue
from jobs.record import RecordStore
from jobs.settings import CoreSettings
from jobs.store import ObjectStore
from worker.settings import WorkerSettings


@dataclass(frozen=True)
class Stack:
    """Everything of jobs/ on one set of settings."""

    settings: WorkerSettings
    client: redis.Redis
    records: RecordStore
    queue: JobQueue
    store: ObjectStore


@pytest.fixture
def worker_settings(core_settings: CoreSettings) -> WorkerSettings:
    return WorkerSettings.model_validate(core_settings.model_dump() | {"storage_patience_s": 5.0})


@pytest.fixture
def stack(worker_settings: WorkerSettings) -> Iterator[Stack]:
    client, queue = connect(worker_settings), JobQueue(worker_settings)
    store = ObjectStore(worker_settings)
    store.ensure_bucket()
    yield Stack(worker_settings, client, RecordStore(client, worker_settings), queue, store)
    for connection in (client, queue, store):
        connection.close()


@pytest.fixture(scope="session")
def relative_registry(tiny_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny registry that has relative heads too."""
    from tests.tiny import add_relative_heads

    directory = tmp_path_factory.mktemp("relative") / "registry"
    shutil.copytree(tiny_registry, directory)
    return add_relative_heads(directory)
