from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis

from jobs.connection import connect, ping
from jobs.record import (
    Failure,
    FailureCode,
    JobCanceled,
    JobNotFound,
    JobsError,
    JobState,
    Progress,
    QueueFull,
    QueueUnavailable,
    RecordStore,
    StaleAttempt,
    StateConflict,
)
from jobs.settings import CoreSettings
from tests.jobs.samples import a_request, a_result, let_lease_expire
from tests.servers import running_valkey, settings_for

FAILURE = Failure(code=FailureCode.DIVERGED, message="image 0 diverged at step 3")


def test_a_new_record_is_queued_and_echoes_its_request(records: RecordStore) -> None:
    request = a_request(prompt="näïve 🙂", seed=2**53 - 1)
    record = records.create(request, "req-1")
    assert record == records.get(record.id)
    assert (record.state, record.attempt, record.request_id) == (JobState.QUEUED, 0, "req-1")
    assert record.request == request
    assert abs(record.created_at - datetime.now(UTC)) < timedelta(seconds=5)
    assert record.started_at is None


def test_the_way_to_success(records: RecordStore) -> None:
    job = records.create(a_request()).id
    attempt = records.start(job, "worker-1")
    records.heartbeat(job, attempt)
    records.progress(job, attempt, Progress(step=3, total_steps=10))
    running = records.get(job)
    assert (running.state, running.worker, running.attempt) == (JobState.RUNNING, "worker-1", 1)
    assert running.progress == Progress(step=3, total_steps=10)
    records.check(job, attempt)
    records.succeed(job, attempt, a_result(job, attempt))
    done = records.get(job)
    assert done.state is JobState.SUCCEEDED
    assert done.result == a_result(job, attempt)
    assert done.created_at <= done.started_at <= done.finished_at  # type: ignore[operator]


def test_an_unknown_id_is_not_found_by_any_method(records: RecordStore) -> None:
    for call in (
        lambda: records.get("gen_0"),
        lambda: records.start("gen_0", "w"),
        lambda: records.heartbeat("gen_0", 1),
        lambda: records.check("gen_0", 1),
        lambda: records.request_cancel("gen_0"),
        lambda: records.fail("gen_0", 1, FAILURE),
    ):
        with pytest.raises(JobNotFound):
            call()


def test_of_many_that_start_a_job_one_gets_it(records: RecordStore) -> None:
    job = records.create(a_request()).id

    def start(worker: int) -> int | None:
        try:
            return records.start(job, f"worker-{worker}")
        except StateConflict:
            return None

    with ThreadPoolExecutor(16) as pool:
        tokens = [token for token in pool.map(start, range(32)) if token is not None]
    assert tokens == [1]


def test_of_success_failure_and_cancel_at_once_one_counts(records: RecordStore) -> None:
    for _ in range(10):
        job = records.create(a_request()).id
        attempt = records.start(job, "w")

        def won(number: int, job: str = job, attempt: int = attempt) -> JobState | None:
            try:
                if number % 3 == 0:
                    records.succeed(job, attempt, a_result(job, attempt))
                    return JobState.SUCCEEDED
                if number % 3 == 1:
                    records.fail(job, attempt, FAILURE)
                    return JobState.FAILED
                records.request_cancel(job)
            except (StaleAttempt, StateConflict):
                return None
            else:
                return JobState.CANCELED

        with ThreadPoolExecutor(6) as pool:
            winners = {state for state in pool.map(won, range(6)) if state is not None}
        assert winners == {records.get(job).state}


def test_a_stale_attempt_can_do_nothing(
    records: RecordStore, client: redis.Redis, core_settings: CoreSettings
) -> None:
    job = records.create(a_request()).id
    stale = records.start(job, "slow")
    let_lease_expire(client, core_settings, job)
    fresh = records.start(job, "quick")
    assert fresh == stale + 1
    for call in (
        lambda: records.heartbeat(job, stale),
        lambda: records.check(job, stale),
        lambda: records.progress(job, stale, Progress(step=1, total_steps=2)),
        lambda: records.succeed(job, stale, a_result(job, stale)),
        lambda: records.fail(job, stale, FAILURE),
        lambda: records.release(job, stale),
    ):
        with pytest.raises(StaleAttempt):
            call()
    records.succeed(job, fresh, a_result(job, fresh))
    with pytest.raises(StaleAttempt):
        records.succeed(job, stale, a_result(job, stale))
    result = records.get(job).result
    assert result is not None
    assert result.attempt == fresh


