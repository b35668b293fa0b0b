from __future__ import annotations

import json
import threading
from collections.abc import Sequence

import pytest
import redis
from pydantic import SecretStr

from jobs.connection import connect, redis_errors
from jobs.events import EventLog
from jobs.queue import ENTRY_POINT, JobQueue, TicketWriter, open_queue
from jobs.record import Failure, FailureCode, JobState, Progress, RecordStore
from jobs.settings import CoreSettings
from jobs.workers import WorkerBoard, WorkerStatus
from tests.jobs.samples import a_request, let_lease_expire


def test_the_queue_carries_ids_as_json(
    records: RecordStore, queue: JobQueue, core_settings: CoreSettings
) -> None:
    jobs = [records.create(a_request()) for _ in range(3)]
    for record in jobs:
        queue.enqueue(record)
    assert list(queue.waiting()) == [record.id for record in jobs]
    transport = open_queue(core_settings, connect(core_settings, decode=False))
    job = transport.jobs[0]
    raw = transport.connection.hget(job.key, "data")
    import zlib

    assert json.loads(zlib.decompress(raw))[0] == ENTRY_POINT
    assert (job.args, job.timeout, job.result_ttl) == ([jobs[0].id], -1, 0)
    transport.connection.close()


def test_two_deployments_on_one_redis_do_not_meet(
    queue: JobQueue, core_settings: CoreSettings
) -> None:
    other = JobQueue(core_settings.model_copy(update={"redis_prefix": "another"}))
    queue.enqueue_id("gen_1")
    assert "gen_1" not in other.waiting()
    other.close()


def test_tickets_are_written_in_order_and_none_is_lost_when_the_gateway_ends(
    queue: JobQueue,
) -> None:
    tickets = TicketWriter(queue)
    jobs = [f"gen_{number}" for number in range(40)]
    for job in jobs:
        tickets.put(job)
    tickets.close()
    assert list(queue.waiting()) == jobs
    TicketWriter(queue).close()  # one that wrote nothing


@pytest.mark.parametrize("error", [None, "BUSY a script", "WRONGTYPE a bug"])
def test_tickets_go_on_after_an_outage(
    queue: JobQueue,
    core_settings: CoreSettings,
    monkeypatch: pytest.MonkeyPatch,
    error: str | None,
) -> None:
    nobody = SecretStr("redis://127.0.0.1:1/0")
    away = JobQueue(core_settings.model_copy(update={"redis_url": nobody}))
    tickets, tried = TicketWriter(queue), threading.Event()

    def fail_once(job_ids: Sequence[str]) -> None:
        monkeypatch.undo()
        tried.set()
        if error is not None:
            with redis_errors():
                raise redis.ResponseError(error)
        away.enqueue_ids(job_ids)

    monkeypatch.setattr(queue, "enqueue_ids", fail_once)
    tickets.put("gen_1")
    assert tried.wait(20)
    tickets.put("gen_2")
    tickets.close()
    away.close()
    assert list(queue.waiting()) == ["gen_2"]


def test_events_tell_the_whole_story_and_resume(
    records: RecordStore, client: redis.Redis, core_settings: CoreSettings
) -> None:
    log = EventLog(client, core_settings)
    job = records.create(a_request()).id
    lost = records.start(job, "w")
    let_lease_expire(client, core_settings, job)
    records.expire_lease(job, Failure(code=FailureCode.WORKER_LOST, message="lost"))
    attempt = records.start(job, "w")
    records.progress(job, attempt, Progress(step=1, total_steps=2))
    records.fail(job, attempt, Failure(code=FailureCode.DIVERGED, message="at step 1"))
    events = log.read(job)
    types = ["queued", "started", "requeued", "started", "progress", "failed"]
    assert [event.type for event in events] == types
    assert (lost, events[3].data) == (1, {"attempt": 2})
    assert events[4].data == {"step": 1, "total_steps": 2, "stage": "sampling", "distances": []}
    assert [event.terminal for event in events] == [False] * 5 + [True]
    assert log.read(job, after=events[3].id) == events[4:]
    assert log.read(job, after=events[-1].id, wait_s=0.05) == ()


def test_a_worker_is_on_the_board_while_it_says_so(
    client: redis.Redis, core_settings: CoreSettings
) -> None:
    board = WorkerBoard(client, core_settings)
    assert board.alive() == ()
    status = WorkerStatus.model_validate(
        {"name": "w-1", "host": "h", "pid": 1, "started_at": "2026-01-01T00:00:00Z"}
        | {"device": "cpu", "dtype": "float32", "models": ("tiny",), "job": "gen_1"}
    )
    board.post(status)
    assert board.alive() == (status,)
    client.delete(f"{core_settings.redis_prefix}:worker:w-1")
    assert board.alive() == ()
    board.post(status)
    board.remove("w-1")
    assert board.alive() == ()


def test_counts(records: RecordStore) -> None:
    jobs = [records.create(a_request()).id for _ in range(3)]
    records.start(jobs[0], "w")
    counts = records.counts()
    assert (counts[JobState.QUEUED], counts[JobState.RUNNING]) == (2, 1)
