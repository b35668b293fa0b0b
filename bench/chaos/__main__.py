"""Breaks and loads a real stack, and says whether it held.

    python -m bench.chaos                          # everything, as in docs/reliability.md
    python -m bench.chaos disturb --jobs 12 --workers 2 --steps 4
    python -m bench.chaos memory rate --seconds 10

Each part starts servers and processes of its own in a temporary directory and ends them. The exit
status is 1 when a part did not hold; `--json` writes the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.chaos import disturb, measure, promises
from bench.chaos.webhooks import webhooks

PARTS = (
    *("disturb", "cancel", "idempotency", "stop", "events", "webhooks"),
    *("memory", "rate", "scaling", "batch"),
)


def main() -> int:
    """Run the parts asked for."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    body = {"prompt": "a person in a red shirt, arms up, on grass", "model": arguments.model}
    body |= {"num_inference_steps": arguments.steps}
    settings: dict[str, object] = {"warm_models": arguments.model, "num_threads": 1}
    settings |= {"default_model": arguments.model, "lease_s": arguments.lease}
    if arguments.registry:
        settings["registry_dirs"] = ":".join(str(path) for path in arguments.registry)
    command = shlex.split(arguments.worker)
    runs: dict[str, Callable[[Path], dict[str, Any]]] = {
        "disturb": lambda place: disturb.run(place, a_plan(arguments, settings, body)),
        "cancel": lambda place: promises.cancel(place, settings, body, arguments.times, command),
        "idempotency": lambda place: promises.idempotency(place, settings, body, arguments.pairs),
        "stop": lambda place: promises.stop(place, settings, body, arguments.times // 4, command),
        "events": lambda place: promises.events(place, settings, body, arguments.clients, command),
        "webhooks": lambda place: webhooks(place, settings, body, arguments.times, command),
        "memory": lambda place: measure.memory(
            place, settings, body, arguments.jobs, arguments.settle
        ),
        "rate": lambda place: measure.rate(
            place, settings, body, arguments.rate, arguments.seconds, arguments.bound
        ),
        "scaling": lambda place: measure.scaling(place, settings, body, arguments.pair_jobs),
        "batch": lambda place: measure.batch(place, settings, body, arguments.items),
    }
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for part in arguments.parts or PARTS:
            start = time.monotonic()
            report[part] = runs[part](Path(name) / part)
            print(f"{part} ({time.monotonic() - start:.0f} s)", flush=True)
            for key, value in report[part].items():
                print(f"  {key:32} {value}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0 if all(part["good"] for part in report.values()) else 1


def a_plan(
    arguments: argparse.Namespace, settings: dict[str, object], body: dict[str, Any]
) -> disturb.Plan:
    """Of the disturbed run."""
    return disturb.Plan(
        jobs=arguments.jobs,
        workers=arguments.workers,
        seeds=min(arguments.seeds, arguments.jobs),
        kill_every_s=arguments.kill_every,
        storage_away_s=arguments.storage_away,
        worker_command=tuple(shlex.split(arguments.worker)),
        chance=arguments.chance,
        settings=settings,
        body=body,
    )


def parse() -> argparse.Namespace:
    """The command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all of them")
    parser.add_argument("--model", default="mannequin-64")
    parser.add_argument("--registry", type=Path, action="append", default=[])
    parser.add_argument(
        "--worker",
        default="",
        help="command of the worker; `python -m tests.worker.fakes` computes nothing",
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=300, help="of disturb and memory")
    parser.add_argument("--workers", type=int, default=3, help="of disturb")
    parser.add_argument("--seeds", type=int, default=20, help="different ones, of disturb")
    parser.add_argument("--kill-every", type=float, default=6.0, help="seconds, mean")
    parser.add_argument("--storage-away", type=float, default=20.0, help="seconds")
    parser.add_argument("--lease", type=float, default=20.0, help="seconds")
    parser.add_argument("--chance", type=int, default=0, help="seed of what breaks when")
    parser.add_argument("--times", type=int, default=20, help="of cancel, stop and webhooks")
    parser.add_argument("--pairs", type=int, default=100, help="of idempotency")
    parser.add_argument("--clients", type=int, default=12, help="of events")
    parser.add_argument("--settle", type=int, default=50, help="jobs before memory is compared")
    parser.add_argument("--rate", type=float, default=200.0, help="creations a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="of creations")
    parser.add_argument("--bound", type=int, default=5000, help="of the queue")
    parser.add_argument("--pair-jobs", type=int, default=40, help="of scaling")
    parser.add_argument("--items", type=int, default=300, help="of batch")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part: {', '.join(unknown)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
