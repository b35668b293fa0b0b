"""Jobs that are computed in one batch fail, are canceled and are given back each by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from PIL import Image
from structlog.testing import capture_logs

from jobs.record import JobState
from jobs.request import GenerationRequest, StoredImage
from tests.jobs.samples import a_request
from tests.worker.conftest import Stack
from tests.worker.fakes import FakeEngine
from worker.failures import BatchTooLarge, DeviceLost
from worker.run import Runner


class Fussy(FakeEngine):
    """Refuses some batches."""

    def __init__(self, refuse: Callable[[Sequence[GenerationRequest]], None], **options: Any):
        super().__init__(**options)
        self.refuse = refuse

    def execute(self, request: GenerationRequest, load_image: Any, on_step: Any, *rest: Any) -> Any:
        self.refuse([request])
        return super().execute(request, load_image, on_step, *rest)

    def execute_together(
        self,
        requests: Sequence[GenerationRequest],
        load_image: Callable[[StoredImage], Image.Image],
        on_step: Callable[[int, int], None],
        audience: Any = None,
    ) -> list[Any]:
        self.batches.append(len(requests))
        self.refuse(requests)
        return [FakeEngine().execute(one, load_image, on_step) for one in requests]


def create(stack: Stack, count: int, **changes: object) -> list[str]:
    return [
        stack.records.create(a_request(seed=100 + n, prompt=f"number {n}", **changes)).id
        for n in range(count)
    ]


def a_runner(stack: Stack, engine: FakeEngine) -> Runner:
    return Runner(stack.settings, "w", stack.records, stack.store, engine, stack.queue)


def states(stack: Stack, jobs: Sequence[str]) -> list[str]:
    return [stack.records.get(job).state.value for job in jobs]


def test_waiting_jobs_of_a_group_are_one_batch_and_each_gets_its_own(stack: Stack) -> None:
    engine, jobs = FakeEngine(), create(stack, 5)
    other = stack.records.create(a_request(num_inference_steps=3)).id
    runner = a_runner(stack, engine)
    with capture_logs() as logs:
        runner.run(jobs[0])
    assert engine.batches == [5]
    assert runner.activity.jobs_done == 5
    assert stack.records.get(other).state is JobState.QUEUED
    for number, job in enumerate(jobs):
        result = stack.records.get(job).result
        assert result is not None
        assert [image.seed for image in result.images] == [100 + number]
        assert f"jobs/{job}/1/" in result.manifest_key
    wide = [event for event in logs if event["event"] == "job.finished"]
    assert [event["together"] for event in wide] == [5] * 5


def test_one_that_is_canceled_leaves_and_the_others_go_on(stack: Stack) -> None:
    def cancel_two(step_index: int) -> None:
        if step_index == 3:
            stack.records.request_cancel(jobs[0])
            stack.records.request_cancel(jobs[2])

    jobs = create(stack, 4)
    a_runner(stack, FakeEngine(before_step=cancel_two)).run(jobs[0])
    assert states(stack, jobs) == ["canceled", "succeeded", "canceled", "succeeded"]
    assert list(stack.store.list_keys(f"jobs/{jobs[0]}/")) == []
    assert stack.client.zcard(f"{stack.settings.redis_prefix}:canceling") == 0


def test_when_all_are_canceled_computing_stops(stack: Stack) -> None:
    steps: list[int] = []

    def cancel_all(step_index: int) -> None:
        steps.append(step_index)
        if step_index == 3:
            for job in jobs:
                stack.records.request_cancel(job)

    jobs = create(stack, 3, num_inference_steps=50)
    a_runner(stack, FakeEngine(before_step=cancel_all)).run(jobs[0])
    assert states(stack, jobs) == ["canceled"] * 3
    assert max(steps) == 3


def test_one_that_fails_fails_alone(stack: Stack) -> None:
    def refuse(requests: Sequence[GenerationRequest]) -> None:
        if any(request.prompt == "number 1" for request in requests):
            raise ArithmeticError("image 1 diverged at step 3")

    engine, jobs = Fussy(refuse), create(stack, 3)
    a_runner(stack, engine).run(jobs[0])
    assert states(stack, jobs) == ["succeeded", "failed", "succeeded"]
    assert engine.batches == [3]


def test_what_does_not_fit_into_memory_is_halved_and_the_next_batch_is_smaller(
    stack: Stack,
) -> None:
    def refuse(requests: Sequence[GenerationRequest]) -> None:
        if len(requests) > 2:
            raise BatchTooLarge("out of memory")

    engine, jobs = Fussy(refuse), create(stack, 8)
    runner = a_runner(stack, engine)
    runner.run(jobs[0])
    assert states(stack, jobs) == ["succeeded"] * 8
    assert engine.batches == [8, 4, 2, 2, 4, 2, 2]
    more = create(stack, 4)
    runner.run(more[0])
    assert engine.batches[-1] == 2


def test_who_waits_for_neighbours_is_neither_late_nor_taken_for_hanging(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(requests: Sequence[GenerationRequest]) -> None:
        if len(requests) > 1:
            raise ArithmeticError("one of them diverged")

    class Slow(Fussy):
        def execute_together(
            self, requests: Any, load_image: Any, on_step: Any, *rest: Any
        ) -> list[Any]:
            on_step(0, 10)
            return super().execute_together(requests, load_image, on_step, *rest)

    hangs: list[int] = []
    monkeypatch.setattr("os._exit", hangs.append)
    limits = {"job_deadline_s": 2.0, "hang_grace_s": 0.1, "stall_s": 2.0, "lease_s": 0.4}
    settings = stack.settings.model_copy(update=limits)
    jobs, engine = create(stack, 8), Slow(refuse, step_s=0.03)
    Runner(settings, "w", stack.records, stack.store, engine, stack.queue).run(jobs[0])
    assert states(stack, jobs) == ["succeeded"] * 8  # 0.3 s each, more than 2 s in all
    assert hangs == []


def test_jobs_that_are_late_together_get_their_time_alone(stack: Stack) -> None:
    class Slow(FakeEngine):
        def execute_together(
            self, requests: Any, load_image: Any, on_step: Any, *_: Any
        ) -> list[Any]:
            self.batches.append(len(requests))
            self.step_s = 0.1
            try:
                return [self.execute(one, load_image, on_step) for one in requests]
            finally:
                self.step_s = 0.0

    settings = stack.settings.model_copy(update={"job_deadline_s": 1.5})
    jobs, engine = create(stack, 2), Slow()
    Runner(settings, "w", stack.records, stack.store, engine, stack.queue).run(jobs[0])
    assert engine.batches == [2]
    assert states(stack, jobs) == ["succeeded"] * 2


def test_a_lost_device_leaves_all_of_them_to_another_worker(stack: Stack) -> None:
    def refuse(requests: Sequence[GenerationRequest]) -> None:
        raise DeviceLost("CUDA error: unspecified launch failure")

    jobs = create(stack, 3)
    runner = a_runner(stack, Fussy(refuse))
    runner.run(jobs[0])
    assert states(stack, jobs) == ["running"] * 3
    assert runner.worn_out is not None


@pytest.mark.parametrize("how", ["drain", "exit"])
def test_a_stop_gives_all_of_them_back(stack: Stack, how: str) -> None:
    def stop(step_index: int) -> None:
        if step_index == 2 and how == "drain":
            runner.drain()
        elif step_index == 2:
            raise SystemExit

    jobs = create(stack, 3)
    stack = Stack(
        stack.settings.model_copy(update={"drain_grace_s": 0.0}),
        *(stack.client, stack.records, stack.queue, stack.store),
    )
    runner = a_runner(stack, FakeEngine(step_s=0.01, before_step=stop))
    if how == "exit":
        with pytest.raises(SystemExit):
            runner.run(jobs[0])
    else:
        runner.run(jobs[0])
    assert states(stack, jobs) == ["queued"] * 3
    assert sorted(stack.queue.waiting()) == sorted(jobs)
