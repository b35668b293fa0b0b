"""What clients are promised, on a real stack: cancel, idempotency keys, SIGTERM, events."""

from __future__ import annotations

import itertools
import json
import random
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from bench.chaos.stack import Stack, a_stack, patient, submit, wait_for_all
from jobs.events import EventLog
from jobs.keys import canceling_key
from jobs.record import JobState

LONG_STEPS = 1000
"""Of a job that is to be interrupted."""
STOP_LIMIT_S = 1.0
"""After the step or stage that is under way."""
Body = Mapping[str, Any]


def cancel(
    directory: Path,
    settings: Mapping[str, object],
    body: Body,
    times: int,
    worker_command: Sequence[str] = (),
) -> dict[str, Any]:
    """Cancels at random moments: what the answer says, and when the worker has stopped."""
    chance, long = random.Random(0), {**body, "num_inference_steps": LONG_STEPS}
    said_ms, stopped_s, steps_s, wrong = [], [], [0.0], 0
    with (
        a_stack(directory, settings, 1, worker_command) as stack,
        httpx.Client(base_url=stack.url, timeout=30, trust_env=False) as client,
    ):
        for number in range(times):
            job = submit(client, {**long, "seed": number})
            if number % 4:  # the fourth is canceled while it is queued, or as it starts
                stack.wait(is_in(stack, job, JobState.RUNNING), "the job's start")
                time.sleep(chance.uniform(0, 1))
            asked = time.perf_counter()
            answer = client.post(f"/v1/generations/{job}/cancel").json()
            said_ms.append((time.perf_counter() - asked) * 1000)
            wrong += answer["state"] != "canceled"
            stack.wait(has_stopped(stack, job), "the worker's stop")
            stopped_s.append(time.perf_counter() - asked)
            steps_s += step_seconds(stack, job)
            wrong += stack.records.get(job).state is not JobState.CANCELED
        done = submit(client, {**body, "num_inference_steps": 1})
        stack.wait(is_in(stack, done, JobState.SUCCEEDED), "the last job's end")
        late = client.post(f"/v1/generations/{done}/cancel")
        left = len(stack.store.list_keys("jobs/")) - len(stack.store.list_keys(f"jobs/{done}/"))
    return {
        "cancels": times,
        "not_canceled": wrong,
        "answered_ms_max": round(max(said_ms), 1),
        "stopped_s_max": round(max(stopped_s), 3),
        "longest_step_s": round(max(steps_s), 3),
        "of_a_finished_job": f"{late.status_code} {late.json()['code']}",
        "objects_left": left,
        "good": not wrong
        and max(stopped_s) <= max(steps_s) + STOP_LIMIT_S
        and late.status_code == 409
        and left == 0,
    }


def idempotency(
    directory: Path, settings: Mapping[str, object], body: Body, pairs: int
) -> dict[str, Any]:
    """Two equal creations at a time, some while the gateway is killed; then all once more."""
    conflicts = restarts = 0
    with a_stack(directory, settings, 0) as stack, ThreadPoolExecutor(2) as pool:

        def create(key: str, seed: int, barrier: threading.Barrier) -> str:
            nonlocal conflicts
            headers = {"Idempotency-Key": key}
            barrier.wait()
            with httpx.Client(base_url=stack.url, timeout=10, trust_env=False) as client:
                while True:
                    answer = patient(
                        lambda: client.post(
                            "/v1/generations", json={**body, "seed": seed}, headers=headers
                        ),
                        accept=(409,),
                    )
                    if answer.status_code != 409:
                        return str(answer.json()["id"])
                    conflicts += 1  # its twin is at work: come again, as the problem says
                    time.sleep(0.05)

        keys = [secrets.token_hex(16) for _ in range(pairs)]
        made: dict[str, set[str]] = {key: set() for key in keys}
        for seed, key in enumerate(keys):
            both = threading.Barrier(2)
            sent = [pool.submit(create, key, seed, both) for _ in range(2)]
            if seed % 10 == 5:
                stack.restart("gateway")
                restarts += 1
            made[key] |= {one.result() for one in sent}
        stack.restart("gateway")
        alone = threading.Barrier(1)
        for seed, key in enumerate(keys):
            made[key].add(create(key, seed, alone))
        records = sum(stack.records.counts().values())
    return {
        "pairs": pairs,
        "gateway_killed": restarts + 1,
        "keys_with_one_job": sum(len(ids) == 1 for ids in made.values()),
        "jobs": records,
        "told_to_come_again": conflicts,
        "good": records == pairs and all(len(ids) == 1 for ids in made.values()),
    }


def stop(
    directory: Path,
    settings: Mapping[str, object],
    body: Body,
    times: int,
    worker_command: Sequence[str] = (),
) -> dict[str, Any]:
    """SIGTERM to the worker at random moments of a job: half with time to finish, half without."""
    chance, statuses, ended_s = random.Random(0), [], []
    finished = given_back = 0
    for name, grace_s in (("finishes", 60.0), ("gives-back", 0.0)):
        options = {**settings, "drain_grace_s": grace_s, "batch_images": 1}
        with (
            a_stack(directory / name, options, 1, worker_command) as stack,
            httpx.Client(base_url=stack.url, timeout=30, trust_env=False) as client,
        ):
            jobs = []
            for number in range(times):
                stack.wait(lambda s=stack: worker_is_up(s), "the worker")
                jobs.append(submit(client, {**body, "num_inference_steps": 100, "seed": number}))
                stack.wait(is_in(stack, jobs[-1], JobState.RUNNING), "the job's start")
                time.sleep(chance.uniform(0, 0.3))
                start = time.perf_counter()
                statuses.append(stack.kill("worker-1", signal.SIGTERM))
                ended_s.append(time.perf_counter() - start)
                record = stack.records.get(jobs[-1])
                finished += record.state is JobState.SUCCEEDED
                given_back += record.state is JobState.QUEUED
                stack.start("worker-1")
            wait_for_all(stack, jobs, 1800, lambda: None)
            lost = sum(stack.records.get(job).state is not JobState.SUCCEEDED for job in jobs)
    return {
        "stops": 2 * times,
        "exit_statuses": sorted(set(statuses)),
        "finished": finished,
        "given_back": given_back,
        "lost": lost,
        "ended_s_max": round(max(ended_s), 2),
        "good": set(statuses) == {0} and not lost and finished + given_back == 2 * times,
    }


def events(
    directory: Path,
    settings: Mapping[str, object],
    body: Body,
    clients: int,
    worker_command: Sequence[str] = (),
) -> dict[str, Any]:
    """Clients that follow jobs, hang up at random and resume: each event once, in order."""
    cuts = 0
    with (
        a_stack(directory, {**settings, "batch_images": 1}, 1, worker_command) as stack,
        httpx.Client(base_url=stack.url, timeout=30, trust_env=False) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        jobs = [
            submit(client, {**body, "num_inference_steps": 200, "seed": n}) for n in range(clients)
        ]

        def follow(number: int) -> list[tuple[str, str]]:
            nonlocal cuts
            chance, seen = random.Random(number), list[tuple[str, str]]()
            while not seen or seen[-1][1] not in ("succeeded", "failed", "canceled"):
                patience = chance.randint(1, 8)
                for event in frames(client, jobs[number], seen[-1][0] if seen else None):
                    seen.append(event)
                    patience -= 1
                    if not patience:
                        cuts += 1
                        break
            return seen

        found = list(pool.map(follow, range(clients)))
        log = EventLog(stack.redis, stack.settings)
        told = [[(e.id, e.type) for e in log.read(job, limit=5000)] for job in jobs]
    same = sum(one == other for one, other in zip(found, told, strict=True))
    return {
        "clients": clients,
        "events": sum(map(len, told)),
        "hung_up": cuts,
        "saw_each_event_once_in_order": same,
        "good": same == clients and cuts >= clients,
    }


def frames(client: httpx.Client, job: str, after: str | None) -> Iterator[tuple[str, str]]:
    """The numbered events of one connection, as (id, type); ends when the client leaves."""
    headers = {"Last-Event-ID": after} if after else {}
    with client.stream("GET", f"/v1/generations/{job}/events", headers=headers) as answer:
        answer.raise_for_status()
        number = kind = ""
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                number = value
            elif name == "event":
                kind = value
            elif name == "data":
                json.loads(value)
            elif not line:
                if number:
                    yield number, kind
                number = ""


def is_in(stack: Stack, job: str, state: JobState) -> Callable[[], bool]:
    """Whether the job is in a state, to wait for."""
    return lambda: stack.records.get(job).state is state


def has_stopped(stack: Stack, job: str) -> Callable[[], bool]:
    """Whether the worker of a canceled job has said that it computes no more, to wait for."""
    return lambda: stack.redis.zscore(canceling_key(stack.settings), job) is None


def step_seconds(stack: Stack, job: str) -> list[float]:
    """Seconds a step, between each two reports of progress."""
    found = [
        (int(event.id.partition("-")[0]) / 1000, int(event.data["step"]))
        for event in EventLog(stack.redis, stack.settings).read(job, limit=5000)
        if event.type == "progress"
    ]
    pairs = itertools.pairwise(found)
    return [(later - at) / (step - before) for (at, before), (later, step) in pairs]


def worker_is_up(stack: Stack) -> bool:
    """Whether the worker that was started last takes jobs."""
    return any(one.pid == stack.pid_of("worker-1") for one in stack.board.alive())
