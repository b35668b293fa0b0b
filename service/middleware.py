"""What surrounds every request: its id, log line, metrics, size limit, and the answer to bugs."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import PayloadTooLarge
from service.metrics import Metrics
from service.problems import problem_response, to_service_error

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
_log = structlog.get_logger("gateway")


class RequestContext:
    """Gives each request an id, logs it as one event, counts it, and answers bugs with a 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of scope pass untouched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                if status:
                    raise
                response = problem_response(Request(scope), to_service_error(error))
                await response(scope, receive, send_with_id)
                _log.exception("unexpected_error", path=scope["path"])
            finally:
                self._finish(scope, status, time.perf_counter() - started)

    def _finish(self, scope: Scope, status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", "(none)")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.observe_request(method, path, status, seconds)
        if scope["path"] not in _QUIET_PATHS:
            _log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                duration_ms=round(seconds * 1000, 1),
            )


class BodyLimit:
    """Refuses a body over the limit, declared or counted while it streams in."""

    def __init__(self, app: ASGIApp, default_bytes: int, by_path: dict[str, int]) -> None:
        self._app = app
        self._default_bytes = default_bytes
        self._by_path = by_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request within its limit."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._by_path.get(scope["path"], self._default_bytes)
        error = PayloadTooLarge(
            f"the body is larger than {limit:,} bytes", headers={"Connection": "close"}
        )
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            await problem_response(Request(scope), error)(scope, receive, send)
            return
        received = 0
        exceeded = started = False

        async def counted() -> Message:
            nonlocal received, exceeded
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                exceeded = True
                raise error
            return message

        async def send_unless_exceeded(message: Message) -> None:
            nonlocal started
            if not exceeded:
                started = True
                await send(message)

        try:
            await self._app(scope, counted, send_unless_exceeded)
        except PayloadTooLarge:
            if not exceeded:
                raise
        if exceeded and not started:
            await problem_response(Request(scope), error)(scope, receive, send)


def _request_id(offered: str) -> str:
    """The client's id where it is harmless, else a new one."""
    return offered if _REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex
