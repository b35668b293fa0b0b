from __future__ import annotations

import threading
import time

import pytest
import redis
from structlog.testing import capture_logs

from jobs import reconciler as module
from jobs.batches import BatchItem, BatchStore
from jobs.errors import ObjectNotFound
from jobs.keys import canceling_key, ended_batches_key, expiring_key, sweep_key
from jobs.queue import JobQueue
from jobs.reconciler import Reconciler, run_forever
from jobs.record import Failure, FailureCode, JobNotFound, JobState, RecordStore
from jobs.settings import CoreSettings
from jobs.store import ObjectStore
from tests.jobs.samples import a_request, a_result, let_lease_expire


def make_due(client: redis.Redis, settings: CoreSettings) -> None:
    key = sweep_key(settings)
    for member in client.zrange(key, 0, -1):
        client.zadd(key, {member: 0})


def test_a_record_in_no_list_is_enqueued_after_two_looks(
    records: RecordStore, queue: JobQueue, reconciler: Reconciler
) -> None:
    job = records.create(a_request()).id
    reconciler.reconcile_once()
    assert list(queue.waiting()) == []
    for _ in range(3):
        reconciler.reconcile_once()
    assert list(queue.waiting()) == [job]


def test_a_lost_worker_s_job_is_enqueued_again(
    records: RecordStore,
    queue: JobQueue,
    reconciler: Reconciler,
    client: redis.Redis,
    core_settings: CoreSettings,
) -> None:
    job = records.create(a_request()).id
    records.start(job, "w")
    reconciler.reconcile_once()
    assert records.get(job).state is JobState.RUNNING
    let_lease_expire(client, core_settings, job)
    reconciler.reconcile_once(expire_leases=False)
    assert records.get(job).state is JobState.RUNNING
    reconciler.reconcile_once()
    assert records.get(job).state is JobState.QUEUED
    assert list(queue.waiting()) == [job]


def test_a_job_that_kills_every_worker_fails_as_worker_lost(
    records: RecordStore, reconciler: Reconciler, client: redis.Redis, core_settings: CoreSettings
) -> None:
    job = records.create(a_request()).id
    for _ in range(core_settings.max_attempts):
        records.start(job, "w")
        let_lease_expire(client, core_settings, job)
        reconciler.reconcile_once()
    failure = records.get(job).failure
    assert failure is not None
    assert failure.code == "worker_lost"


def test_objects_of_attempts_that_did_not_win_are_deleted(
    records: RecordStore,
    reconciler: Reconciler,
    store: ObjectStore,
    client: redis.Redis,
    core_settings: CoreSettings,
) -> None:
    job = records.create(a_request()).id
    lost = records.start(job, "w")
    store.put_bytes(f"jobs/{job}/{lost}/image-000.png", b"lost")
    let_lease_expire(client, core_settings, job)
    reconciler.reconcile_once()
    won = records.start(job, "w")
    store.put_bytes(f"jobs/{job}/{won}/image-000.png", b"won")
    records.succeed(job, won, a_result(job, won))
    make_due(client, core_settings)
    reconciler.reconcile_once()
    assert list(store.list_keys(f"jobs/{job}/")) == [f"jobs/{job}/{won}/image-000.png"]
    # A worker that hung may still have written; it is looked after once more.
    store.put_bytes(f"jobs/{job}/{lost}/image-001.png", b"late")
    make_due(client, core_settings)
    reconciler.reconcile_once()
    assert list(store.list_keys(f"jobs/{job}/")) == [f"jobs/{job}/{won}/image-000.png"]
    assert client.zcard(sweep_key(core_settings)) == 0


def test_a_canceled_job_s_objects_go_and_its_silent_worker_is_forgotten(
    records: RecordStore,
    reconciler: Reconciler,
    store: ObjectStore,
    client: redis.Redis,
    core_settings: CoreSettings,
) -> None:
    job = records.create(a_request()).id
    attempt = records.start(job, "w")
    store.put_bytes(f"jobs/{job}/{attempt}/image-000.png", b"x")
    records.request_cancel(job)
    reconciler.reconcile_once()
    assert client.zcard(canceling_key(core_settings)) == 1
    client.zadd(canceling_key(core_settings), {job: 0})
    make_due(client, core_settings)
    reconciler.reconcile_once()
    assert client.zcard(canceling_key(core_settings)) == 0
    assert list(store.list_keys(f"jobs/{job}/")) == []


