"""API keys: who gets in, and that one caller never sees what is another's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest

from jobs.api_keys import ApiKeyStore
from jobs.connection import connect
from jobs.keys import api_key_key, expiring_key, record_key
from jobs.reconciler import Reconciler
from jobs.record import Failure, FailureCode, RecordStore
from service.auth import Exposed, check_exposure
from service.settings import GatewaySettings
from tests.jobs.samples import a_request
from tests.service.conftest import image_bytes, problem, serving, upload


@dataclass(frozen=True)
class Guarded:
    """A gateway that asks for keys."""

    client: httpx.Client
    keys: ApiKeyStore
    settings: GatewaySettings
    records: RecordStore

    def caller(self, name: str = "a test", owner: str | None = None) -> dict[str, str]:
        """A new key's header."""
        _, token = self.keys.create(name, owner)
        return {"Authorization": f"Bearer {token.get_secret_value()}"}


@pytest.fixture(scope="module")
def guarded(make_settings: Callable[..., GatewaySettings]) -> Iterator[Guarded]:
    settings = make_settings(auth="keys")
    redis = connect(settings)
    with serving(settings) as client:
        yield Guarded(client, ApiKeyStore(redis, settings), settings, RecordStore(redis, settings))
    redis.close()


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer rdo_0123456789abcdef_" + "x" * 43,
        "Bearer rdo_0123456789abcdef_short",
        "Basic cmRvOnJkbw==",
        "Bearer \u00fc".encode(),
    ],
)
def test_without_a_valid_key_nothing_is_told(guarded: Guarded, header: str | bytes | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for method, path in [
        ("GET", "/v1/models"),
        ("POST", "/v1/generations"),
        ("POST", "/v1/uploads"),
        ("GET", "/v1/generations/gen_" + "0" * 24),
        ("GET", "/v1/nowhere"),
    ]:
        answer = guarded.client.request(method, path, headers=headers)
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith('Bearer realm="readout"')


def test_health_metrics_and_the_description_need_no_key(guarded: Guarded) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/openapi.json"):
        assert guarded.client.get(path).status_code == 200


def test_a_revoked_key_is_refused_at_once(guarded: Guarded) -> None:
    key, token = guarded.keys.create("short-lived")
    headers = {"authorization": f"bearer {token.get_secret_value()}"}  # the scheme has no case
    assert guarded.client.get("/v1/models", headers=headers).status_code == 200
    guarded.keys.revoke(key.id)
    refused = guarded.client.get("/v1/models", headers=headers)
    assert 'error="invalid_token"' in refused.headers["www-authenticate"]
    problem(refused, 401, "unauthorized")


def test_the_secret_of_one_key_does_not_open_another(guarded: Guarded) -> None:
    (first, _), (_, token) = guarded.keys.create("one"), guarded.keys.create("two")
    secret = token.get_secret_value().split("_", 2)[2]
    mixed = {"Authorization": f"Bearer rdo_{first.id}_{secret}"}
    problem(guarded.client.get("/v1/models", headers=mixed), 401, "unauthorized")


def test_one_caller_never_sees_what_is_another_s(guarded: Guarded) -> None:
    mine, theirs, client = guarded.caller(), guarded.caller(), guarded.client
    body = {"prompt": "a"}
    created = client.post("/v1/generations", json=body, headers=mine).json()["id"]
    path = f"/v1/generations/{created}"
    assert client.get(path, headers=mine).status_code == 200
    problem(client.get(path, headers=theirs), 404, "not_found")
    problem(client.post(f"{path}/cancel", headers=theirs), 404, "not_found")
    assert client.get(path, headers=mine).json()["state"] == "queued"
    listed = client.get("/v1/generations", headers=mine).json()["items"]
    assert [item["id"] for item in listed] == [created]
    for query in ("", "?state=queued"):
        assert client.get(f"/v1/generations{query}", headers=theirs).json()["items"] == []


def test_another_s_upload_does_not_exist(guarded: Guarded) -> None:
    mine, theirs, client = guarded.caller(), guarded.caller(), guarded.client
    files = {"file": ("a.png", image_bytes())}
    image = {"upload_id": client.post("/v1/uploads", files=files, headers=mine).json()["id"]}
    body = {"prompt": "", "controls": [{"type": "spatial", "head": "pose", "image": image}]}
    assert client.post("/v1/generations", json=body, headers=mine).status_code == 202
    problem(client.post("/v1/generations", json=body, headers=theirs), 422, "unknown_upload")


def test_a_second_key_of_an_owner_sees_what_the_first_made(guarded: Guarded) -> None:
    first, second = guarded.caller(owner="team-a"), guarded.caller(owner="team-a")
    created = guarded.client.post("/v1/generations", json={"prompt": "a"}, headers=first)
    path = created.headers["location"]
    assert guarded.client.get(path, headers=second).status_code == 200
    for state in ("canceled", None):
        canceled = guarded.client.post(f"{path}/cancel", headers=second)
        assert canceled.json()["state"] == "canceled"
        query = {"state": state} if state else {}
        listed = guarded.client.get("/v1/generations", params=query, headers=first).json()
        assert [item["id"] for item in listed["items"]] == [created.json()["id"]]


def test_an_expired_id_is_gone_for_its_owner_and_unknown_to_others(guarded: Guarded) -> None:
    mine, theirs, client = guarded.caller(owner="forgetful"), guarded.caller(), guarded.client
    record = guarded.records.create(a_request(), owner="forgetful")
    attempt = guarded.records.start(record.id, "w")
    guarded.records.fail(record.id, attempt, Failure(code=FailureCode.INTERNAL, message="x"))
    redis = connect(guarded.settings)
    redis.delete(record_key(guarded.settings, record.id))
    redis.close()
    path = f"/v1/generations/{record.id}"
    problem(client.get(path, headers=mine), 410, "gone")
    problem(client.post(f"{path}/cancel", headers=mine), 410, "gone")
    problem(client.get(path, headers=theirs), 404, "not_found")


def test_a_token_is_kept_and_logged_nowhere(
    guarded: Guarded, capsys: pytest.CaptureFixture[str]
) -> None:
    key, token = guarded.keys.create("quiet")
    secret = token.get_secret_value()
    headers = {"Authorization": f"Bearer {secret}"}
    guarded.client.post("/v1/generations", json={"prompt": "a"}, headers=headers)
    guarded.client.post("/v1/generations", content=b"{", headers=headers)
    guarded.client.get("/v1/models", headers={"Authorization": f"Bearer {secret}x"})
    printed = capsys.readouterr().out
    assert key.id in printed
    assert secret.split("_", 2)[2] not in printed
    redis = connect(guarded.settings)
    kept = redis.hgetall(api_key_key(guarded.settings, key.id))
    redis.close()
    assert secret.split("_", 2)[2] not in str(kept)
    assert set(kept) == {"id", "owner", "name", "created_at", "sha256"}


def test_without_keys_everybody_is_local(client: httpx.Client, records: RecordStore) -> None:
    created = client.post("/v1/generations", json={"prompt": "a"}).json()["id"]
    assert records.get(created).owner == "local"
    assert upload(client)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_without_keys_it_listens_on_loopback(
    make_settings: Callable[..., GatewaySettings], host: str
) -> None:
    check_exposure(make_settings(auth="none"), host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])
