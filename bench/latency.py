"""`python -m bench.latency`: from a request over HTTP to the worker's start, on an idle stack.

Starts `readout up`, then sends one small generation after another: each waits until the one before
it is done. Measured on one clock: the moment before the request is sent → `started_at` of the
record, and the gateway's answer beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

from client import ReadoutClient
from demo.stack import running_stack


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=40)
    options = parser.parse_args()
    answered_ms, started_ms = [], []
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        with running_stack(state / "stack", state / "log") as url, ReadoutClient(url) as client:
            for seed in range(options.requests + 1):
                request = {"prompt": "a person", "seed": seed, "num_inference_steps": 1}
                sent = time.time()
                created = client.create(request)
                answered = time.time()
                done = client.wait(created["id"], timeout_s=300)
                started = datetime.fromisoformat(done["started_at"]).timestamp()
                if seed:  # the first loads the model
                    answered_ms.append(1000 * (answered - sent))
                    started_ms.append(1000 * (started - sent))
    print(f"{options.requests} requests to an idle stack, milliseconds after sending (p50, p90):")
    for name, values in (("answered 202", answered_ms), ("worker started", started_ms)):
        deciles = statistics.quantiles(values, n=10)
        print(f"  {name}: {statistics.median(values):.0f}, {deciles[8]:.0f}")


if __name__ == "__main__":
    main()
