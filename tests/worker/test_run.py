from __future__ import annotations

import errno
import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from jobs.connection import connect
from jobs.events import EventLog
from jobs.record import FailureCode, JobState, RecordStore
from jobs.request import (
    Animation,
    GenerationRequest,
    OutputOptions,
    SpatialControl,
    StoredImage,
)
from jobs.store import ObjectStore, StorageFull
from tests.jobs.samples import a_request, let_lease_expire
from tests.servers import running_s3, running_valkey, settings_for
from tests.worker.conftest import Stack
from tests.worker.fakes import FakeEngine
from worker.failures import DeviceLost
from worker.run import Runner
from worker.run import run as entry_point
from worker.settings import WorkerSettings


def a_runner(stack: Stack, engine: FakeEngine | None = None, **changes: object) -> Runner:
    settings = stack.settings.model_copy(update=changes)
    return Runner(settings, "worker-1", stack.records, stack.store, engine or FakeEngine())


def a_control(stack: Stack, data: bytes | None = None, sha256: str | None = None) -> SpatialControl:
    if data is None:
        from PIL import Image

        data = FakeEngine().encode(Image.new("RGB", (8, 8)), OutputOptions(), None)
    stack.store.put_bytes("uploads/u1.png", data)
    digest = sha256 or hashlib.sha256(data).hexdigest()
    image = StoredImage(upload_id="u1", key="uploads/u1.png", sha256=digest, width=8, height=8)
    return SpatialControl.model_validate(
        {"head": "tiny/pose", "image": image, "weight": 0.5, "span": (0, 0.5)}
    )


def outcome(stack: Stack, request: GenerationRequest, engine: FakeEngine) -> tuple[str, str]:
    job = stack.records.create(request).id
    a_runner(stack, engine).run(job)
    record = stack.records.get(job)
    assert record.state is JobState.FAILED
    assert record.failure is not None
    assert list(stack.store.list_keys(f"jobs/{job}/")) == []
    return record.failure.code.value, record.failure.message


def test_a_job_succeeds_and_everything_it_names_is_in_storage(stack: Stack) -> None:
    control = a_control(stack)
    request = a_request(
        task="spatial",
        num_images=2,
        controls=(control, control.model_copy(update={"head": "tiny/depth"}), control),
        output=OutputOptions(evolution_steps=(0, 9)),
    )
    job = stack.records.create(request, "req-9").id
    with capture_logs() as logs:
        a_runner(stack).run(job)
    record = stack.records.get(job)
    assert record.state is JobState.SUCCEEDED
    assert record.result is not None
    assert [image.seed for image in record.result.images] == [7, 8]
    first = record.result.images[0]
    assert first.distances["1"].model_dump() == {
        "head": "tiny/depth",
        "distance": 0.25,
        "unit": "rms",
    }
    names = {readout.key.rpartition("/")[2] for readout in first.readouts}
    assert names == {
        "readout-000-pose-0.png",
        "readout-000-depth.png",
        "readout-000-pose-2.png",
    }
    assert hashlib.sha256(stack.store.get_bytes(first.key)).hexdigest() == first.sha256
    manifest = json.loads(stack.store.get_bytes(record.result.manifest_key))
    stored = {key.rpartition("/")[2] for key in stack.store.list_keys(f"jobs/{job}/1/")}
    assert stored == {"manifest.json", *manifest["sha256"]}
    assert "evolution-001-step-009-image.png" in stored
    assert "evolution-001-step-009-depth.png" in stored
    assert manifest["request"] == json.loads(request.model_dump_json())
    wide = next(event for event in logs if event["event"] == "job.finished")
    assert wide["outcome"] == "succeeded"
    assert wide["heads"] == ["tiny/pose", "tiny/depth", "tiny/pose"]
    assert set(wide["timings"]) == {"sample", "store"}


def test_an_animation_is_a_result_and_fewer_steps_are_counted(stack: Stack) -> None:
    start = {"image": a_control(stack).image, "strength": 0.5}
    request = a_request(
        num_images=3,
        init_image=start,
        output=OutputOptions(animation=Animation(frames=3, format="gif")),
    )
    job = stack.records.create(request).id
    a_runner(stack).run(job)
    result = stack.records.get(job).result
    assert result is not None
    assert result.animation is not None
    assert stack.store.get_bytes(result.animation.key) == b"a film"
    assert [image.seed for image in result.images] == [7, 7, 7]
    manifest = json.loads(stack.store.get_bytes(result.manifest_key))
    assert manifest["sha256"]["animation.gif"] == hashlib.sha256(b"a film").hexdigest()
    assert manifest["animation"]["frames"] == 3
    events = EventLog(stack.client, stack.settings).read(job)
    totals = {event.data["total_steps"] for event in events if "total_steps" in event.data}
    assert totals == {5}


