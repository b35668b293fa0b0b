"""Memory over many jobs, the gateway's rate, two workers over one, a batch against single jobs."""

from __future__ import annotations

import http.client
import io
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from bench.chaos.stack import Stack, a_stack, patient, submit, wait_for_all


def memory(
    directory: Path, settings: Mapping[str, object], body: Mapping[str, Any], jobs: int, settle: int
) -> dict[str, Any]:
    """RSS of one worker over `jobs` jobs; growth counts after the first `settle`."""
    with (
        a_stack(directory, {**settings, "batch_images": 1}, 1) as stack,
        httpx.Client(base_url=stack.url, timeout=30, trust_env=False) as client,
    ):
        process = psutil.Process(stack.pid_of("worker-1"))
        settled = 0
        for start in range(0, jobs, settle):
            count = min(settle, jobs - start)
            accepted = [submit(client, {**body, "seed": start + n}) for n in range(count)]
            wait_for_all(stack, accepted, 3600, lambda: None)
            settled = settled or process.memory_info().rss
        last = process.memory_info().rss
    growth = last / settled - 1
    return {
        "jobs": jobs,
        "rss_after_settling_mb": round(settled / 1e6, 1),
        "rss_at_the_end_mb": round(last / 1e6, 1),
        "growth": round(growth, 4),
        "good": growth < 0.02,
    }


def rate(
    directory: Path,
    settings: Mapping[str, object],
    body: Mapping[str, Any],
    per_second: float,
    seconds: float,
    bound: int,
) -> dict[str, Any]:
    """Creations at a steady rate with nobody taking jobs, until the queue is full and beyond."""
    total = int(per_second * seconds)
    with a_stack(directory, {**settings, "max_queued": bound}, 0) as stack:
        creations = _fire(stack, body, per_second, total)
    before = [one for one in creations if one["status"] == 202]
    beyond = [one for one in creations if one["status"] != 202]
    last = max(one["sent_at"] for one in before)
    found = {
        "asked_per_s": per_second,
        "sent": len(creations),
        "achieved_per_s": round(len(creations) / max(one["at"] for one in creations), 1),
        "accepted": len(before),
        "refused": dict(Counter(one["status"] for one in beyond)),
        "refused_before_the_bound": sum(one["at"] < last for one in beyond),
        "creation_p50_ms": _percentile([one["ms"] for one in before], 50),
        "creation_p99_ms": _percentile([one["ms"] for one in before], 99),
        "status_p99_ms": _percentile([one["status_ms"] for one in before if one["status_ms"]], 99),
        "refusal_p99_ms": _percentile([one["ms"] for one in beyond], 99) if beyond else None,
    }
    found["good"] = (
        len(before) == min(bound, total)
        and not found["refused_before_the_bound"]
        and all(one["status"] == 503 and one["retry_after"] for one in beyond)
        and found["creation_p99_ms"] <= 100
        and found["status_p99_ms"] <= 50
    )
    return found


def _fire(
    stack: Stack, body: Mapping[str, Any], per_second: float, total: int
) -> list[dict[str, Any]]:
    """Open loop: request n leaves at n / rate whatever became of others; each tenth is polled."""
    found: list[dict[str, Any]] = []
    own = threading.local()  # a connection each: httpx would take as much of the CPU as the gateway

    def ask(method: str, path: str, sent: str | None = None) -> http.client.HTTPResponse:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
        headers = {"Content-Type": "application/json"} if sent else {}
        own.connection.request(method, path, sent, headers)
        answer: http.client.HTTPResponse = own.connection.getresponse()
        answer.read()
        return answer

    with ThreadPoolExecutor(32) as pool:
        start = time.perf_counter()

        def one(number: int) -> None:
            due = start + number / per_second
            answer = ask("POST", "/v1/generations", json.dumps({**body, "seed": number}))
            done = time.perf_counter()
            status_ms = None
            if number % 10 == 0 and answer.status == 202:
                assert ask("GET", answer.headers["location"]).status == 200
                status_ms = (time.perf_counter() - done) * 1000
            found.append(
                {
                    "sent_at": due - start,
                    "at": done - start,
                    "ms": (done - due) * 1000,
                    "status": answer.status,
                    "status_ms": status_ms,
                    "retry_after": answer.headers.get("retry-after"),
                }
            )

        for number in range(total):
            time.sleep(max(0.0, start + number / per_second - time.perf_counter()))
            pool.submit(one, number)
    return found


