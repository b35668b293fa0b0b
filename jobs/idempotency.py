"""Idempotency keys: of all requests with one key, one makes something, whatever crashes between.

    claim ──► make, in one Lua script together with the key's entry ──► replayed for a day

The claim only spares a concurrent twin its work, and lapses by itself when its holder dies. What
keeps a job from being made twice is the script that makes it: it looks at the entry, makes the job
and writes the entry in one step (`LUA`, used by jobs/admission.py).

    IdempotencyConflict      (jobs/errors.py)
    ├── KeyReused            the key came with another body before
    ├── KeyInFlight          a request with this key is being worked on
    └── AlreadyMade          a request with this key has made something: its id
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import redis

from jobs.connection import redis_errors
from jobs.errors import AlreadyMade, KeyInFlight, KeyReused
from jobs.keys import idempotency_key
from jobs.settings import CoreSettings

CLAIM_S = 10
"""How long a claim keeps others out when its holder has died."""


@dataclass(frozen=True)
class IdempotencyKey:
    """A client's key: the owner's and the route's, with a fingerprint of what was asked."""

    owner: str
    route: str
    key: str
    fingerprint: str
    token: str = field(default_factory=lambda: secrets.token_hex(8), repr=False)
    """Of this request, so that only it gives its claim back."""

    def name(self, settings: CoreSettings) -> str:
        """Its key in Redis; a hash, since clients choose the characters."""
        text = "\0".join((self.owner, self.route, self.key))
        return idempotency_key(settings, hashlib.sha256(text.encode()).hexdigest())


class IdempotencyClaims:
    """Claims keys before anything is made with them."""

    def __init__(self, client: redis.Redis, settings: CoreSettings) -> None:
        self._settings = settings
        self._claim = client.register_script(_CLAIM)
        self._release = client.register_script(_RELEASE)

    def claim(self, key: IdempotencyKey) -> None:
        """Go ahead with this key, if nobody has.

        Raises:
            KeyReused, KeyInFlight, AlreadyMade: somebody has.
            QueueUnavailable: Redis does not answer.
        """
        arguments: list[str | int] = [key.fingerprint, key.token, CLAIM_S]
        with redis_errors():
            reply = self._claim(keys=[key.name(self._settings)], args=arguments)
        refuse(cast("Sequence[str]", reply))

    def release(self, key: IdempotencyKey) -> None:
        """Give the claim back after a refusal: nothing was made, the key is as good as new.

        Raises:
            QueueUnavailable: Redis does not answer; the claim lapses by itself.
        """
        with redis_errors():
            self._release(keys=[key.name(self._settings)], args=[key.token])


def refuse(reply: Sequence[str]) -> None:
    """Raise what a script's reply means for the key, if it means no."""
    match reply[0]:
        case "made":
            raise AlreadyMade(reply[1])
        case "reused":
            raise KeyReused("this idempotency key came with another body before; use a new key")
        case "in_flight":
            raise KeyInFlight("a request with this idempotency key is being worked on")


LUA = """
-- what an entry with this key forbids, or nil
local function settled(entry, fingerprint)
  local found = redis.call('HMGET', entry, 'fingerprint', 'id')
  if not found[2] then return nil end
  if found[1] ~= fingerprint then return {'reused'} end
  return {'made', found[2]}
end

local function settle(entry, fingerprint, made, ttl_s)
  redis.call('DEL', entry)
  redis.call('HSET', entry, 'fingerprint', fingerprint, 'id', made)
  redis.call('EXPIRE', entry, ttl_s)
end
"""

_CLAIM = """
local found = redis.call('HMGET', KEYS[1], 'fingerprint', 'id', 'token')
if found[1] and found[1] ~= ARGV[1] then return {'reused'} end
if found[2] then return {'made', found[2]} end
if found[3] and found[3] ~= ARGV[2] then return {'in_flight'} end
redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], 'token', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {'claimed'}
"""

_RELEASE = """
local found = redis.call('HMGET', KEYS[1], 'id', 'token')
if not found[1] and found[2] == ARGV[1] then redis.call('DEL', KEYS[1]) end
return {'ok'}
"""
