"""Where an owner wants to be told: webhook endpoints, their secrets, and how long each signs.

Secrets must be at hand to sign with, so unlike API keys they are kept as they are, in Redis. The
endpoint `inline` always exists: it signs for URLs that are given with a request.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import cast

import redis
from pydantic import BaseModel, ConfigDict, Field

from jobs.connection import redis_errors
from jobs.errors import EndpointNotFound, TooManyEndpoints
from jobs.keys import endpoints_key
from jobs.settings import CoreSettings

INLINE = "inline"
MAX_ENDPOINTS = 20
OVERLAP = timedelta(hours=24)
"""How long a secret signs, beside its successor, after it was rotated."""


class WebhookSecret(BaseModel):
    """``whsec_`` and 24 random bytes in base64; see Standard Webhooks."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: str = Field(repr=False)
    until: datetime | None = Field(None, description="when it ceases to sign; null: the current")

    @classmethod
    def generate(cls) -> WebhookSecret:
        """A new one."""
        return cls(value="whsec_" + base64.b64encode(secrets.token_bytes(24)).decode())


class Endpoint(BaseModel):
    """One place to be told, as it is kept; times are UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    url: str = Field(repr=False, description="may hold a secret of the receiver's; empty: inline")
    description: str = ""
    events: tuple[str, ...] = Field((), description="types to send; empty: all")
    secrets: tuple[WebhookSecret, ...] = Field(min_length=1, description="newest first")
    created_at: datetime
    disabled_reason: str | None = None

    def wants(self, event_type: str) -> bool:
        """Whether to tell it of such an event."""
        return self.disabled_reason is None and (not self.events or event_type in self.events)

    def signing_secrets(self, now: datetime) -> Sequence[str]:
        """Those that sign now, newest first."""
        return [one.value for one in self.secrets if one.until is None or one.until > now]


class EndpointStore:
    """The endpoints of all owners: a hash each, so that a transition can ask whether there are any.

    Every method raises `QueueUnavailable` when Redis does not answer.
    """

    def __init__(self, client: redis.Redis, settings: CoreSettings) -> None:
        self._redis = client
        self._settings = settings
        self._add = client.register_script(_ADD)
        self._replace = client.register_script(_REPLACE)

    def create(
        self, owner: str, url: str, events: Sequence[str] = (), description: str = ""
    ) -> Endpoint:
        """A new endpoint with a secret of its own.

        Raises:
            TooManyEndpoints: the owner has as many as one may.
        """
        endpoint = Endpoint(
            id=f"whe_{secrets.token_hex(12)}",
            url=url,
            description=description,
            events=tuple(events),
            secrets=(WebhookSecret.generate(),),
            created_at=datetime.now(UTC),
        )
        text = endpoint.model_dump_json()
        with redis_errors():
            keys = [self._key(owner)]
            added = self._add(keys=keys, args=[endpoint.id, text, INLINE, MAX_ENDPOINTS])
        if not added:
            raise TooManyEndpoints(f"there are {MAX_ENDPOINTS} webhook endpoints; delete one")
        return endpoint

    def list(self, owner: str) -> Sequence[Endpoint]:
        """The owner's endpoints, oldest first, without `inline`."""
        with redis_errors():
            found = cast("dict[str, str]", self._redis.hgetall(self._key(owner)))
        endpoints = [Endpoint.model_validate_json(text) for text in found.values()]
        registered = [endpoint for endpoint in endpoints if endpoint.id != INLINE]
        return sorted(registered, key=lambda endpoint: endpoint.created_at)

    def get(self, owner: str, endpoint_id: str) -> Endpoint:
        """One of the owner's.

        Raises:
            EndpointNotFound: there is none of that id, or it is another's.
        """
        return Endpoint.model_validate_json(self._read(owner, endpoint_id))

    def change(
        self, owner: str, endpoint_id: str, changed: Callable[[Endpoint], Endpoint]
    ) -> Endpoint:
        """What `changed` makes of it; asked again where another change came in between.

        Raises:
            EndpointNotFound: there is none of that id, or it is another's.
        """
        while True:
            before = self._read(owner, endpoint_id)
            after = changed(Endpoint.model_validate_json(before))
            arguments = [endpoint_id, before, after.model_dump_json()]
            with redis_errors():
                if self._replace(keys=[self._key(owner)], args=arguments):
                    return after

    def rotate(self, owner: str, endpoint_id: str) -> Endpoint:
        """Sign with a new secret, and with the one before it for another day.

        Raises:
            EndpointNotFound: there is none of that id, or it is another's.
        """
        return self.change(owner, endpoint_id, _rotated)

    def disable(self, owner: str, endpoint_id: str, reason: str) -> None:
        """Tell it nothing more until it is enabled again; one that is gone stays gone."""
        changes = {"disabled_reason": reason}
        with suppress(EndpointNotFound):
            self.change(owner, endpoint_id, lambda one: one.model_copy(update=changes))

    def delete(self, owner: str, endpoint_id: str) -> None:
        """Forget it; what is not yet delivered to it will not be.

        Raises:
            EndpointNotFound: there is none of that id, or it is another's, or it is `inline`.
        """
        with redis_errors():
            if endpoint_id == INLINE or not self._redis.hdel(self._key(owner), endpoint_id):
                raise EndpointNotFound(f"no webhook endpoint {endpoint_id!r} that can be deleted")

    def _read(self, owner: str, endpoint_id: str) -> str:
        """One of the owner's as it is kept; `inline` is made where there is none."""
        with redis_errors():
            text = cast("str | None", self._redis.hget(self._key(owner), endpoint_id))
        if text is not None:
            return text
        if endpoint_id != INLINE:
            raise EndpointNotFound(f"no webhook endpoint {endpoint_id!r}")
        made = Endpoint(
            id=INLINE, url="", secrets=(WebhookSecret.generate(),), created_at=datetime.now(UTC)
        )
        with redis_errors():
            self._redis.hsetnx(self._key(owner), INLINE, made.model_dump_json())
        return self._read(owner, INLINE)  # the one that came first

    def _key(self, owner: str) -> str:
        return endpoints_key(self._settings, owner)


def _rotated(endpoint: Endpoint) -> Endpoint:
    now = datetime.now(UTC)
    before = endpoint.secrets[0].model_copy(update={"until": now + OVERLAP})
    older = [one for one in endpoint.secrets[1:] if one.until and one.until > now]
    rotated = (WebhookSecret.generate(), before, *older[:3])
    return endpoint.model_copy(update={"secrets": rotated})


# Either may be sent twice: what already is as it should be is no refusal.
_ADD = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 1 end
local registered = redis.call('HLEN', KEYS[1]) - redis.call('HEXISTS', KEYS[1], ARGV[3])
if registered >= tonumber(ARGV[4]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""

_REPLACE = """
local found = redis.call('HGET', KEYS[1], ARGV[1])
if found ~= ARGV[2] and found ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""