def test_without_keys_it_listens_nowhere_else_unless_told(
    make_settings: Callable[..., GatewaySettings], host: str
) -> None:
    with pytest.raises(Exposed, match="readout keys create"):
        check_exposure(make_settings(auth="none"), host)
    for auth in ("keys", "none-anywhere"):
        check_exposure(make_settings(auth=auth), host)


def test_trimming_empties_the_owner_s_indices(guarded: Guarded) -> None:
    from jobs.queue import JobQueue
    from jobs.store import ObjectStore

    caller = guarded.caller(owner="tidy")
    record = guarded.records.create(a_request(), owner="tidy")
    guarded.records.request_cancel(record.id, "tidy")
    redis, queue = connect(guarded.settings), JobQueue(guarded.settings)
    store = ObjectStore(guarded.settings)
    prefix = guarded.settings.redis_prefix
    redis.zadd(expiring_key(guarded.settings), {record.id: 0})  # as if its time had passed
    redis.delete(record_key(guarded.settings, record.id))
    Reconciler(guarded.settings, redis, queue, store).reconcile_once()
    assert not list(redis.keys(f"{prefix}:index:*:tidy"))
    assert guarded.client.get("/v1/generations", headers=caller).json()["items"] == []
    for connection in (redis, queue, store):
        connection.close()
