"""The client against a server that answers what each test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from client import GenerationFailed, ReadoutClient, Refused, Unreachable, WaitTimeout
from client.errors import describe

Answer = tuple[int, dict[str, str], Any]


class Scripted(ThreadingHTTPServer):
    """Answers one request after another from a list; the last answer is repeated."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answers = self.server.answers
        status, headers, body = answers.pop(0) if len(answers) > 1 else answers[0]
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def client(server: Scripted) -> Iterator[ReadoutClient]:
    with ReadoutClient(server.url, patience_s=3) as made:
        yield made


def generation(state: str, **fields: Any) -> dict[str, Any]:
    return {"id": "gen_1", "state": state, "failure": None, **fields}


POLL = {"Retry-After": "0.1"}


def test_wait_polls_until_the_result_is_there(server: Scripted, client: ReadoutClient) -> None:
    done = generation("succeeded", result={})
    server.answers = [(200, POLL, generation("queued")), (200, POLL, generation("running"))]
    server.answers += [(200, {}, done)]
    seen: list[str] = []
    assert client.wait("gen_1", on_update=lambda state: seen.append(state["state"])) == done
    assert seen == ["queued", "running", "succeeded"]


def test_wait_rides_out_a_restart_of_the_service(server: Scripted, client: ReadoutClient) -> None:
    server.answers = [(503, POLL, {"title": "Unavailable"}), (200, {}, generation("succeeded"))]
    assert client.wait("gen_1")["state"] == "succeeded"


@pytest.mark.parametrize("state", ["failed", "canceled"])
def test_wait_raises_what_ended_otherwise(
    server: Scripted, client: ReadoutClient, state: str
) -> None:
    failure = {"code": "diverged", "message": "step 3: try a smaller weight"}
    server.answers = [(200, {}, generation(state, failure=failure))]
    with pytest.raises(GenerationFailed, match=f"{state}: diverged: step 3: try a smaller weight"):
        client.wait("gen_1")


def test_wait_ends_with_its_time(server: Scripted, client: ReadoutClient) -> None:
    server.answers = [(200, POLL, generation("running"))]
    with pytest.raises(WaitTimeout, match=r"not done in 0\.3 s"):
        client.wait("gen_1", timeout_s=0.3)


def test_writes_are_not_repeated(server: Scripted, client: ReadoutClient) -> None:
    server.answers = [(503, POLL, {"title": "Full", "code": "queue_full"})]
    with pytest.raises(Refused) as caught:
        client.create({"prompt": "x"})
    assert caught.value.code == "queue_full"
    assert server.asked == ["POST /v1/generations"]


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.create({"prompt": "x"}),
        lambda client: client.upload(b"x"),
        lambda client: client.get("gen_1"),
        lambda client: client.cancel("gen_1"),
    ],
)
def test_a_problem_is_told_with_its_fields(
    server: Scripted, client: ReadoutClient, call: Callable[[ReadoutClient], object]
) -> None:
    problem = {
        "title": "Invalid request",
        "status": 422,
        "detail": "2 fields are wrong",
        "errors": [
            {"pointer": "#/seed", "detail": "too large"},
            {"pointer": "#/steps", "detail": "too many"},
        ],
        "request_id": "abc",
    }
    server.answers = [(422, {"Content-Type": "application/problem+json"}, problem)]
    with pytest.raises(Refused) as caught:
        call(client)
    assert str(caught.value).splitlines() == [
        "Invalid request (422): 2 fields are wrong",
        "  #/seed: too large",
        "  #/steps: too many",
        "  request id abc",
    ]


def test_an_answer_of_something_else_is_no_traceback(
    server: Scripted, client: ReadoutClient
) -> None:
    server.answers = [(200, {}, b"<html>")]
    with pytest.raises(Unreachable, match="does not speak this API"):
        client.get("gen_1")
    server.answers = [(404, {}, b"<html>")]
    with pytest.raises(Refused, match=r"Not Found \(404\)"):
        client.get("gen_1")


def test_nobody_there() -> None:
    with (
        ReadoutClient("http://127.0.0.1:1", patience_s=0) as client,
        pytest.raises(Unreachable, match=r"no answer from http://127\.0\.0\.1:1: "),
    ):
        client.heads()


def test_a_detail_that_is_its_only_error_is_told_once() -> None:
    error = {"pointer": "#/seed", "detail": "too large"}
    text = describe(422, {"title": "Invalid", "detail": "seed: too large", "errors": [error]})
    assert text.splitlines() == ["Invalid (422): seed: too large", "  at #/seed"]
