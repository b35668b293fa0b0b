"""One key, one generation: repeated, concurrent, of different callers, across crashes."""

from __future__ import annotations

import base64
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from jobs.api_keys import ApiKeyStore
from jobs.connection import connect
from jobs.errors import AlreadyMade, KeyInFlight, KeyReused
from jobs.idempotency import CLAIM_S, IdempotencyClaims, IdempotencyKey
from jobs.keys import record_key
from jobs.record import JobState, QueueFull, RecordStore
from service.settings import GatewaySettings
from tests.jobs.samples import a_request
from tests.servers import environment_of
from tests.service.conftest import image_bytes, problem, serving

BODY = {"prompt": "a person", "num_images": 2}


def key() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(8)}


def post(client: httpx.Client, headers: dict[str, str], body: Any = BODY) -> httpx.Response:
    return client.post("/v1/generations", json=body, headers=headers)


def test_a_repetition_gets_the_first_answer_whatever_happened_since(
    client: httpx.Client, records: RecordStore
) -> None:
    headers = key()
    first = post(client, headers)
    assert first.status_code == 202
    assert "idempotency-replayed" not in first.headers
    records.start(first.json()["id"], "worker-1")
    records.request_cancel(first.json()["id"])
    quoted = {"Idempotency-Key": f'"{headers["Idempotency-Key"]}"'}
    for again in (post(client, headers), post(client, quoted)):
        assert (again.status_code, again.content) == (202, first.content)
        assert again.headers["location"] == first.headers["location"]
        assert again.headers["idempotency-replayed"] == "true"


def test_white_space_and_order_do_not_make_another_body(client: httpx.Client) -> None:
    headers = key() | {"Content-Type": "application/json"}
    first = post(client, headers, {"prompt": "a", "seed": 3})
    text = b'{ "seed": 3,\n "prompt": "a" }'
    again = client.post("/v1/generations", content=text, headers=headers)
    assert again.json()["id"] == first.json()["id"]


def test_another_body_is_refused(client: httpx.Client) -> None:
    headers = key()
    post(client, headers)
    again = post(client, headers, BODY | {"seed": 1})
    problem(again, 422, "idempotency_key_reused")


def test_a_refused_request_leaves_its_key_free(client: httpx.Client) -> None:
    headers = key()
    wrong = BODY | {"controls": [{"type": "spatial", "head": "nose", "image": {"upload_id": "x"}}]}
    problem(post(client, headers, wrong), 422, "unknown_head")
    assert post(client, headers).status_code == 202


@pytest.mark.parametrize("hostile", ["", '""', "a b", "x" * 256, "\u00fc".encode(), "a\tb"])
def test_what_cannot_be_a_key_is_refused(client: httpx.Client, hostile: str | bytes) -> None:
    answer = post(client, {"Idempotency-Key": hostile})  # type: ignore[dict-item]
    found = problem(answer, 422, "invalid_request")
    assert found["errors"][0]["parameter"] == "Idempotency-Key"


def test_keys_are_their_owner_s(make_settings: Callable[..., GatewaySettings]) -> None:
    settings, headers = make_settings(auth="keys"), key()
    redis = connect(settings)
    tokens = [ApiKeyStore(redis, settings).create("x")[1].get_secret_value() for _ in range(2)]
    with serving(settings) as client:
        made = [
            post(client, headers | {"Authorization": f"Bearer {token}"}).json()["id"]
            for token in tokens
        ]
    assert made[0] != made[1]
    redis.close()


def test_a_hundred_at_once_make_one(client: httpx.Client) -> None:
    """Each either made it, or is told to wait, and gets it then."""
    for _ in range(2):
        headers = key()
        statuses: Counter[int] = Counter()

        def create(_: int, headers: dict[str, str] = headers) -> str:
            while True:
                answer = post(client, headers)
                statuses[answer.status_code] += 1  # noqa: B023
                if answer.status_code == 202:
                    return str(answer.json()["id"])
                problem(answer, 409, "idempotency_in_flight")
                assert int(answer.headers["retry-after"]) >= 1
                time.sleep(0.02)

        with ThreadPoolExecutor(25) as pool:
            made = set(pool.map(create, range(100)))
        assert len(made) == 1
        assert statuses[202] == 100
        assert set(statuses) <= {202, 409}


def test_while_the_first_is_at_work_the_second_is_told_so(
    client: httpx.Client, settings: GatewaySettings
) -> None:
    """The claim is held as by a request that is still reading its images."""
    redis, headers = connect(settings), key()
    probe = post(client, headers)  # to learn the fingerprint of the body
    entries = list(redis.scan_iter(f"{settings.redis_prefix}:idempotency:*"))
    mine = next(name for name in entries if redis.hget(name, "id") == probe.json()["id"])
    redis.hdel(mine, "id")
    redis.hset(mine, "token", "another's")
    problem(post(client, headers), 409, "idempotency_in_flight")
    problem(post(client, headers, BODY | {"seed": 1}), 422, "idempotency_key_reused")
    redis.delete(mine)  # what CLAIM_S does to the claim of one that died
    assert post(client, headers).status_code == 202
    redis.close()


