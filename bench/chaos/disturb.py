"""Jobs while workers are killed at random, gateway and Redis restarted, and S3 is away."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.chaos.stack import Stack, a_stack, patient, submit, wait_for_all
from jobs.errors import JobsError
from jobs.events import EventLog
from jobs.record import JobState

RUN_AGAIN_LIMIT_S = 60.0


@dataclass(frozen=True)
class Plan:
    """How much of it.

    Attributes:
        jobs: to submit; their seeds repeat after `seeds`, so that the undisturbed run is short.
        kill_every_s: mean pause between two kills of a random worker.
        most_kills: when they end: on a loaded machine a worker may need longer than it is left.
        storage_away_s: how long object storage is stopped.
    """

    jobs: int = 300
    workers: int = 3
    seeds: int = 20
    kill_every_s: float = 6.0
    most_kills: int = 1000
    storage_away_s: float = 20.0
    chance: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    worker_command: tuple[str, ...] = ()


@dataclass
class Disturber:
    """Breaks things; what it has done is in `done`."""

    stack: Stack
    plan: Plan
    done: dict[str, int] = field(default_factory=dict)
    victims: list[tuple[str, int, float]] = field(default_factory=list)

    def run(self, over: threading.Event) -> None:
        """Break things until `over`, then what has not been broken yet.

        To be called in the main thread: the kernel ends a server with the thread that started it.
        """
        chance = random.Random(self.plan.chance)
        special = [self._restart_gateway, self._restart_valkey, self._storage_away]
        while not over.wait(chance.uniform(0.5, 1.5) * self.plan.kill_every_s):
            may_kill = self.done.get("workers killed", 0) < self.plan.most_kills
            if may_kill and (ready := self._ready()):
                self._kill(chance.choice(ready))
            if special and sum(self.done.values()) >= 2 * (4 - len(special)) - 1:
                special.pop(0)()
        for act in special:  # the run was over sooner than thought: all of it happens
            act()

    def _ready(self) -> list[str]:
        """Workers that take jobs: one that only starts has nothing to lose, and would never end."""
        pids: set[int] = set()
        with suppress(JobsError):
            pids = {status.pid for status in self.stack.board.alive()}
        return [name for name in self.stack.workers if self.stack.pid_of(name) in pids]

    def _count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1

    def _kill(self, worker: str) -> None:
        """Kill -9 while it works, note what it had, start another."""
        pid = self.stack.pid_of(worker)
        names = set()
        with suppress(JobsError):
            names = {status.name for status in self.stack.board.alive() if status.pid == pid}
        self.stack.kill(worker)
        killed = time.time()
        with suppress(JobsError):
            for job in self.stack.records.active(JobState.RUNNING):
                record = self.stack.records.get(job)
                if record.worker in names and record.state is JobState.RUNNING:
                    self.victims.append((job, record.attempt, killed))
        self.stack.start(worker)
        self._count("workers killed")

    def _restart_gateway(self) -> None:
        self.stack.restart("gateway")
        self._count("gateway restarted")

    def _restart_valkey(self) -> None:
        self.stack.restart_valkey()
        self._count("redis restarted")

    def _storage_away(self) -> None:
        self.stack.stop_s3()
        time.sleep(self.plan.storage_away_s)
        self.stack.start_s3()
        self._count("storage stopped")


def run(directory: Path, plan: Plan) -> dict[str, Any]:
    """All of it; `good` says whether nothing was lost, doubled, late or different."""
    settings = {"batch_images": 1, "max_attempts": 50, "recycle_jobs": 0} | dict(plan.settings)
    with (
        a_stack(directory, settings, plan.workers, plan.worker_command) as stack,
        httpx.Client(base_url=stack.url, timeout=10, trust_env=False) as client,
    ):
        bodies = [dict(plan.body) | {"seed": seed} for seed in range(plan.seeds)]
        quiet = [submit(client, body) for body in bodies]
        wait_for_all(stack, quiet, 3600, stack.revive)
        expected = {seed: _hash(stack, job) for seed, job in enumerate(quiet)}
        start = time.monotonic()
        disturber, over, ended = Disturber(stack, plan), threading.Event(), threading.Event()

        def go_on() -> None:
            if ended.is_set():
                raise SystemExit("stopped")

        def use() -> list[str]:
            try:
                jobs = []
                for number in range(plan.jobs):
                    go_on()
                    jobs.append(submit(client, bodies[number % plan.seeds]))
                wait_for_all(stack, jobs, 7200, go_on)
                return jobs
            finally:
                over.set()

        with ThreadPoolExecutor(1) as pool:
            used = pool.submit(use)
            try:
                disturber.run(over)
            except BaseException:
                ended.set()
                raise
            accepted = used.result()
        seconds = time.monotonic() - start
        stack.wait_until_ready()
        found = _examine(stack, accepted, expected, plan.seeds) | {
            "jobs": plan.jobs,
            "workers": plan.workers,
            "seconds": round(seconds, 1),
            "disturbances": disturber.done,
            **_run_again(stack, disturber),
            "readable_over_http": _readable(client, accepted),
        }
        found["objects_nobody_names"] = _leftovers(stack)
    found["good"] = (
        found["succeeded"] == found["jobs"] == found["readable_over_http"]
        and found["published_twice"] == found["different"] == found["objects_missing"] == 0
        and found["objects_nobody_names"] == 0
        and (found["longest_run_again_s"] or 0) <= RUN_AGAIN_LIMIT_S
    )
    return found


def _hash(stack: Stack, job: str) -> str:
    result = stack.records.get(job).result
    return result.images[0].sha256 if result else "failed"


def _examine(stack: Stack, jobs: list[str], expected: dict[int, str], seeds: int) -> dict[str, Any]:
    log = EventLog(stack.redis, stack.settings)
    succeeded = twice = different = missing = 0
    for number, job in enumerate(jobs):
        record = stack.records.get(job)
        succeeded += record.state is JobState.SUCCEEDED
        twice += sum(event.type == "succeeded" for event in log.read(job, limit=5000)) > 1
        different += _hash(stack, job) != expected[number % seeds]
        if record.result is not None:
            keys = set(stack.store.list_keys(f"jobs/{job}/{record.result.attempt}/"))
            named = {image.key for image in record.result.images} | {record.result.manifest_key}
            missing += len(named - keys)
    return {
        "succeeded": succeeded,
        "lost": len(jobs) - succeeded,
        "published_twice": twice,
        "different": different,
        "objects_missing": missing,
    }


def _run_again(stack: Stack, disturber: Disturber) -> dict[str, Any]:
    """Seconds from a worker's death to the next start of the job that it had."""
    log, delays = EventLog(stack.redis, stack.settings), []
    for job, attempt, killed in disturber.victims:
        for event in log.read(job, limit=5000):
            if event.type == "started" and int(event.data["attempt"]) > attempt:
                delays.append(int(event.id.partition("-")[0]) / 1000 - killed)
                break
    longest = round(max(delays), 1) if delays else None
    return {"jobs_that_lost_their_worker": len(delays), "longest_run_again_s": longest}


def _readable(client: httpx.Client, jobs: list[str]) -> int:
    """How many results the API hands out, picture and all."""
    count = 0
    for job in jobs:
        result = patient(lambda job=job: client.get(f"/v1/generations/{job}")).json()["result"]
        if result is not None:
            count += httpx.get(result["images"][0]["url"], trust_env=False).status_code == 200
    return count


def _leftovers(stack: Stack) -> int:
    """Objects of jobs that no record names, once the reconciler has swept."""

    def count() -> int:
        named, cursor = set(), None
        while True:
            page = stack.records.list(cursor, 100)
            for record in page.records:
                if record.result is not None:
                    named.add(f"jobs/{record.id}/{record.result.attempt}")
            cursor = page.next_cursor
            if cursor is None:
                break
        keys = stack.store.list_keys("jobs/")
        return sum(key.rpartition("/")[0] not in named for key in keys)

    end = time.monotonic() + 3 * stack.settings.lease_s + 20
    while (left := count()) and time.monotonic() < end:
        time.sleep(1)
    return left
