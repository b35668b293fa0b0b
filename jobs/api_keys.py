"""API keys: who may call, and whose the jobs are; only a hash of each is kept.

A token is ``rdo_{id}_{secret}`` with 256 random bits in the secret, so one round of SHA-256 is
enough: there is no dictionary to try. The key's *owner* owns what it creates; a second key for the
same owner is how a key is replaced without losing sight of its jobs.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import redis
from pydantic import BaseModel, ConfigDict, SecretStr

from jobs.connection import redis_errors
from jobs.errors import ApiKeyNotFound
from jobs.keys import api_key_key, api_keys_key
from jobs.settings import CoreSettings

OWNER_PATTERN = re.compile(r"[a-z0-9_-]{1,40}")
_TOKEN = re.compile(r"rdo_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")


class ApiKey(BaseModel):
    """A key as it is kept; times are UTC."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    id: str
    owner: str
    name: str
    created_at: datetime
    revoked_at: datetime | None = None


class ApiKeyStore:
    """Makes, lists and revokes keys."""

    def __init__(self, client: redis.Redis, settings: CoreSettings) -> None:
        self._redis = client
        self._settings = settings

    def create(self, name: str, owner: str | None = None) -> tuple[ApiKey, SecretStr]:
        """A new key and its token, which is shown now and never again.

        Args:
            name: for people, such as the program that uses it.
            owner: whose jobs it sees; None: nobody's yet, an owner of its own.

        Raises:
            ValueError: the owner's name has other characters than a-z, 0-9, _ and -.
            QueueUnavailable: Redis does not answer.
        """
        key_id = secrets.token_hex(8)
        owner = key_id if owner is None else owner
        if not OWNER_PATTERN.fullmatch(owner):
            raise ValueError(f"owner {owner!r}: use 1 to 40 of a-z, 0-9, _ and -")
        token = f"rdo_{key_id}_{secrets.token_urlsafe(32)}"
        key = ApiKey(id=key_id, owner=owner, name=name, created_at=datetime.now(UTC))
        fields: dict[Any, Any] = key.model_dump(mode="json", exclude_none=True)
        fields["sha256"] = _sha256(token)
        with redis_errors(), self._redis.pipeline() as pipeline:
            pipeline.hset(api_key_key(self._settings, key_id), mapping=fields)
            pipeline.sadd(api_keys_key(self._settings), key_id)
            pipeline.execute()
        return key, SecretStr(token)

    def list(self) -> Sequence[ApiKey]:
        """Every key, revoked ones too, oldest first.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with redis_errors(), self._redis.pipeline(transaction=False) as pipeline:
            for key_id in cast("set[str]", self._redis.smembers(api_keys_key(self._settings))):
                pipeline.hgetall(api_key_key(self._settings, key_id))
            found = [ApiKey.model_validate(fields) for fields in pipeline.execute() if fields]
        return sorted(found, key=lambda key: key.created_at)

    def revoke(self, key_id: str) -> None:
        """Refuse the key from the next request on; its jobs go on. Again: changes nothing.

        Raises:
            ApiKeyNotFound: there is no key of that id.
            QueueUnavailable: Redis does not answer.
        """
        key = api_key_key(self._settings, key_id)
        with redis_errors():
            if not self._redis.exists(key):
                raise ApiKeyNotFound(f"no API key {key_id!r}; see `readout keys list`")
            self._redis.hsetnx(key, "revoked_at", datetime.now(UTC).isoformat())


def key_id_of(token: str) -> str | None:
    """The id inside a token; None: this is no token of ours."""
    found = _TOKEN.fullmatch(token)
    return found[1] if found else None


def verify(token: str, fields: Mapping[str, str]) -> ApiKey | None:
    """The key, if `fields` (its hash in Redis, empty when unknown) are those of this token.

    The digests are compared in constant time; a revoked key is none.
    """
    right = hmac.compare_digest(_sha256(token), fields.get("sha256", ""))
    if not right or "revoked_at" in fields:
        return None
    return ApiKey.model_validate(fields)


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
