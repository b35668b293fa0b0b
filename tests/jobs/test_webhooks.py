"""Changes of a webhook endpoint that meet in between another's reading and writing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import redis

from jobs.connection import connect
from jobs.errors import EndpointNotFound, TooManyEndpoints
from jobs.settings import CoreSettings
from jobs.webhooks import INLINE, MAX_ENDPOINTS, EndpointStore

URL = "https://example.org/"


@pytest.fixture
def endpoints(client: redis.Redis, core_settings: CoreSettings) -> EndpointStore:
    return EndpointStore(client, core_settings)


@pytest.fixture
def meanwhile(
    client: redis.Redis, core_settings: CoreSettings, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[EndpointStore], object]], None]:
    """Do something through another client right after the next read of `endpoints`."""

    def arrange(action: Callable[[EndpointStore], object]) -> None:
        read = client.hget

        def hget(*arguments: Any) -> Any:
            found = read(*arguments)
            monkeypatch.setattr(client, "hget", read)
            with connect(core_settings) as other:
                action(EndpointStore(other, core_settings))
            return found

        monkeypatch.setattr(client, "hget", hget)

    return arrange


@pytest.mark.parametrize("inline", [False, True])
def test_two_rotations_keep_both_new_secrets(
    endpoints: EndpointStore, meanwhile: Callable[..., None], inline: bool
) -> None:
    made = endpoints.get("o", INLINE) if inline else endpoints.create("o", URL)
    between = []
    meanwhile(lambda other: between.append(other.rotate("o", made.id)))
    rotated = endpoints.rotate("o", made.id)
    values = [secret.value for secret in rotated.secrets]
    assert values[1:] == [secret.value for secret in between[0].secrets]
    assert endpoints.get("o", made.id) == rotated


def test_disabling_keeps_a_rotation(
    endpoints: EndpointStore, meanwhile: Callable[..., None]
) -> None:
    made = endpoints.create("o", URL)
    meanwhile(lambda other: other.rotate("o", made.id))
    endpoints.disable("o", made.id, "gone")
    found = endpoints.get("o", made.id)
    assert (found.disabled_reason, len(found.secrets)) == ("gone", 2)


def test_an_endpoint_that_is_deleted_meanwhile_stays_gone(
    endpoints: EndpointStore, meanwhile: Callable[..., None]
) -> None:
    disabled, rotated = endpoints.create("o", URL), endpoints.create("o", URL)
    meanwhile(lambda other: other.delete("o", disabled.id))
    endpoints.disable("o", disabled.id, "gone")
    meanwhile(lambda other: other.delete("o", rotated.id))
    with pytest.raises(EndpointNotFound):
        endpoints.rotate("o", rotated.id)
    assert endpoints.list("o") == []


def test_no_more_are_created_at_once_than_one_may_have(
    endpoints: EndpointStore,
) -> None:
    endpoints.get("o", INLINE)  # does not count
    barrier = Barrier(16)

    def create(_: int) -> bool:
        barrier.wait(30)
        try:
            endpoints.create("o", URL)
        except TooManyEndpoints:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        made = sum(threads.map(create, range(32)))
    assert made == len(endpoints.list("o")) == MAX_ENDPOINTS


def test_what_is_sent_twice_is_done_once(
    client: redis.Redis, endpoints: EndpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a lost answer: the client sends a command again."""
    first = endpoints.create("o", URL)
    send = client.evalsha

    def evalsha(*arguments: Any) -> Any:
        send(*arguments)
        return send(*arguments)

    monkeypatch.setattr(client, "evalsha", evalsha)
    for _ in range(MAX_ENDPOINTS - 1):
        endpoints.create("o", URL)
    assert len(endpoints.list("o")) == MAX_ENDPOINTS
    assert len(endpoints.rotate("o", first.id).secrets) == 2
