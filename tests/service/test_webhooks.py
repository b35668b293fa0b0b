"""Webhooks: verified with the official library, through receivers that misbehave in every way."""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from redis import Redis
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from jobs.batches import BatchItem, BatchStore
from jobs.connection import connect
from jobs.outbox import MAX_MESSAGE_CHARS, Outbox
from jobs.record import Failure, FailureCode, JobState, RecordStore
from jobs.webhooks import MAX_ENDPOINTS, EndpointStore
from service.settings import GatewaySettings
from service.webhook_guard import ForbiddenTarget, check_url, is_public
from service.webhook_sender import PER_OWNER, PER_TARGET, run_forever
from tests.jobs.samples import a_request, a_result
from tests.service.conftest import problem, serving

TIMEOUT_S = 1.0


@dataclass
class Received:
    """One POST that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Answers by path; keeps what arrived."""

    url: str
    received: list[Received] = field(default_factory=list)

    def at(self, path: str) -> list[Received]:
        return [one for one in self.received if one.path == path]


@contextmanager
def receiving(context: ssl.SSLContext | None = None, host: str = "localhost") -> Iterator[Receiver]:
    """A receiver; with a context it speaks TLS."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.received.append(Received(self.path, headers, body))
            status = {"/redirect": 307, "/gone": 410, "/down": 500}.get(self.path, 204)
            if self.path == "/flaky" and len(receiver.at("/flaky")) < 3:
                status = 503
            if self.path == "/slow":
                time.sleep(TIMEOUT_S * 2)
            self.send_response(status)
            if status == 307:
                self.send_header("Location", "/landed")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that hangs up on a slow or an untrusted one

    with Server(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, True, do_handshake_on_connect=False)
        scheme = "http" if context is None else "https"
        receiver = Receiver(f"{scheme}://{host}:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


def tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@dataclass(frozen=True)
class House:
    """A gateway, the outbox's process as a thread, and two receivers."""

    client: httpx.Client
    settings: GatewaySettings
    records: RecordStore
    outbox: Outbox
    plain: Receiver
    secure: Receiver

    def endpoint(self, url: str, **fields: Any) -> dict[str, Any]:
        made = self.client.post("/v1/webhook-endpoints", json={"url": url} | fields)
        assert made.status_code == 201, made.text
        found: dict[str, Any] = made.json()
        return found

    def ended_job(self, **fields: Any) -> str:
        """A generation that a client asked for and that a worker failed."""
        made = self.client.post("/v1/generations", json={"prompt": "a"} | fields)
        assert made.status_code == 202, made.text
        job = str(made.json()["id"])
        attempt = self.records.start(job, "w")
        message = "step 7: ü" + "x" * 30_000
        self.records.fail(job, attempt, Failure(code=FailureCode.DIVERGED, message=message))
        return job

    def delivery(self, endpoint_id: str, job: str, state: str) -> dict[str, Any]:
        """The log's entry of a job, once it is in that state."""
        deadline = time.monotonic() + 60
        while True:
            path = f"/v1/webhook-endpoints/{endpoint_id}/deliveries"
            for entry in self.client.get(path).json()["items"]:
                if json.loads(entry["body"])["data"]["id"] == job and entry["state"] == state:
                    found: dict[str, Any] = entry
                    return found
            assert time.monotonic() < deadline, self.client.get(path).text
            time.sleep(0.05)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def house(
    make_settings: Callable[..., GatewaySettings],
    authority: trustme.CA,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[House]:
    ca_file: Path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    settings = make_settings(
        webhook_allow_insecure=True,
        webhook_ca_file=ca_file,
        webhook_timeout_s=TIMEOUT_S,
        webhook_retry_after_s=(0, 0.05, 0.05),
    )
    stop, redis = threading.Event(), connect(settings)
    sender = threading.Thread(target=run_forever, args=(settings, stop))
    sender.start()
    with ExitStack() as stack:
        client = stack.enter_context(serving(settings))
        plain = stack.enter_context(receiving())
        secure = stack.enter_context(receiving(tls(authority, "localhost")))
        yield House(
            client, settings, RecordStore(redis, settings), Outbox(redis, settings), plain, secure
        )
    stop.set()
    sender.join()
    redis.close()


def verify(secret: str, received: Received) -> dict[str, Any]:
    """By the official library: signature, and the timestamp within five minutes."""
    found: dict[str, Any] = Webhook(secret).verify(received.body, received.headers)
    return found


def test_a_message_is_what_the_standard_says(house: House) -> None:
    endpoint = house.endpoint(f"{house.secure.url}/whole", description="the shop")
    job = house.ended_job()
    entry = house.delivery(endpoint["id"], job, "delivered")
    (received,) = house.secure.at("/whole")
    payload = verify(endpoint["secrets"][0]["value"], received)
    assert payload["type"] == "generation.failed"
    assert payload["data"] == {
        "id": job,
        "state": "failed",
        "failure": {
            "code": "diverged",
            "message": ("step 7: ü" + "x" * 30_000)[:MAX_MESSAGE_CHARS],
        },
        "path": f"/v1/generations/{job}",
    }
    assert len(received.body) < 20_000
    assert received.headers["webhook-id"] == entry["message_id"]
    assert received.headers["content-type"] == "application/json"
    (attempt,) = entry["attempts"]
    assert (attempt["status"], attempt["error"]) == (204, None)
    with pytest.raises(WebhookVerificationError):
        verify("whsec_" + "A" * 32, received)
    house.client.delete(f"/v1/webhook-endpoints/{endpoint['id']}")


def test_every_way_to_end_is_told_to_those_who_want_it(house: House) -> None:
    all_of_them = house.endpoint(f"{house.plain.url}/all")
    some = house.endpoint(f"{house.plain.url}/some", events=["generation.canceled"])
    records = house.records
    done, canceled = records.create(a_request()).id, records.create(a_request()).id
    attempt = records.start(done, "w")
    records.succeed(done, attempt, a_result(done, attempt))
    records.request_cancel(canceled)
    house.delivery(all_of_them["id"], done, "delivered")
    house.delivery(all_of_them["id"], canceled, "delivered")
    house.delivery(some["id"], canceled, "delivered")
    types = {json.loads(one.body)["type"] for one in house.plain.at("/all")}
    assert types == {"generation.succeeded", "generation.canceled"}
    assert len(house.plain.at("/some")) == 1
    for one in (all_of_them, some):
        assert house.client.delete(f"/v1/webhook-endpoints/{one['id']}").status_code == 204


def test_a_batch_is_told_of_once_and_not_by_its_items(house: House) -> None:
    endpoint = house.endpoint(f"{house.plain.url}/batch")
    redis = connect(house.settings)
    items = [BatchItem(a_request(seed=seed)) for seed in range(3)]
    batch = BatchStore(redis, house.settings).create(items, "", "local")
    for record in house.records.take("w", most_images=9, most_pixels=10**9):
        house.records.succeed(record.id, record.attempt, a_result(record.id, record.attempt))
    for job in house.records.active(JobState.QUEUED):
        house.records.request_cancel(job)
    entry = house.delivery(endpoint["id"], batch.id, "delivered")
    payload = json.loads(entry["body"])
    assert payload["type"] == "batch.finished"
    assert payload["data"] == {"id": batch.id, "path": f"/v1/batches/{batch.id}"}
    told = [json.loads(one.body)["type"] for one in house.plain.at("/batch")]
    assert told == ["batch.finished"]
    house.client.delete(f"/v1/webhook-endpoints/{endpoint['id']}")
    redis.close()


def test_a_request_may_name_its_own_url(house: House) -> None:
    job = house.ended_job(webhook_url=f"{house.plain.url}/inline?token=1")
    entry = house.delivery("inline", job, "delivered")
    assert entry["url"].endswith("/inline?token=1")
    inline = house.client.get("/v1/webhook-endpoints/inline").json()
    (received,) = house.plain.at("/inline?token=1")
    assert verify(inline["secrets"][0]["value"], received)["data"]["id"] == job
    shown = house.client.get(f"/v1/generations/{job}").json()
    assert shown["request"]["webhook_url"].endswith("/inline?token=1")


def test_a_rotated_secret_signs_beside_the_new_one(house: House) -> None:
    endpoint = house.endpoint(f"{house.plain.url}/rotated")
    path = f"/v1/webhook-endpoints/{endpoint['id']}"
    rotated = house.client.post(f"{path}/rotate-secret").json()
    new, old = (secret["value"] for secret in rotated["secrets"])
    assert old == endpoint["secrets"][0]["value"] != new
    assert rotated["secrets"][1]["until"] is not None
    house.delivery(endpoint["id"], house.ended_job(), "delivered")
    (received,) = house.plain.at("/rotated")
    for secret in (new, old):
        verify(secret, received)
    house.client.delete(path)


def test_a_change_keeps_the_secrets_that_are_rotated_meanwhile(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = house.endpoint(f"{house.plain.url}/changed")
    path, read, redis = (
        f"/v1/webhook-endpoints/{endpoint['id']}",
        Redis.hget,
        connect(house.settings),
    )
    store, rotated = EndpointStore(redis, house.settings), list[str]()

    def hget(client: Redis, *arguments: Any) -> Any:
        found = read(client, *arguments)
        if client is not redis and arguments[1:] == (endpoint["id"],) and len(rotated) < 3:
            rotated.append(store.rotate("local", endpoint["id"]).secrets[0].value)
        return found

    monkeypatch.setattr(Redis, "hget", hget)
    changed = house.client.patch(path, json={"description": "the shop"})
    assert (changed.status_code, changed.json()["description"]) == (200, "the shop")
    monkeypatch.undo()
    found = house.client.get(path).json()
    assert found["description"] == "the shop"
    assert [one["value"] for one in found["secrets"][: len(rotated)]] == rotated[::-1]
    assert rotated
    house.client.delete(path)
    redis.close()


def test_a_receiver_that_comes_back_gets_it_with_the_same_id(house: House) -> None:
    endpoint = house.endpoint(f"{house.plain.url}/flaky")
    entry = house.delivery(endpoint["id"], house.ended_job(), "delivered")
    assert [attempt["status"] for attempt in entry["attempts"]] == [503, 503, 204]
    assert len({one.headers["webhook-id"] for one in house.plain.at("/flaky")}) == 1
    house.client.delete(f"/v1/webhook-endpoints/{endpoint['id']}")


@pytest.mark.parametrize(
    ("path", "error", "arrivals"),
    [
        ("/down", "status 500", 3),
        ("/redirect", "status 307: redirects are not followed", 3),
        ("/slow", "no answer in 1 s", 3),
    ],
)
def test_what_fails_is_tried_again_logged_and_can_be_sent_again(
    house: House, path: str, error: str, arrivals: int
) -> None:
    endpoint = house.endpoint(f"{house.plain.url}{path}")
    entry = house.delivery(endpoint["id"], house.ended_job(), "failed")
    assert [attempt["error"] for attempt in entry["attempts"]] == [error] * arrivals
    assert len(house.plain.at(path)) == arrivals
    assert house.plain.at("/landed") == []
    base = f"/v1/webhook-endpoints/{endpoint['id']}"
    assert house.client.get(base).json()["enabled"] is True
    house.client.patch(base, json={"url": f"{house.plain.url}/mended{path}"})
    again = house.client.post(f"{base}/deliveries/{entry['id']}/redeliver")
    assert (again.status_code, again.json()["state"]) == (202, "pending")
    job = json.loads(entry["body"])["data"]["id"]
    done = house.delivery(endpoint["id"], job, "delivered")
    assert len(done["attempts"]) == arrivals + 1
    (received,) = house.plain.at(f"/mended{path}")
    assert received.headers["webhook-id"] == entry["message_id"]
    house.client.delete(base)


def test_410_disables_the_endpoint(house: House) -> None:
    endpoint = house.endpoint(f"{house.plain.url}/gone")
    base = f"/v1/webhook-endpoints/{endpoint['id']}"
    entry = house.delivery(endpoint["id"], house.ended_job(), "failed")
    assert [attempt["status"] for attempt in entry["attempts"]] == [410]
    shown = house.client.get(base).json()
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "it answered 410 Gone")
    house.ended_job()
    time.sleep(1.2)
    assert len(house.plain.at("/gone")) == 1
    mended = house.client.patch(base, json={"enabled": True, "url": f"{house.plain.url}/back"})
    assert mended.json()["enabled"] is True
    house.delivery(endpoint["id"], house.ended_job(), "delivered")
    house.client.delete(base)


def test_wrong_tls_is_no_delivery(house: House, authority: trustme.CA) -> None:
    stranger = trustme.CA()
    cases = {"unknown authority": tls(stranger, "localhost")}
    cases["another's name"] = tls(authority, "example.org")
    for name, context in cases.items():
        with receiving(context) as receiver:
            endpoint = house.endpoint(receiver.url)
            entry = house.delivery(endpoint["id"], house.ended_job(), "failed")
            assert all(one["error"].startswith("TLS: ") for one in entry["attempts"]), name
            assert receiver.received == []
            house.client.delete(f"/v1/webhook-endpoints/{endpoint['id']}")
    with receiving() as plain:  # speaks no TLS at all
        endpoint = house.endpoint(plain.url.replace("http:", "https:"))
        entry = house.delivery(endpoint["id"], house.ended_job(), "failed")
        assert all(one["status"] is None for one in entry["attempts"])
        house.client.delete(f"/v1/webhook-endpoints/{endpoint['id']}")


def test_nobody_there_is_no_delivery(house: House) -> None:
    with receiving() as gone:
        url = gone.url
    endpoint = house.endpoint(url)
    entry = house.delivery(endpoint["id"], house.ended_job(), "failed")
    assert [one["error"] for one in entry["attempts"]] == ["no answer: ConnectError"] * 3
    house.client.delete(f"/v1/webhook-endpoints/{endpoint['id']}")


def test_a_slow_receiver_holds_up_nobody_else(house: House) -> None:
    slow, quick = house.endpoint(f"{house.plain.url}/slow"), house.endpoint(house.plain.url + "/q")
    start = time.monotonic()
    jobs = [house.ended_job() for _ in range(PER_TARGET * 3)]
    assert time.monotonic() - start < 15  # a worker's transition waits for no receiver
    for job in jobs:
        house.delivery(quick["id"], job, "delivered")
    unsettled = house.client.get(f"/v1/webhook-endpoints/{slow['id']}/deliveries").json()["items"]
    assert any(entry["state"] == "pending" for entry in unsettled)
    for one in (slow, quick):
        house.client.delete(f"/v1/webhook-endpoints/{one['id']}")


def test_names_that_hang_hold_up_their_owner_alone(
    make_settings: Callable[..., GatewaySettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, answered, lock = socket.getaddrinfo, threading.Event(), threading.Lock()
    hanging, most = 0, 0

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal hanging, most
        if not str(host).endswith(".invalid"):
            return look_up(host, *arguments, **options)
        with lock:
            hanging += 1
            most = max(most, hanging)
        answered.wait(60)
        with lock:
            hanging -= 1
        raise socket.gaierror

    settings = make_settings(
        webhook_allow_insecure=True, webhook_timeout_s=0.3, webhook_retry_after_s=(0, 0, 0)
    )
    redis, stop = connect(settings), threading.Event()
    records, endpoints = RecordStore(redis, settings), EndpointStore(redis, settings)

    def end_a_job(owner: str) -> None:
        records.request_cancel(records.create(a_request(), owner=owner).id)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    sender = threading.Thread(target=run_forever, args=(settings, stop))
    with receiving() as receiver:
        for number in range(12):
            endpoints.create("hanging", f"http://{number}.invalid/")
        endpoints.create("quick", receiver.url)
        for _ in range(PER_TARGET):
            end_a_job("hanging")
        sender.start()
        try:
            for told in range(3):  # the last ones when every look-up was given up long ago
                end_a_job("quick")
                deadline = time.monotonic() + 10
                while len(receiver.received) <= told:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                time.sleep(1)
            assert most == PER_OWNER
        finally:
            stop.set()
            sender.join(20)
            stopped = not sender.is_alive()
            answered.set()
            sender.join()
            redis.close()
        assert stopped


def test_fan_out_and_claims_are_safe_to_repeat(
    make_settings: Callable[..., GatewaySettings],
) -> None:
    """What a crash between delivering and forgetting an entry does, without a sender's thread."""
    settings = make_settings()
    redis = connect(settings)
    records, outbox = RecordStore(redis, settings), Outbox(redis, settings)
    quiet = records.create(a_request()).id
    records.request_cancel(quiet)
    assert outbox.fan_out() == 0  # nobody wants to be told
    job = records.create(a_request(), webhook_url="https://example.org/x").id
    records.request_cancel(job)
    stream = f"{settings.redis_prefix}:outbox"
    (entry,) = redis.xrange(stream)
    assert outbox.fan_out() == 1
    redis.xadd(stream, entry[1])
    assert outbox.fan_out() == 1
    (delivery,) = outbox.due()
    assert outbox.claim(delivery.id, lease_s=1.5)
    assert not outbox.claim(delivery.id, lease_s=1.5)
    assert list(outbox.due()) == []
    time.sleep(1.6)  # its sender has died
    assert outbox.claim(delivery.id, lease_s=30)
    redis.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "ftp://example.org/",
        "https://user:pw@example.org/",
        "https:///path",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest/meta-data",
        "https://10.1.2.3/",
        "https://[fe80::1]/",
        "https://[64:ff9b::a00:1]/",
        "https://0.0.0.0/",
        "https://example.org/#part",
        "https://exa mple.org/",
        "https://example.org:x/",
        "https://example.org/" + "x" * 2000,
        "not a url",
        "",
    ],
)
def test_where_no_webhook_may_go(client: httpx.Client, url: str) -> None:
    with pytest.raises(ForbiddenTarget):
        check_url(url, allow_insecure=False)
    problem(client.post("/v1/webhook-endpoints", json={"url": url}), 422, "invalid_request")
    body = {"prompt": "a", "webhook_url": url}
    problem(client.post("/v1/generations", json=body), 422, "invalid_request")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("1.1.1.1", True),
        ("2606:4700::1111", True),
        ("100.64.0.1", False),
        ("192.168.0.1", False),
        ("224.0.0.1", False),
        ("2002:0a00:0001::", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:1.1.1.1", True),
        ("fec0::1", False),
        ("::7f00:1", False),
        ("64:ff9b::101:101", False),
        ("64:ff9b:1::7f00:1", False),
        ("5f00::1", False),
        ("3ffe::1", True),
        ("3fff::1", False),
        ("3fff:fff::1", False),
        ("3fff:1000::1", True),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_a_name_for_a_private_address_is_refused_when_it_is_sent(
    make_settings: Callable[..., GatewaySettings],
) -> None:
    settings = make_settings(webhook_retry_after_s=(0,))
    stop, redis = threading.Event(), connect(settings)
    sender = threading.Thread(target=run_forever, args=(settings, stop))
    with receiving() as receiver, serving(settings) as client:
        url = receiver.url.replace("http:", "https:")  # localhost: a name, so it passes till then
        endpoint = client.post("/v1/webhook-endpoints", json={"url": url}).json()
        house = House(
            client,
            settings,
            RecordStore(redis, settings),
            Outbox(redis, settings),
            receiver,
            receiver,
        )
        sender.start()
        entry = house.delivery(endpoint["id"], house.ended_job(), "failed")
        assert "not public" in entry["attempts"][0]["error"]
        assert receiver.received == []
        stop.set()
        sender.join()
    redis.close()


def test_endpoints_are_their_owner_s_and_bounded(
    make_settings: Callable[..., GatewaySettings],
) -> None:
    from jobs.api_keys import ApiKeyStore

    settings = make_settings(auth="keys")
    redis = connect(settings)
    keys = ApiKeyStore(redis, settings)
    mine, theirs = (
        {"Authorization": f"Bearer {keys.create('x')[1].get_secret_value()}"} for _ in range(2)
    )
    with serving(settings) as client:
        path, body = "/v1/webhook-endpoints", {"url": "https://example.org/"}
        made = client.post(path, json=body, headers=mine).json()
        one = f"{path}/{made['id']}"
        assert client.get(path, headers=theirs).json()["items"] == []
        for method, where in [("GET", one), ("DELETE", one), ("POST", f"{one}/rotate-secret")]:
            problem(client.request(method, where, headers=theirs), 404, "not_found")
        problem(client.delete(f"{path}/inline", headers=mine), 404, "not_found")
        problem(client.get(f"{one}/deliveries/x", headers=mine), 404, "not_found")
        redelivered = client.post(f"{one}/deliveries/whd_0/redeliver", headers=mine)
        problem(redelivered, 404, "not_found")
        for _ in range(MAX_ENDPOINTS - 1):
            assert client.post(path, json=body, headers=mine).status_code == 201
        problem(client.post(path, json=body, headers=mine), 409, "state_conflict")
        listed = client.get(path, headers=mine).json()["items"]
        assert len(listed) == MAX_ENDPOINTS
        assert "secrets" not in listed[0]
    redis.close()