def test_a_replay_whose_generation_has_expired_is_gone_not_doubled(
    client: httpx.Client, records: RecordStore, settings: GatewaySettings
) -> None:
    headers = key()
    made = post(client, headers).json()["id"]
    records.request_cancel(made)
    redis = connect(settings)
    redis.delete(record_key(settings, made))
    redis.close()
    problem(post(client, headers), 410, "gone")


@pytest.fixture
def claims(settings: GatewaySettings) -> Iterator[IdempotencyClaims]:
    redis = connect(settings)
    yield IdempotencyClaims(redis, settings)
    redis.close()


def a_key(fingerprint: str = "f", text: str | None = None) -> IdempotencyKey:
    return IdempotencyKey("local", "POST /x", text or secrets.token_hex(4), fingerprint)


def test_a_claim_that_lapsed_does_not_let_two_be_made(
    claims: IdempotencyClaims, records: RecordStore
) -> None:
    """The slow first one arrives after the second has made the job."""
    slow, quick = a_key(text="k"), a_key(text="k")
    claims.claim(slow)
    with pytest.raises(KeyInFlight):
        claims.claim(quick)
    claims.release(slow)  # as its lapse
    claims.claim(quick)
    made = records.create(a_request(), idempotency=quick)
    with pytest.raises(AlreadyMade) as caught:
        records.create(a_request(), idempotency=slow)
    assert caught.value.made == made.id
    claims.release(slow)
    with pytest.raises(AlreadyMade):
        claims.claim(a_key(text="k"))
    with pytest.raises(KeyReused):
        records.create(a_request(), idempotency=a_key("other", text="k"))


def test_a_full_service_keeps_no_key(
    make_settings: Callable[..., GatewaySettings],
) -> None:
    settings = make_settings(max_queued=1)
    redis = connect(settings)
    records, first = RecordStore(redis, settings), a_key()
    made = records.create(a_request(), idempotency=first)
    second = a_key()
    with pytest.raises(QueueFull):
        records.create(a_request(), idempotency=second)
    with pytest.raises(AlreadyMade):  # a replay is no new job: it is answered even when full
        records.create(a_request(), idempotency=first)
    records.request_cancel(made.id)
    assert records.create(a_request(), idempotency=second).id != made.id
    assert 0 < redis.ttl(second.name(settings)) <= settings.idempotency_ttl_s
    redis.close()


def test_claims_lapse(claims: IdempotencyClaims, settings: GatewaySettings) -> None:
    held = a_key()
    claims.claim(held)
    redis = connect(settings)
    assert 0 < redis.ttl(held.name(settings)) <= CLAIM_S
    redis.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "no gateway listens"
            time.sleep(0.05)
        else:
            return


@pytest.mark.slow
def test_one_job_each_across_kills_of_the_gateway(
    make_settings: Callable[..., GatewaySettings],
) -> None:
    """Clients send until they are answered; the gateway dies by -9 in the middle of it."""
    settings, port = make_settings(), free_port()
    changes = {"AUTH": "none", "DEFAULT_MODEL": "tiny"}
    environment = environment_of(settings, **changes)
    command = [sys.executable, "-P", "-m", "cli", "gateway", "--port", str(port)]
    keys = [secrets.token_hex(8) for _ in range(20)]
    image = {"base64": base64.b64encode(image_bytes()).decode()}
    body = {"prompt": "", "controls": [{"type": "spatial", "head": "depth", "image": image}]}
    done: dict[str, set[str]] = {name: set() for name in keys}
    first_answer = threading.Event()

    def insist(name: str) -> None:
        deadline = time.monotonic() + 200
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            while len(done[name]) < 1 and time.monotonic() < deadline:
                try:
                    answer = post(client, {"Idempotency-Key": name}, body)
                except httpx.TransportError:
                    time.sleep(0.3)
                    continue
                if answer.status_code == 202:
                    done[name].add(answer.json()["id"])
                    first_answer.set()
                else:
                    assert answer.status_code in (409, 503), answer.text
                    time.sleep(0.3)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    gateway = start()
    try:
        wait_for_port(port)
        with ThreadPoolExecutor(len(keys)) as pool:
            futures = [pool.submit(insist, name) for name in keys * 2]
            assert first_answer.wait(120)
            gateway.send_signal(signal.SIGKILL)
            gateway.wait()
            gateway = start()
            for future in futures:
                future.result()
    finally:
        gateway.kill()
        gateway.wait()
    made = list(done.values())
    assert all(len(ids) == 1 for ids in made), done
    redis = connect(settings)
    records = RecordStore(redis, settings)
    assert set(records.active(JobState.QUEUED)) == set().union(*made)
    redis.close()