def _percentile(values: list[float], percent: int) -> float:
    return round(float(np.percentile(values, percent)), 1)


def scaling(
    directory: Path, settings: Mapping[str, object], body: Mapping[str, Any], jobs: int
) -> dict[str, Any]:
    """Jobs a second of two workers over one, against two bare sampling loops over one."""
    throughput = {}
    for workers in (1, 2):
        with (
            a_stack(directory / str(workers), {**settings, "batch_images": 1}, workers) as stack,
            httpx.Client(base_url=stack.url, timeout=30, trust_env=False) as client,
        ):
            start = time.perf_counter()
            accepted = [submit(client, {**body, "seed": n}) for n in range(jobs)]
            wait_for_all(stack, accepted, 3600, lambda: None)
            throughput[workers] = jobs / (time.perf_counter() - start)
    bare = {count: _bare(settings, body, count, jobs) for count in (1, 2)}
    ratio, bare_ratio = throughput[2] / throughput[1], bare[2] / bare[1]
    return {
        "jobs_per_s_1_worker": round(throughput[1], 3),
        "jobs_per_s_2_workers": round(throughput[2], 3),
        "ratio": round(ratio, 3),
        "bare_ratio": round(bare_ratio, 3),
        "part_of_the_bare_ratio": round(ratio / bare_ratio, 3),
        "good": ratio >= 0.9 * bare_ratio,
    }


def _bare(
    settings: Mapping[str, object], body: Mapping[str, Any], processes: int, jobs: int
) -> float:
    """Runs a second of sampling loops without any service, `processes` of them at a time."""
    each = max(2, jobs // processes)
    command = [sys.executable, "-m", "bench.chaos.bare", str(body.get("model", "mannequin-64"))]
    command += [str(body.get("num_inference_steps", 50)), str(each)]
    command += [str(settings.get("registry_dirs", ""))]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(processes)
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()  # ready: loaded and warm
    start = time.perf_counter()
    for process in running:
        process.communicate(b"go\n")
    return processes * each / (time.perf_counter() - start)


def batch(
    directory: Path, settings: Mapping[str, object], body: Mapping[str, Any], items: int
) -> dict[str, Any]:
    """A batch against the same items as single jobs, each alone: throughput, and the pictures."""
    bodies = [{**body, "seed": n} for n in range(items)]
    with (
        a_stack(directory / "single", {**settings, "batch_images": 1}, 1) as stack,
        httpx.Client(base_url=stack.url, timeout=60, trust_env=False) as client,
    ):
        start = time.perf_counter()
        jobs = [submit(client, one) for one in bodies]
        wait_for_all(stack, jobs, 7200, lambda: None)
        single_s = time.perf_counter() - start
        single = [_picture(stack, job) for job in jobs]
    with (
        a_stack(directory / "batch", settings, 1) as stack,
        httpx.Client(base_url=stack.url, timeout=60, trust_env=False) as client,
    ):
        start = time.perf_counter()
        made = patient(lambda: client.post("/v1/batches", json={"items": bodies})).json()
        path = f"/v1/batches/{made['id']}"

        def ended() -> bool:
            return bool(client.get(path).json()["finished_at"])

        stack.wait(ended, "the batch's end", 7200)
        batch_s = time.perf_counter() - start
        listed = client.get(f"{path}/items?limit=500").json()["items"]
        together = [_picture(stack, item["generation_id"]) for item in listed]
    ratios = [_psnr(one, other) for one, other in zip(single, together, strict=True)]
    return {
        "items": items,
        "single_s": round(single_s, 2),
        "batch_s": round(batch_s, 2),
        "throughput": round(single_s / batch_s, 2),
        "psnr_min_db": round(min(ratios), 1),
        "psnr_median_db": round(statistics.median(ratios), 1),
        "good": single_s / batch_s >= 2 and min(ratios) >= 40,
    }


def _picture(stack: Stack, job: str) -> np.ndarray:
    result = stack.records.get(job).result
    assert result is not None, job
    data = stack.store.get_bytes(result.images[0].key)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(((one - other) ** 2).mean())
    return float(10 * np.log10(255**2 / max(error, 1e-3)))