@pytest.mark.parametrize(
    ("image_format", "media"), [("webp", "image/webp"), ("jpeg", "image/jpeg")]
)
def test_other_formats_are_stored_as_such(stack: Stack, image_format: str, media: str) -> None:
    job = stack.records.create(a_request(output={"format": image_format})).id
    a_runner(stack).run(job)
    head = stack.store.head(f"jobs/{job}/1/image-000.{image_format}")
    assert head.media_type == media


def test_an_expected_failure_has_its_code_and_a_bug_tells_nothing(stack: Stack) -> None:
    def diverge(step_index: int) -> None:
        if step_index == 3:
            raise ArithmeticError("image 0 diverged at step 3")

    def bug(step_index: int) -> None:
        raise KeyError("/secret/path")

    code, message = outcome(stack, a_request(), FakeEngine(before_step=diverge))
    assert (code, message) == ("diverged", "image 0 diverged at step 3")
    code, message = outcome(stack, a_request(), FakeEngine(before_step=bug))
    assert code == "internal"
    assert "secret" not in message


def test_control_images_that_cannot_be_used(stack: Stack) -> None:
    def code_of(control: SpatialControl) -> tuple[str, str]:
        return outcome(stack, a_request(task="spatial", controls=(control,)), FakeEngine())

    assert code_of(a_control(stack, sha256="0" * 64))[0] == "invalid_target"
    assert code_of(a_control(stack, data=b"not an image"))[0] == "invalid_target"
    gone = a_control(stack)
    stack.store.delete("uploads/u1.png")
    code, message = code_of(gone)
    assert code == "invalid_target"
    assert "upload it again" in message


def test_the_deadline_is_checked_at_every_step(stack: Stack) -> None:
    job = stack.records.create(a_request(num_inference_steps=1000)).id
    start = time.monotonic()
    a_runner(stack, FakeEngine(step_s=0.01), job_deadline_s=0.2).run(job)
    assert time.monotonic() - start < 5
    failure = stack.records.get(job).failure
    assert failure is not None
    assert failure.code is FailureCode.TIMED_OUT
    assert "fewer" in failure.message


