"""The outbox: what became of jobs, to be told to webhooks at least once, however long that takes.

    terminal transition ──► outbox stream     one Lua script with the record (jobs/scripts.py)
    outbox stream ──► one delivery per endpoint, due now     `fan_out`; safe to repeat
    delivery ──► claimed, attempted, settled: delivered, due again, or given up

Nothing here speaks HTTP, and no worker waits for any of it. Several processes may empty one outbox:
a claim is a lease, so a delivery whose sender died is attempted again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, cast

import redis
from pydantic import BaseModel, ConfigDict, Field

from jobs.connection import redis_errors
from jobs.errors import DeliveryNotFound
from jobs.keys import deliveries_key, delivery_key, due_key, outbox_key
from jobs.settings import CoreSettings
from jobs.webhooks import INLINE, EndpointStore

LOG_LENGTH = 1000
LOG_TTL_S = 30 * 24 * 3600
MAX_ATTEMPTS_KEPT = 20
MAX_MESSAGE_CHARS = 2000
"""Of a failure's message: a payload stays far below Standard Webhooks' 20 kB."""
_PATHS = {"generation": "/v1/generations/", "batch": "/v1/batches/"}
_BATCH = 100


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Attempt(_Frozen):
    """One POST and what came of it."""

    at: datetime
    status: int | None = Field(None, description="of the answer; null: there was none")
    error: str | None = Field(None, description="null: delivered")
    duration_ms: int = Field(ge=0)


class Delivery(_Frozen):
    """One message on its way to one endpoint."""

    id: str
    message_id: str = Field(description="webhook-id: the same for every attempt and endpoint")
    owner: str
    endpoint_id: str
    url: str = Field(repr=False, description="of an inline one; else empty: the endpoint has it")
    event_type: str
    body: str = Field(repr=False, description="what is signed and sent")
    created_at: datetime
    state: Literal["pending", "delivered", "failed"] = "pending"
    tries: int = Field(0, ge=0, description="since it was created or asked for again")
    attempts: tuple[Attempt, ...] = ()
    next_attempt_at: datetime | None = None

    def after(
        self, attempt: Attempt, state: Literal["pending", "delivered", "failed"], due: datetime
    ) -> Delivery:
        """The delivery with one attempt more."""
        kept = (*self.attempts, attempt)[-MAX_ATTEMPTS_KEPT:]
        next_at = due if state == "pending" else None
        changes = {"state": state, "attempts": kept, "tries": self.tries + 1}
        return self.model_copy(update=changes | {"next_attempt_at": next_at})


class Outbox:
    """Every method raises `QueueUnavailable` when Redis does not answer."""

    def __init__(self, client: redis.Redis, settings: CoreSettings) -> None:
        self._redis = client
        self._settings = settings
        self._endpoints = EndpointStore(client, settings)
        self._add = client.register_script(_ADD)
        self._claim = client.register_script(_CLAIM)

    def fan_out(self) -> int:
        """Make deliveries of what jobs left in the outbox; how many entries there were."""
        stream = outbox_key(self._settings)
        with redis_errors():
            found: Any = self._redis.xrange(stream, count=_BATCH)
            for entry_id, fields in found:
                for delivery in self._deliveries(fields):
                    self._keep_new(delivery)
                self._redis.xdel(stream, entry_id)
        return len(found)

    def due(self, limit: int = 200) -> Sequence[Delivery]:
        """Deliveries whose time has come, oldest first; those that have expired are dropped."""
        key = due_key(self._settings)
        with redis_errors():
            now_ms = _ms(datetime.now(UTC))
            found = self._redis.zrangebyscore(key, "-inf", now_ms, start=0, num=limit)
            ids = cast("list[str]", found)
            names = [delivery_key(self._settings, one) for one in ids]
            texts = cast("list[str | None]", self._redis.mget(names) if names else [])
            if gone := [one for one, text in zip(ids, texts, strict=True) if text is None]:
                self._redis.zrem(key, *gone)
        return [Delivery.model_validate_json(text) for text in texts if text is not None]

    def claim(self, delivery_id: str, lease_s: float) -> bool:
        """Take a due delivery for `lease_s`; False: another has it."""
        now_ms = _ms(datetime.now(UTC))
        until = now_ms + int(lease_s * 1000)
        with redis_errors():
            keys = [due_key(self._settings)]
            return bool(self._claim(keys=keys, args=[delivery_id, now_ms, until]))

    def postpone(self, delivery_id: str, until: datetime) -> None:
        """Look at it later: its receiver is busy with others."""
        with redis_errors():
            self._redis.zadd(due_key(self._settings), {delivery_id: _ms(until)}, xx=True)

    def settle(self, delivery: Delivery) -> None:
        """Keep what came of an attempt, and when the next one is due, if any."""
        with redis_errors(), self._redis.pipeline() as pipeline:
            text = delivery.model_dump_json()
            pipeline.set(delivery_key(self._settings, delivery.id), text, ex=LOG_TTL_S)
            if delivery.next_attempt_at is None:
                pipeline.zrem(due_key(self._settings), delivery.id)
            else:
                due = {delivery.id: _ms(delivery.next_attempt_at)}
                pipeline.zadd(due_key(self._settings), due)
            pipeline.execute()

    def log(self, owner: str, endpoint_id: str, limit: int) -> Sequence[Delivery]:
        """The newest deliveries to an endpoint, newest first."""
        with redis_errors():
            key = deliveries_key(self._settings, owner, endpoint_id)
            ids = cast("list[str]", self._redis.zrevrange(key, 0, limit - 1))
            names = [delivery_key(self._settings, one) for one in ids]
            texts = cast("list[str | None]", self._redis.mget(names) if names else [])
        return [Delivery.model_validate_json(text) for text in texts if text is not None]

    def redeliver(self, owner: str, endpoint_id: str, delivery_id: str) -> Delivery:
        """Send a message of the log once more, with the whole schedule of retries before it.

        Raises:
            DeliveryNotFound: there is none of that id at that endpoint of the owner's.
        """
        with redis_errors():
            text = cast("str | None", self._redis.get(delivery_key(self._settings, delivery_id)))
        found = Delivery.model_validate_json(text) if text else None
        if found is None or (found.owner, found.endpoint_id) != (owner, endpoint_id):
            raise DeliveryNotFound(f"no delivery {delivery_id!r} at this endpoint")
        changes = {"state": "pending", "tries": 0, "next_attempt_at": datetime.now(UTC)}
        again = found.model_copy(update=changes)
        self.settle(again)
        return again

    def _deliveries(self, fields: dict[str, str]) -> Sequence[Delivery]:
        """One for each endpoint that wants the event, and one for the request's own URL."""
        owner, event_type = fields["owner"], f"{fields['kind']}.{fields['state']}"
        targets = [(one.id, "") for one in self._endpoints.list(owner) if one.wants(event_type)]
        if fields["url"]:
            targets.append((INLINE, fields["url"]))
        return [_delivery(fields, event_type, *target) for target in targets]

    def _keep_new(self, delivery: Delivery) -> None:
        """Keep it and make it due, once; a repetition changes nothing."""
        settings, now_ms = self._settings, _ms(datetime.now(UTC))
        keys = [
            delivery_key(settings, delivery.id),
            due_key(settings),
            deliveries_key(settings, delivery.owner, delivery.endpoint_id),
        ]
        text = delivery.model_dump_json()
        self._add(keys=keys, args=[delivery.id, text, now_ms, LOG_TTL_S, LOG_LENGTH])