def test_a_live_lease_is_not_taken_over(records: RecordStore) -> None:
    job = records.create(a_request()).id
    records.start(job, "w")
    with pytest.raises(StateConflict) as conflict:
        records.start(job, "other")
    assert conflict.value.state == "running"
    assert records.expire_lease(job, FAILURE) is None


def test_a_slow_worker_that_nobody_replaced_goes_on(
    records: RecordStore, client: redis.Redis, core_settings: CoreSettings
) -> None:
    job = records.create(a_request()).id
    attempt = records.start(job, "w")
    let_lease_expire(client, core_settings, job)
    records.heartbeat(job, attempt)
    assert records.expire_lease(job, FAILURE) is None
    records.succeed(job, attempt, a_result(job, attempt))


def test_lost_leases_requeue_until_the_attempts_are_used_up(
    records: RecordStore, client: redis.Redis, core_settings: CoreSettings
) -> None:
    job = records.create(a_request()).id
    lost = Failure(code=FailureCode.WORKER_LOST, message="lost")
    for number in range(1, core_settings.max_attempts + 1):
        assert records.start(job, "w") == number
        let_lease_expire(client, core_settings, job)
        state = records.expire_lease(job, lost)
        last = number == core_settings.max_attempts
        assert state is (JobState.FAILED if last else JobState.QUEUED)
    record = records.get(job)
    assert (record.state, record.failure) == (JobState.FAILED, lost)


def test_a_final_transition_may_be_sent_twice(records: RecordStore) -> None:
    done, broken = records.create(a_request()).id, records.create(a_request()).id
    for _ in range(2):
        attempt = records.start(done, "w") if records.get(done).attempt == 0 else 1
        records.succeed(done, attempt, a_result(done, attempt))
    attempt = records.start(broken, "w")
    for _ in range(2):
        records.fail(broken, attempt, FAILURE)
    assert records.get(broken).failure == FAILURE


def test_cancel_while_queued_is_final_and_never_starts(records: RecordStore) -> None:
    job = records.create(a_request()).id
    canceled = records.request_cancel(job)
    assert (canceled.state, canceled.cancel_requested) == (JobState.CANCELED, True)
    assert records.cancel_requested(job)
    with pytest.raises(StateConflict):
        records.start(job, "w")


def test_cancel_while_running_stops_the_attempt(records: RecordStore) -> None:
    job = records.create(a_request()).id
    attempt = records.start(job, "w")
    assert not records.cancel_requested(job)
    assert records.request_cancel(job).state is JobState.CANCELED
    for call in (
        lambda: records.check(job, attempt),
        lambda: records.heartbeat(job, attempt),
        lambda: records.succeed(job, attempt, a_result(job, attempt)),
    ):
        with pytest.raises(JobCanceled):
            call()
    records.acknowledge_cancel(job, attempt)
    assert records.get(job).result is None


@pytest.mark.parametrize("end", ["succeed", "fail", "cancel"])
def test_cancel_of_a_finished_job_is_a_conflict(records: RecordStore, end: str) -> None:
    job = records.create(a_request()).id
    attempt = records.start(job, "w")
    match end:
        case "succeed":
            records.succeed(job, attempt, a_result(job, attempt))
        case "fail":
            records.fail(job, attempt, FAILURE)
        case _:
            records.request_cancel(job)
    before = records.get(job)
    with pytest.raises(StateConflict) as conflict:
        records.request_cancel(job)
    assert conflict.value.state == before.state
    assert records.get(job) == before


def test_a_released_job_starts_again(records: RecordStore) -> None:
    job = records.create(a_request()).id
    attempt = records.start(job, "w")
    records.release(job, attempt)
    assert records.get(job).state is JobState.QUEUED
    assert records.start(job, "w") == attempt + 1


def test_a_released_attempt_does_not_count(
    records: RecordStore, client: redis.Redis, core_settings: CoreSettings
) -> None:
    job = records.create(a_request()).id
    for _ in range(core_settings.max_attempts + 2):
        records.release(job, records.start(job, "w"))
    for _ in range(core_settings.max_attempts):
        records.start(job, "w")
        let_lease_expire(client, core_settings, job)
        state = records.expire_lease(job, FAILURE)
    assert state is JobState.FAILED


def test_admission_is_bounded_under_concurrency(
    client: redis.Redis, core_settings: CoreSettings
) -> None:
    records = RecordStore(client, core_settings.model_copy(update={"max_queued": 10}))

    def create(_: int) -> str | None:
        try:
            return records.create(a_request()).id
        except QueueFull:
            return None

    with ThreadPoolExecutor(16) as pool:
        admitted = [job for job in pool.map(create, range(64)) if job is not None]
    assert len(admitted) == 10
    records.start(admitted[0], "w")
    with pytest.raises(QueueFull, match="10"):
        records.create(a_request())
    records.request_cancel(admitted[0])
    records.create(a_request())
    assert records.counts()[JobState.QUEUED] == 10


def test_pages_are_newest_first_and_do_not_shift(records: RecordStore) -> None:
    jobs = [records.create(a_request(seed=seed)).id for seed in range(7)]
    first = records.list(limit=3)
    assert [record.id for record in first.records] == jobs[:3:-1]
    records.create(a_request())
    second = records.list(first.next_cursor, limit=3)
    assert [record.id for record in second.records] == jobs[3:0:-1]
    third = records.list(second.next_cursor, limit=3)
    assert ([record.id for record in third.records], third.next_cursor) == ([jobs[0]], None)


def test_a_page_that_ends_exactly_has_no_next(records: RecordStore) -> None:
    for _ in range(4):
        records.create(a_request())
    first = records.list(limit=2)
    assert records.list(first.next_cursor, limit=2).next_cursor is None


def test_pages_of_one_state(records: RecordStore) -> None:
    jobs = [records.create(a_request()).id for _ in range(4)]
    records.start(jobs[2], "w")
    records.request_cancel(jobs[1])
    queued = records.list(state=JobState.QUEUED).records
    assert [record.id for record in queued] == [jobs[3], jobs[0]]
    assert [record.id for record in records.list(state=JobState.RUNNING).records] == [jobs[2]]


def test_expired_records_are_skipped_by_pages(
    records: RecordStore, client: redis.Redis, core_settings: CoreSettings
) -> None:
    jobs = [records.create(a_request()).id for _ in range(6)]
    for job in jobs[1:5]:
        client.delete(f"{core_settings.redis_prefix}:job:{job}")
    page = records.list(limit=2)
    assert [record.id for record in page.records] == [jobs[5], jobs[0]]


@pytest.mark.parametrize("cursor", ["", "-1", "1.5", "x", "9" * 30, "²"])
def test_a_made_up_cursor_is_refused(records: RecordStore, cursor: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        records.list(cursor)


def test_a_finished_record_expires_and_an_active_one_does_not(
    records: RecordStore, client: redis.Redis, core_settings: CoreSettings
) -> None:
    job = records.create(a_request()).id
    key = f"{core_settings.redis_prefix}:job:{job}"
    attempt = records.start(job, "w")
    assert client.ttl(key) == -1
    records.fail(job, attempt, FAILURE)
    assert 0 < client.ttl(key) <= core_settings.record_ttl_s
    assert 0 < client.ttl(f"{key}:events") <= core_settings.record_ttl_s


def test_redis_down_is_said_clearly_and_quickly(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as server:
        settings = settings_for(server.url, "http://127.0.0.1:1")
        client = connect(settings)
        records = RecordStore(client, settings)
        job = records.create(a_request()).id
    start = datetime.now(UTC)
    for call in (
        lambda: ping(client),
        lambda: records.create(a_request()),
        lambda: records.get(job),
        lambda: records.list(),
        lambda: records.start(job, "w"),
        records.counts,
    ):
        with pytest.raises(QueueUnavailable, match="Redis does not answer"):
            call()
    assert datetime.now(UTC) - start < timedelta(seconds=3)
    with running_valkey(tmp_path, server.port):
        assert records.get(job).state is JobState.QUEUED
    client.close()


def test_every_error_is_a_jobs_error() -> None:
    for error in (JobNotFound, QueueFull, StateConflict, JobCanceled, QueueUnavailable):
        assert issubclass(error, JobsError)