def test_what_is_due_is_cleaned_in_one_pass_however_much_it_is(
    records: RecordStore,
    reconciler: Reconciler,
    store: ObjectStore,
    client: redis.Redis,
    core_settings: CoreSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BATCH", 10)
    monkeypatch.setattr(module, "CLEANING_S", 60.0)
    jobs = [f"gen_{number:024x}" for number in range(25)]
    for number, job in enumerate(jobs):
        store.put_bytes(f"jobs/{job}/1/x", b"x")
        client.zadd(expiring_key(core_settings), {job: 1 + number // 3})
    reconciler.reconcile_once()
    assert client.zcard(expiring_key(core_settings)) <= 4  # of the times where pages ended
    reconciler.reconcile_once()
    assert list(store.list_keys("jobs/")) == []


def test_a_manifest_that_a_killed_reconciler_did_not_write_is_written_by_the_next(
    records: RecordStore,
    reconciler: Reconciler,
    client: redis.Redis,
    core_settings: CoreSettings,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(*_: object) -> None:
        raise SystemExit

    batches = BatchStore(client, core_settings)
    batch = batches.create([BatchItem(a_request())], "", "local").id
    (job,) = records.take("w")
    records.succeed(job.id, job.attempt, a_result(job.id, job.attempt))
    with monkeypatch.context() as patch:
        patch.setattr(store, "put_bytes", die)
        with pytest.raises(SystemExit):
            reconciler.reconcile_once()
    assert batches.get(batch).manifest_key is None
    reconciler.reconcile_once()
    key = batches.get(batch).manifest_key
    assert key is not None
    assert job.id in store.get_bytes(key).decode()
    assert client.scard(ended_batches_key(core_settings)) == 0


def test_a_manifest_of_what_was_tried_again_meanwhile_does_not_count(
    records: RecordStore,
    reconciler: Reconciler,
    client: redis.Redis,
    core_settings: CoreSettings,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = BatchStore(client, core_settings)
    batch = batches.create([BatchItem(a_request())], "", "local").id

    def fail() -> None:
        (job,) = records.take("w")
        records.fail(job.id, job.attempt, Failure(code=FailureCode.DIVERGED, message="no"))

    def put(*arguments: object) -> None:
        time.sleep(0.002)  # it ends at another time
        batches.retry(batch, "")
        fail()
        monkeypatch.undo()

    fail()
    monkeypatch.setattr(store, "put_bytes", put)
    reconciler.reconcile_once()
    assert batches.get(batch).manifest_key is None
    reconciler.reconcile_once()
    assert batches.get(batch).manifest_key is not None


def test_an_expired_record_leaves_nothing_behind(
    records: RecordStore,
    reconciler: Reconciler,
    store: ObjectStore,
    client: redis.Redis,
    core_settings: CoreSettings,
) -> None:
    job = records.create(a_request()).id
    attempt = records.start(job, "w")
    store.put_bytes(f"jobs/{job}/{attempt}/image-000.png", b"x")
    records.succeed(job, attempt, a_result(job, attempt))
    longer = records.create(a_request()).id  # an older one that lives on holds nothing up
    client.delete(f"{core_settings.redis_prefix}:job:{job}")
    client.zadd(expiring_key(core_settings), {job: 0})
    reconciler.reconcile_once()
    assert [record.id for record in records.list().records] == [longer]
    assert client.zcard(expiring_key(core_settings)) == 0
    assert list(store.list_keys(f"jobs/{job}/")) == []
    assert records.counts()[JobState.SUCCEEDED] == 0
    with pytest.raises(JobNotFound):
        records.get(job)


def test_one_of_two_works(
    records: RecordStore,
    queue: JobQueue,
    reconciler: Reconciler,
    store: ObjectStore,
    client: redis.Redis,
    core_settings: CoreSettings,
) -> None:
    second = Reconciler(core_settings, client, queue, store)
    reconciler.reconcile_once()
    records.create(a_request())
    for _ in range(3):
        second.reconcile_once()
    assert list(queue.waiting()) == []
    reconciler.give_way()
    for _ in range(3):
        second.reconcile_once()
    assert len(queue.waiting()) == 1


def test_it_runs_until_it_is_told_to_stop(
    records: RecordStore,
    queue: JobQueue,
    core_settings: CoreSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.02)
    job, stop = records.create(a_request()).id, threading.Event()
    thread = threading.Thread(target=run_forever, args=(core_settings, stop))
    thread.start()
    for _ in range(200):
        if queue.waiting():
            break
        stop.wait(0.02)
    stop.set()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert list(queue.waiting()) == [job]


def test_it_makes_the_bucket_where_it_is_the_first_to_start(
    reconciler: Reconciler, store: ObjectStore, client: redis.Redis
) -> None:
    store._client.delete_bucket(Bucket=store._bucket)
    with pytest.raises(ObjectNotFound):
        store.ping()
    with capture_logs() as said:
        reconciler.reconcile_once()
    store.ping()
    assert not [entry for entry in said if entry["event"] == "reconciler.storage_unavailable"]


def test_uploads_expire_unless_a_waiting_job_needs_them(
    records: RecordStore,
    store: ObjectStore,
    queue: JobQueue,
    client: redis.Redis,
    core_settings: CoreSettings,
) -> None:
    ids = [f"upl_{character * 32}" for character in "abc"]
    for upload in ids:
        store.put_bytes(f"uploads/{upload}.png", b"x")
        store.put_bytes(f"uploads/{upload}.json", b"{}")
    image = {"upload_id": ids[0], "key": f"uploads/{ids[0]}.png", "sha256": "0" * 64}
    image |= {"width": 8, "height": 8}
    control = {"head": "tiny/pose", "image": image, "weight": 0.5, "span": (0, 0.5)}
    job = records.create(a_request(task="spatial", controls=(control,))).id

    def reconcile(upload_ttl_s: float) -> list[str]:
        settings = core_settings.model_copy(update={"upload_ttl_s": upload_ttl_s})
        reconciler = Reconciler(settings, client, queue, store)
        reconciler.reconcile_once()
        reconciler.give_way()
        return sorted(key.partition("/")[2] for key in store.list_keys("uploads/"))

    assert len(reconcile(3600)) == 6
    assert reconcile(-5) == [f"{ids[0]}.json", f"{ids[0]}.png"]  # as if a week had passed
    records.request_cancel(job)
    assert reconcile(-5) == []
