"""The one place that connects to Redis, and that turns its absence into `QueueUnavailable`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from jobs.errors import QueueUnavailable
from jobs.settings import CoreSettings

CONNECT_TIMEOUT_S = 2.0
COMMAND_TIMEOUT_S = 5.0
LONGEST_BLOCK_S = 10.0
_UNAVAILABLE = {
    "MISCONF": "it cannot write to its disk, which may be full",
    "BUSY": "a script keeps it busy",
    "NOREPLICAS": "too few replicas follow it",
    "CLUSTERDOWN": "its cluster is down",
}
"""What an error of Redis begins with, of those that pass."""


def connect(settings: CoreSettings, *, decode: bool = True) -> redis.Redis:
    """A client with short timeouts; one immediate retry covers a connection that went stale.

    Nothing is sent before the first command. All commands of ours may be sent twice: every
    transition is idempotent for the attempt that asks for it.

    Args:
        settings: says where Redis is.
        decode: text replies; RQ wants bytes.
    """
    options: dict[str, Any] = {
        "decode_responses": decode,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": COMMAND_TIMEOUT_S,
        "socket_keepalive": True,
        "retry": Retry(ConstantBackoff(0.05), 1),
    }
    client: redis.Redis = redis.Redis.from_url(settings.redis_url.get_secret_value(), **options)
    return client


def connect_async(settings: CoreSettings) -> redis.asyncio.Redis:
    """As `connect`, for one event loop; a read may block for up to `LONGEST_BLOCK_S`."""
    client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
        settings.redis_url.get_secret_value(),
        decode_responses=True,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=LONGEST_BLOCK_S + COMMAND_TIMEOUT_S,
        socket_keepalive=True,
        retry=AsyncRetry(ConstantBackoff(0.05), 1),
    )
    return client


@contextmanager
def redis_errors() -> Iterator[None]:
    """Raise `QueueUnavailable` where Redis does not answer, is loading, busy, full or read-only.

    A disk that it cannot write to (MISCONF) counts as full.

    Raises:
        QueueUnavailable: in place of redis-py's errors; a bug in a command stays a bug.
    """
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise QueueUnavailable(f"Redis does not answer: {type(error).__name__}") from error
    except (redis.ReadOnlyError, redis.exceptions.OutOfMemoryError) as error:
        raise QueueUnavailable(f"Redis takes no writes: {type(error).__name__}") from error
    except redis.ResponseError as error:
        code = str(error).partition(" ")[0]
        if code not in _UNAVAILABLE:
            raise
        raise QueueUnavailable(f"Redis takes no writes: {_UNAVAILABLE[code]}") from error


def ping(client: redis.Redis) -> None:
    """Ask Redis for a sign of life.

    Raises:
        QueueUnavailable: it gives none.
    """
    with redis_errors():
        client.ping()
