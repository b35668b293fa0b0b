"""Webhook receivers that are down, slow, redirecting, gone or untrusted, while jobs run."""

from __future__ import annotations

import ssl
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import trustme

from bench.chaos.stack import Stack, a_stack, submit, wait_for_all
from stack.servers import free_port

TIMEOUT_S = 1.0
TRIES = 3


@dataclass
class Receiver:
    """What came in, by path."""

    url: str
    hits: Counter[str] = field(default_factory=Counter)


@contextmanager
def receiving(context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """An HTTP server that answers as its path says."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.hits[self.path] += 1
            if self.path == "/slow":
                time.sleep(3 * TIMEOUT_S)
            self.send_response({"/redirect": 307, "/gone": 410}.get(self.path, 204))
            self.send_header("Location", "/landed")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that hangs up is what is wanted."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, True, do_handshake_on_connect=False)
        scheme = "https" if context else "http"
        receiver = Receiver(f"{scheme}://localhost:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


def webhooks(
    directory: Path,
    settings: Mapping[str, object],
    body: Mapping[str, Any],
    jobs: int,
    worker_command: Sequence[str] = (),
) -> dict[str, Any]:
    """The same jobs with nobody to tell, and with six endpoints of which one works."""
    untrusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(untrusted)
    options = {
        **settings,
        "batch_images": 1,
        "webhook_allow_insecure": True,
        "webhook_timeout_s": TIMEOUT_S,
        "webhook_retry_after_s": "[0, 0.2, 0.2]",
    }
    with ExitStack() as context:
        plain = context.enter_context(receiving())
        secure = context.enter_context(receiving(untrusted))
        stack = context.enter_context(a_stack(directory, options, 1, worker_command))
        client = httpx.Client(base_url=stack.url, timeout=30, trust_env=False)
        context.enter_context(client)
        quiet_s = _run(stack, client, body, jobs)
        targets = {name: f"{plain.url}/{name}" for name in ("good", "slow", "redirect", "gone")}
        targets["down"] = f"http://localhost:{free_port()}/"
        targets["untrusted"] = f"{secure.url}/untrusted"
        ids = {
            name: client.post("/v1/webhook-endpoints", json={"url": url}).json()["id"]
            for name, url in targets.items()
        }
        told_s = _run(stack, client, body, jobs)
        outcomes = {name: _outcome(stack, client, one, jobs) for name, one in ids.items()}
        gone = client.get(f"/v1/webhook-endpoints/{ids['gone']}").json()
    return {
        "jobs": jobs,
        "job_s_with_nobody_to_tell": round(quiet_s, 3),
        "job_s_with_six_endpoints": round(told_s, 3),
        **{f"deliveries_{name}": outcome for name, outcome in outcomes.items()},
        "redirects_followed": plain.hits["/landed"],
        "gone_is_enabled": gone["enabled"],
        "reached_without_trust": secure.hits["/untrusted"],
        "good": outcomes["good"] == {"delivered": jobs}
        and all(outcomes[name] == {"failed": jobs} for name in ("slow", "redirect", "down"))
        and outcomes["untrusted"] == {"failed": jobs}
        and not gone["enabled"]
        and not plain.hits["/landed"]
        and not secure.hits["/untrusted"],
    }


def _run(stack: Stack, client: httpx.Client, body: Mapping[str, Any], jobs: int) -> float:
    """Median seconds that the worker had a job."""
    made = [submit(client, {**body, "seed": n}) for n in range(jobs)]
    wait_for_all(stack, made, 1800, lambda: None)
    seconds = []
    for job in made:
        record = stack.records.get(job)
        assert record.started_at is not None
        assert record.finished_at is not None
        seconds.append((record.finished_at - record.started_at).total_seconds())
    return statistics.median(seconds)


def _outcome(stack: Stack, client: httpx.Client, endpoint: str, jobs: int) -> dict[str, int]:
    """How many deliveries were made or given up, once none is under way."""
    path = f"/v1/webhook-endpoints/{endpoint}/deliveries?limit=100"

    def states() -> Counter[str]:
        return Counter(one["state"] for one in client.get(path).json()["items"])

    def settled() -> bool:
        enabled = client.get(f"/v1/webhook-endpoints/{endpoint}").json()["enabled"]
        found = states()
        return not found["pending"] and (not enabled or sum(found.values()) == jobs)

    stack.wait(settled, "the deliveries", 300)
    return dict(states())
