from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from jobs.connection import connect
from jobs.queue import JobQueue
from jobs.reconciler import Reconciler
from jobs.record import RecordStore
from jobs.settings import CoreSettings
from jobs.store import ObjectStore


@pytest.fixture
def client(core_settings: CoreSettings) -> Iterator[redis.Redis]:
    client = connect(core_settings)
    yield client
    client.close()


@pytest.fixture
def records(client: redis.Redis, core_settings: CoreSettings) -> RecordStore:
    return RecordStore(client, core_settings)


@pytest.fixture
def queue(core_settings: CoreSettings) -> Iterator[JobQueue]:
    queue = JobQueue(core_settings)
    yield queue
    queue.close()


@pytest.fixture
def store(core_settings: CoreSettings) -> Iterator[ObjectStore]:
    store = ObjectStore(core_settings)
    store.ensure_bucket()
    yield store
    store.close()


@pytest.fixture
def reconciler(
    core_settings: CoreSettings, client: redis.Redis, queue: JobQueue, store: ObjectStore
) -> Reconciler:
    return Reconciler(core_settings, client, queue, store)