def _delivery(fields: dict[str, str], event_type: str, endpoint_id: str, url: str) -> Delivery:
    kind, made, state, owner = (fields[name] for name in ("kind", "id", "state", "owner"))
    at = datetime.fromtimestamp(int(fields["at"]) / 1000, UTC)
    failure = json.loads(fields["failure"]) if fields["failure"] else None
    if failure is not None:
        failure["message"] = failure["message"][:MAX_MESSAGE_CHARS]
    data: dict[str, Any] = {"id": made, "path": _PATHS[kind] + made}
    if kind == "generation":
        data |= {"state": state, "failure": failure}
    body = {"type": event_type, "timestamp": at.isoformat(), "data": data}
    name = "\0".join((made, state, fields["at"], owner, endpoint_id))
    return Delivery(
        id="whd_" + hashlib.sha256(name.encode()).hexdigest()[:24],
        message_id=f"msg_{made.partition('_')[2]}_{fields['at']}",
        owner=owner,
        endpoint_id=endpoint_id,
        url=url,
        event_type=event_type,
        body=json.dumps(body, ensure_ascii=False, separators=(",", ":")),
        created_at=at,
        next_attempt_at=at,
    )


def _ms(time: datetime) -> int:
    return int(time.timestamp() * 1000)


_ADD = """
if not redis.call('SET', KEYS[1], ARGV[2], 'NX', 'EX', ARGV[4]) then return 0 end
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - ARGV[5])
redis.call('EXPIRE', KEYS[3], ARGV[4])
return 1
"""

_CLAIM = """
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not due or tonumber(due) > tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
return 1
"""
