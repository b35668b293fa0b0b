"""Kills workers (-9) at random moments of a job, and checks that nothing is lost or doubled.

    python -m bench.kill_worker --model mannequin-64 --moments 10

starts embedded servers, the reconciler and one worker that is started again as `readout up` does,
with the service's default lease. For each moment: a job is submitted, its worker is killed after a
random part of the job's own duration, and the job must run again ≤ 60 s later and succeed once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from jobs.connection import connect
from jobs.events import EventLog
from jobs.queue import JobQueue
from jobs.reconciler import run_forever
from jobs.record import JobState, RecordStore
from jobs.request import GenerationRequest
from jobs.settings import CoreSettings
from jobs.store import ObjectStore
from jobs.workers import WorkerBoard
from stack.servers import start_s3, start_valkey

ACCESS_KEY, SECRET_KEY = "kill-worker", secrets.token_hex(8)
LIMIT_S = 60.0


@dataclass(frozen=True)
class Row:
    """What became of one killed job."""

    moment_s: float
    killed_at_step: int
    runs_again_after_s: float
    done_after_s: float
    attempts: int
    successes: int
    objects_missing: int

    @property
    def good(self) -> bool:
        """Whether nothing was lost or doubled, in time."""
        once = self.successes == 1 and self.objects_missing == 0
        return once and self.runs_again_after_s <= LIMIT_S


class Bench:
    """The stack without a gateway, and the job that is submitted again and again."""

    def __init__(self, settings: CoreSettings, request: GenerationRequest, logs: Path) -> None:
        self.settings, self.request, self.logs = settings, request, logs
        self.client, self.queue = connect(settings), JobQueue(settings)
        self.store = ObjectStore(settings)
        self.records = RecordStore(self.client, settings)
        self.board = WorkerBoard(self.client, settings)
        self.worker: subprocess.Popen[bytes] | None = None

    def start_worker(self) -> None:
        """As a supervisor does; its models load while the lease of the dead one runs out."""
        environment = os.environ | {
            f"READOUT_{name.upper()}": value for name, value in _variables(self.settings).items()
        }
        environment["READOUT_WARM_MODELS"] = self.request.model
        with (self.logs / "worker.log").open("ab") as log:
            command = [sys.executable, "-m", "worker"]
            self.worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill_worker(self) -> None:
        """SIGKILL."""
        if self.worker is not None:
            self.worker.send_signal(signal.SIGKILL)
            self.worker.wait()

    def submit(self) -> str:
        """A job, enqueued."""
        record = self.records.create(self.request, "bench")
        self.queue.enqueue(record)
        return record.id

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float = 600.0) -> None:
        """Until `done`, or give up."""
        end = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > end:
                raise SystemExit(f"{what} did not happen; see {self.logs / 'worker.log'}")
            time.sleep(0.02)

    def is_in(self, job: str, state: JobState) -> Callable[[], bool]:
        """Whether the job is in a state, to wait for."""
        return lambda: self.records.get(job).state is state

    def duration_s(self) -> float:
        """How long an undisturbed job takes once the worker is warm."""
        self.wait(lambda: bool(self.board.alive()), "a worker that is ready")
        job = self.submit()
        self.wait(self.is_in(job, JobState.SUCCEEDED), "the first job's success")
        done = self.records.get(job)
        assert done.finished_at is not None
        assert done.started_at is not None
        return (done.finished_at - done.started_at).total_seconds()

    def one(self, moment_s: float) -> Row:
        """Submit, kill, start a worker, wait, look."""
        pid = self.worker.pid if self.worker else 0
        self.wait(lambda: any(w.pid == pid for w in self.board.alive()), "a worker that is ready")
        job = self.submit()
        self.wait(self.is_in(job, JobState.RUNNING), "the job's start")
        time.sleep(moment_s)
        progress = self.records.get(job).progress
        self.kill_worker()
        killed = time.monotonic()
        self.start_worker()
        ended = self.records.get(job).state is JobState.SUCCEEDED
        if not ended:
            self.wait(lambda: self.records.get(job).attempt > 1, "the second attempt")
        again_s = 0.0 if ended else time.monotonic() - killed
        self.wait(lambda: self.records.get(job).state.terminal, "the job's end")
        done_s = 0.0 if ended else time.monotonic() - killed
        return self._look(job, moment_s, progress.step if progress else 0, again_s, done_s)

    def _look(self, job: str, moment_s: float, step: int, again_s: float, done_s: float) -> Row:
        record = self.records.get(job)
        events = EventLog(self.client, self.settings).read(job, limit=5000)
        keys = set(self.store.list_keys(f"jobs/{job}/"))
        result = record.result
        wanted = {image.key for image in result.images} | {result.manifest_key} if result else {"-"}
        return Row(
            moment_s=round(moment_s, 2),
            killed_at_step=step,
            runs_again_after_s=round(again_s, 1),
            done_after_s=round(done_s, 1),
            attempts=record.attempt,
            successes=sum(event.type == "succeeded" for event in events),
            objects_missing=len(wanted - keys),
        )

    def leftovers(self) -> int:
        """Objects under jobs/ that no record names, after the reconciler has swept."""
        time.sleep(2 * self.settings.lease_s + 10)
        named = set()
        for record in self.records.list(limit=1000).records:
            if record.result:
                named |= {record.result.manifest_key, *(i.key for i in record.result.images)}
        return len(set(self.store.list_keys("jobs/")) - named)


def _variables(settings: CoreSettings) -> dict[str, str]:
    return {
        "redis_url": settings.redis_url.get_secret_value(),
        "s3_endpoint_url": settings.s3_endpoint_url or "",
        "s3_access_key_id": ACCESS_KEY,
        "s3_secret_access_key": SECRET_KEY,
        "registry_dirs": ":".join(str(path) for path in settings.registry_dirs),
    }


@contextmanager
def a_bench(arguments: argparse.Namespace, directory: Path) -> Iterator[Bench]:
    """Servers, reconciler and worker; all of it ended in the end."""
    with ExitStack() as context:
        valkey = start_valkey(directory / "valkey")
        context.callback(valkey.kill)
        s3 = start_s3(directory / "s3", ACCESS_KEY, SECRET_KEY)
        context.callback(s3.kill)
        values = {
            "redis_url": valkey.url,
            "s3_endpoint_url": s3.url,
            "s3_access_key_id": ACCESS_KEY,
            "s3_secret_access_key": SECRET_KEY,
            "registry_dirs": tuple(arguments.registry),
        }
        settings = CoreSettings.model_validate(values)
        bench = Bench(settings, a_request(settings, arguments), directory)
        for connection in (bench.client, bench.queue, bench.store):
            context.callback(connection.close)
        bench.store.ensure_bucket()
        stop = threading.Event()
        reconciler = threading.Thread(target=run_forever, args=(settings, stop))
        reconciler.start()
        context.callback(reconciler.join)
        context.callback(stop.set)
        bench.start_worker()
        context.callback(bench.kill_worker)
        yield bench


def a_request(settings: CoreSettings, arguments: argparse.Namespace) -> GenerationRequest:
    """A plain picture with the model's own defaults."""
    model = Catalogue((BUILTIN_DIR, *settings.registry_dirs)).model(arguments.model)
    return GenerationRequest(
        task="text_to_image",
        model=model.name,
        prompt="a person in a red shirt, arms up, on grass",
        negative_prompt=model.defaults.negative_prompt,
        num_images=1,
        seed=1,
        height=model.height,
        width=model.width,
        num_inference_steps=arguments.steps,
        guidance_scale=model.defaults.guidance_scale,
        eta=model.defaults.eta,
        form=model.defaults.form,
        branch=model.defaults.branch,
        update_rule=model.defaults.update_rule,
    )


def main() -> int:
    """Run and print the table; exit status 1 when a job was lost, doubled or late."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mannequin-64")
    parser.add_argument("--registry", type=Path, action="append", default=[])
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # end servers and worker as well
    with tempfile.TemporaryDirectory() as name, a_bench(arguments, Path(name)) as bench:
        duration_s = bench.duration_s()
        print(f"an undisturbed job takes {duration_s:.1f} s")
        print("moment s   step   runs again s   done s   attempts   successes   missing")
        rows = []
        for _ in range(arguments.moments):
            row = bench.one(chance.uniform(0, duration_s))
            rows.append(row)
            print(
                f"{row.moment_s:8.2f} {row.killed_at_step:6d} {row.runs_again_after_s:14.1f} "
                f"{row.done_after_s:8.1f} {row.attempts:10d} {row.successes:11d} "
                f"{row.objects_missing:9d}",
                flush=True,
            )
        leftovers = bench.leftovers()
    good = all(row.good for row in rows) and leftovers == 0
    print(f"objects that nobody names: {leftovers}; {'all good' if good else 'NOT GOOD'}")
    if arguments.json:
        report = {"rows": [asdict(row) for row in rows], "leftovers": leftovers, "good": good}
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