def test_a_step_that_hangs_ends_the_process_and_the_job(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.lease import Lease

    ended = threading.Event()
    settings = stack.settings.model_copy(
        update={"job_deadline_s": 0.05, "hang_grace_s": 0.05, "lease_s": 0.2}
    )
    job = stack.records.create(a_request()).id
    attempt = stack.records.start(job, "w")
    with Lease(stack.records, settings, job, attempt, on_hang=ended.set):
        assert ended.wait(30)
    failure = stack.records.get(job).failure
    assert failure is not None
    assert failure.code is FailureCode.TIMED_OUT


def test_a_step_that_stalls_ends_the_process_and_the_job_runs_again(stack: Stack) -> None:
    from worker.lease import Lease

    ended = threading.Event()
    settings = stack.settings.model_copy(update={"stall_s": 0.1, "lease_s": 0.2})
    job = stack.records.create(a_request()).id
    attempt = stack.records.start(job, "w")
    with Lease(stack.records, settings, job, attempt, on_hang=ended.set) as lease:
        assert not ended.wait(0.3)  # nothing is watched before the first step
        lease.on_step(0, 10)
        assert ended.wait(30)
    assert stack.records.get(job).state is JobState.RUNNING
    let_lease_expire(stack.client, stack.settings, job)
    assert stack.records.start(job, "another") == 2


def test_a_lost_device_costs_the_worker_and_not_the_job(stack: Stack) -> None:
    def lose(step_index: int) -> None:
        raise DeviceLost("CUDA error: an illegal memory access was encountered")

    runner = a_runner(stack, FakeEngine(before_step=lose))
    job = stack.records.create(a_request()).id
    assert runner.worn_out is None
    runner.run(job)
    assert stack.records.get(job).state is JobState.RUNNING
    assert runner.worn_out == "the device takes no more work"


def test_a_worker_that_holds_too_much_memory_is_worn_out(stack: Stack) -> None:
    assert a_runner(stack, recycle_rss_bytes=2**50).worn_out is None
    assert "bytes of memory" in str(a_runner(stack, recycle_rss_bytes=1).worn_out)


def test_draining_gives_the_job_back(stack: Stack) -> None:
    def drain_at_5(step_index: int) -> None:
        if step_index == 5:
            runner.drain()

    engine = FakeEngine(step_s=0.01, before_step=drain_at_5)
    settings = stack.settings.model_copy(update={"drain_grace_s": 0.0})
    runner = Runner(settings, "w", stack.records, stack.store, engine, stack.queue)
    job = stack.records.create(a_request()).id
    runner.run(job)
    assert stack.records.get(job).state is JobState.QUEUED
    assert list(stack.queue.waiting()) == [job]


def test_a_full_disk_is_said_plainly(stack: Stack) -> None:
    class Full(ObjectStore):
        def put_bytes(self, key: str, data: bytes, media_type: str = "image/png") -> None:
            raise StorageFull("object storage is full: XMinioStorageFull")

    def no_room(step_index: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    code, message = outcome(stack, a_request(), FakeEngine(before_step=no_room))
    assert (code, "the worker's disk is full" in message) == ("storage_unavailable", True)
    full = Full(stack.settings)
    job = stack.records.create(a_request()).id
    a_runner(replace(stack, store=full), storage_patience_s=0.3).run(job)
    full.close()
    failure = stack.records.get(job).failure
    assert failure is not None
    assert "object storage is full" in failure.message


def test_cancel_stops_at_the_next_step(stack: Stack) -> None:
    steps: list[int] = []

    def cancel_at_5(step_index: int) -> None:
        steps.append(step_index)
        if step_index == 5:
            stack.records.request_cancel(job)

    job = stack.records.create(a_request(num_inference_steps=50)).id
    a_runner(stack, FakeEngine(before_step=cancel_at_5)).run(job)
    record = stack.records.get(job)
    assert (record.state, record.result, steps[-1]) == (JobState.CANCELED, None, 5)
    assert stack.client.zcard(f"{stack.settings.redis_prefix}:canceling") == 0


def test_cancel_while_a_model_loads_stops_before_the_first_step(stack: Stack) -> None:
    class Slow(FakeEngine):
        def execute(self, *arguments: Any) -> Any:
            stack.records.request_cancel(job)  # in the middle of loading
            return super().execute(*arguments)

    def never(step_index: int) -> None:
        assert step_index == 0

    job = stack.records.create(a_request()).id
    a_runner(stack, Slow(before_step=never)).run(job)
    assert stack.records.get(job).state is JobState.CANCELED
    assert stack.client.zcard(f"{stack.settings.redis_prefix}:canceling") == 0


def test_cancel_while_results_are_stored_stores_no_more_and_leaves_nothing(stack: Stack) -> None:
    puts: list[str] = []

    class Watched(ObjectStore):
        def put_bytes(self, key: str, data: bytes, media_type: str = "image/png") -> None:
            super().put_bytes(key, data, media_type)
            puts.append(key)
            if len(puts) == 2:
                stack.records.request_cancel(job)

    watched = Watched(stack.settings)
    job = stack.records.create(a_request(num_images=6)).id
    a_runner(replace(stack, store=watched)).run(job)
    watched.close()
    record = stack.records.get(job)
    assert (record.state, record.result, len(puts)) == (JobState.CANCELED, None, 2)
    assert list(stack.store.list_keys(f"jobs/{job}/")) == []
    assert stack.client.zcard(f"{stack.settings.redis_prefix}:canceling") == 0


def test_the_queue_s_stop_command_cancels(stack: Stack) -> None:
    def stop_at_5(step_index: int) -> None:
        if step_index == 5:
            runner.interrupt()

    runner = a_runner(stack, FakeEngine(before_step=stop_at_5))
    job = stack.records.create(a_request()).id
    runner.run(job)
    assert stack.records.get(job).state is JobState.CANCELED


def test_an_attempt_that_lost_its_job_publishes_nothing_and_cleans_up(stack: Stack) -> None:
    def lose(step_index: int) -> None:
        if step_index == 9:
            let_lease_expire(stack.client, stack.settings, job)
            fresh.append(stack.records.start(job, "quick"))

    fresh: list[int] = []
    job = stack.records.create(a_request()).id
    a_runner(stack, FakeEngine(before_step=lose)).run(job)
    record = stack.records.get(job)
    assert (record.state, record.attempt, record.worker) == (JobState.RUNNING, 2, "quick")
    assert record.result is None
    assert list(stack.store.list_keys(f"jobs/{job}/1/")) == []


def test_an_attempt_that_loses_its_job_while_it_stores(stack: Stack) -> None:
    """The worst moment: everything is stored, and then the compare-and-set says no."""

    class Thief(ObjectStore):
        def put_bytes(self, key: str, data: bytes, media_type: str = "image/png") -> None:
            super().put_bytes(key, data, media_type)
            if key.endswith("manifest.json"):
                let_lease_expire(stack.client, stack.settings, job)
                stack.records.start(job, "quick")

    thief = Thief(stack.settings)
    job = stack.records.create(a_request()).id
    a_runner(replace(stack, store=thief)).run(job)
    thief.close()
    assert stack.records.get(job).result is None
    assert list(stack.store.list_keys(f"jobs/{job}/")) == []


def test_a_job_that_is_no_longer_wanted_is_not_run(stack: Stack) -> None:
    def never(step_index: int) -> None:
        raise AssertionError("it ran")

    runner = a_runner(stack, FakeEngine(before_step=never))
    canceled = stack.records.create(a_request()).id
    stack.records.request_cancel(canceled)
    for job in (canceled, "gen_unknown"):
        runner.run(job)
    assert runner.activity.jobs_done == 0


def test_a_second_signal_gives_the_job_back(stack: Stack) -> None:
    def exit_at_5(step_index: int) -> None:
        if step_index == 5:
            raise SystemExit

    job = stack.records.create(a_request()).id
    with pytest.raises(SystemExit):
        a_runner(stack, FakeEngine(before_step=exit_at_5)).run(job)
    assert stack.records.get(job).state is JobState.QUEUED


def outage(stop: Callable[[], None], start: Callable[[], None], seconds: float) -> threading.Thread:
    def happen() -> None:
        stop()
        time.sleep(seconds)
        start()

    thread = threading.Thread(target=happen)
    thread.start()
    return thread


def test_storage_and_redis_away_for_a_while_are_waited_for(tmp_path: Path) -> None:
    with running_s3(tmp_path) as s3, running_valkey(tmp_path) as valkey:
        settings = WorkerSettings.model_validate(
            settings_for(valkey.url, s3.url, lease_s=2.0).model_dump()
        )
        client, store = connect(settings), ObjectStore(settings)
        store.ensure_bucket()
        records = RecordStore(client, settings)
        back: list[threading.Event] = []

        def away(step_index: int) -> None:
            if step_index == 2:
                valkey.kill()
                s3.server.kill()
                back.append(threading.Event())
                threading.Timer(1.0, back[0].set).start()

        job = records.create(a_request()).id
        runner = Runner(settings, "w", records, store, FakeEngine(0.01, away))
        thread = threading.Thread(target=runner.run, args=(job,))
        thread.start()
        while not back:
            time.sleep(0.01)
        back[0].wait()
        with running_s3(tmp_path, s3.server.port), running_valkey(tmp_path, valkey.port):
            thread.join(timeout=60)
            assert not thread.is_alive()
            assert records.get(job).state is JobState.SUCCEEDED
            assert records.get(job).attempt == 1
        client.close()
        store.close()


def test_storage_that_stays_away_fails_the_job(tmp_path: Path, stack: Stack) -> None:
    with running_s3(tmp_path) as s3:
        store = ObjectStore(settings_for("redis://127.0.0.1:1", s3.url))
    job = stack.records.create(a_request()).id
    a_runner(replace(stack, store=store), storage_patience_s=0.3).run(job)
    store.close()
    failure = stack.records.get(job).failure
    assert failure is not None
    assert failure.code is FailureCode.STORAGE_UNAVAILABLE


def test_a_step_costs_less_than_a_millisecond_or_two(stack: Stack) -> None:
    from worker.lease import Lease

    job = stack.records.create(a_request()).id
    attempt = stack.records.start(job, "w")
    with Lease(stack.records, stack.settings, job, attempt) as lease:
        durations = []
        for step_index in range(200):
            start = time.perf_counter()
            lease.on_step(step_index, 200)
            durations.append(time.perf_counter() - start)
    median_ms = sorted(durations)[100] * 1000
    assert median_ms < 5, f"{median_ms:.2f} ms"  # about 0.2 ms on an idle machine


def test_frames_and_distances_are_seen_while_the_job_runs(stack: Stack) -> None:
    seen: list[Any] = []

    def look(step_index: int) -> None:
        if step_index == 9:
            deadline = time.monotonic() + 10
            while len(stack.records.get(job).previews) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(stack.records.get(job))

    request = a_request(
        task="spatial",
        num_images=1,
        num_candidates=2,
        controls=(a_control(stack),),
        output=OutputOptions(evolution_steps=(4,)),
    )
    job = stack.records.create(request).id
    a_runner(stack, FakeEngine(step_s=0.05, before_step=look)).run(job)
    [running] = seen
    assert running.state is JobState.RUNNING
    assert [(one.step, one.index) for one in running.previews] == [(4, 0), (4, 1)]
    [distance] = running.progress.distances
    assert (distance.control, distance.head, distance.unit) == (0, "tiny/pose", "rms")
    assert distance.distance == pytest.approx(1 / (distance.step + 1))
    events = EventLog(stack.client, stack.settings).read(job)
    [told] = [event for event in events if event.type == "preview"]
    assert [image["index"] for image in told.data["images"]] == [0, 1]
    done = stack.records.get(job)
    assert done.previews == ()
    assert done.result is not None
    [frame] = done.result.images[0].evolution
    assert frame.key == running.previews[0].key
    manifest = json.loads(stack.store.get_bytes(done.result.manifest_key))
    stored = {key.rpartition("/")[2] for key in stack.store.list_keys(f"jobs/{job}/1/")}
    assert stored == {"manifest.json", *manifest["sha256"]}


def test_a_canceled_job_leaves_no_frames(stack: Stack) -> None:
    def cancel(step_index: int) -> None:
        if step_index == 6:
            stack.records.request_cancel(job)

    request = a_request(output=OutputOptions(evolution_steps=(0, 1, 2, 3, 4, 5, 6)))
    job = stack.records.create(request).id
    a_runner(stack, FakeEngine(before_step=cancel)).run(job)
    assert stack.records.get(job).state is JobState.CANCELED
    assert list(stack.store.list_keys(f"jobs/{job}/")) == []


def test_frames_that_storage_did_not_take_are_stored_in_the_end(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, put = stack.store, stack.store.put_bytes

    def fails_at_first(key: str, data: bytes, media_type: str = "image/png") -> None:
        if threading.current_thread() is not threading.main_thread():
            raise StorageFull("no room")
        put(key, data, media_type)

    monkeypatch.setattr(store, "put_bytes", fails_at_first)
    job = stack.records.create(a_request(output=OutputOptions(evolution_steps=(2,)))).id
    a_runner(stack).run(job)
    result = stack.records.get(job).result
    assert result is not None
    assert store.get_bytes(result.images[0].evolution[0].key)


def test_without_a_runner_the_entry_point_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.run._runner", None)
    with pytest.raises(RuntimeError, match="readout worker"):
        entry_point("gen_1")


def test_the_best_of_the_candidates_are_kept_in_their_order(stack: Stack) -> None:
    class Judged(FakeEngine):
        def execute(self, *arguments: Any) -> Any:
            execution = super().execute(*arguments)
            return replace(execution, distances=[[0.4, 0.1], [0.1, 0.3], [0.3, 0.4], [0.2, 0.2]])

    control = a_control(stack)
    heavy = control.model_copy(update={"head": "tiny/depth", "weight": 2.0})
    both = {"task": "spatial", "controls": (control, heavy), "num_candidates": 4}

    def images(**changes: object) -> list[tuple[int, float | None, int | None]]:
        request = a_request(**both, **changes)
        job = stack.records.create(request).id
        a_runner(stack, Judged()).run(job)
        result = stack.records.get(job).result
        assert result is not None
        assert len(stack.store.list_keys(f"jobs/{job}/1/image")) == len(result.images)
        return [(image.seed, image.score, image.rank) for image in result.images]

    # 0.5 × pose + 2 × depth: 0.40, 0.65, 0.95, 0.50 for the seeds 7 to 10
    assert images() == [(7, pytest.approx(0.4), 0)]
    assert [(seed, rank) for seed, _, rank in images(num_images=2)] == [(7, 0), (10, 1)]
    kept = images(keep="all")
    assert [(seed, rank) for seed, _, rank in kept] == [(7, 0), (8, 2), (9, 3), (10, 1)]
    assert kept[2][1] == pytest.approx(0.95)
