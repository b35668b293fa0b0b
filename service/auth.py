"""Who calls: an API key in `Authorization: Bearer …`, asked for before anything else is read.

Without keys (`READOUT_AUTH=none`) everybody is the owner `local`; that is for loopback, and
`check_exposure` refuses it for other addresses unless the setting says `none-anywhere`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from fastapi import Depends
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.api_keys import key_id_of, verify
from jobs.connection import redis_errors
from jobs.errors import QueueUnavailable
from jobs.keys import api_key_key
from jobs.state import LOCAL_OWNER
from service.errors import ServiceError, Unauthorized
from service.problems import problem_response, to_service_error
from service.settings import GatewaySettings

GUARDED = "/v1/"
"""What needs a key: the API. Health, metrics and the description are the operator's to expose."""


class Exposed(Exception):
    """The gateway would listen where strangers are, and asks nobody who they are."""


@dataclass(frozen=True)
class Caller:
    """Who calls."""

    owner: str
    key_id: str | None = None


LOCAL = Caller(LOCAL_OWNER)


class Authentication:
    """Finds the caller of each request under `/v1/`, or answers 401."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings, redis: Any) -> None:
        self._app = app
        self._settings = settings
        self._redis = redis

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of scope pass untouched."""
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._caller(Headers(scope=scope).get("authorization", ""))
        except (ServiceError, QueueUnavailable) as error:
            response = problem_response(Request(scope), to_service_error(error))
            await response(scope, receive, send)
            return
        scope["state"]["caller"] = caller
        with structlog.contextvars.bound_contextvars(api_key=caller.key_id):
            await self._app(scope, receive, send)

    async def _caller(self, header: str) -> Caller:
        if self._settings.auth != "keys":
            return LOCAL
        scheme, _, token = header.partition(" ")
        if not token or scheme.lower() != "bearer":
            raise Unauthorized("send an API key: `Authorization: Bearer rdo_…`")
        key_id = key_id_of(token.strip())
        fields: dict[str, str] = {}
        if key_id is not None:
            with redis_errors():
                fields = await self._redis.hgetall(api_key_key(self._settings, key_id))
        key = verify(token.strip(), fields)
        if key is None:
            raise Unauthorized("this API key is unknown or has been revoked", known=False)
        return Caller(key.owner, key.id)


def check_exposure(settings: GatewaySettings, host: str) -> None:
    """Refuse to serve strangers without keys.

    Raises:
        Exposed: `auth` is none and `host` is not a loopback address.
    """
    if settings.auth == "none" and not _is_loopback(host):
        raise Exposed(
            f"READOUT_AUTH=none would let anybody who reaches {host} use the service: make API "
            "keys (`readout keys create`) and unset it, listen on 127.0.0.1, or set "
            "READOUT_AUTH=none-anywhere if a proxy in front asks who calls"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]
