"""Sends webhooks by the Standard Webhooks specification: signed, pinned, bounded, tried again.

One process empties the outbox (jobs/outbox.py); a receiver that is slow holds up its own messages
alone, since no more than `PER_TARGET` of them are under way at a time, and an owner of many such
receivers holds up no other owner, since no more than `PER_OWNER` are. A look-up that was given up
counts until its thread is free.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
import ssl
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import httpx
import structlog

from jobs.connection import connect
from jobs.errors import EndpointNotFound, QueueUnavailable
from jobs.outbox import Attempt, Delivery, Outbox
from jobs.webhooks import EndpointStore
from service.settings import GatewaySettings
from service.webhook_guard import ForbiddenTarget, check_url, look_up, pinned

POLL_S = 0.5
PER_TARGET = 4
PER_OWNER = 20
IN_ALL = 64
POSTPONED = timedelta(seconds=2)
JITTER = 0.2
"""Of a pause: up to this much longer."""
_USER_AGENT = "Readout-Webhooks/1"

_Lookups = list[asyncio.Future[Sequence[str]]]

log = structlog.get_logger("outbox")


def sign(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers; each secret signs ``id.timestamp.body`` with HMAC-SHA256."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = []
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        digest = hmac.new(key, signed, hashlib.sha256).digest()
        signatures.append("v1," + base64.b64encode(digest).decode())
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


class Sender:
    """Makes one attempt; knows nothing of schedules."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._allow_insecure = settings.webhook_allow_insecure
        self._timeout_s = settings.webhook_timeout_s
        cafile = settings.webhook_ca_file
        context = ssl.create_default_context(cafile=str(cafile)) if cafile else True
        # No connection is kept: one to the same address may have been made for another name.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.AsyncClient(
            verify=context, limits=limits, timeout=None, follow_redirects=False, trust_env=False
        )
        # As many as there are deliveries: none waits for another's name.
        self._threads = ThreadPoolExecutor(IN_ALL, "lookup")

    async def aclose(self) -> None:
        """Close the connections; look-ups that hang are left alone."""
        self._threads.shutdown(wait=False)
        await self._http.aclose()

    async def attempt(
        self, url: str, secrets: Sequence[str], delivery: Delivery, lookups: _Lookups
    ) -> Attempt:
        """POST the message once; whatever happens is in the answer.

        A look-up is added to `lookups`: it may go on when the attempt is given up.
        """
        at, start, status, error = datetime.now(UTC), time.perf_counter(), None, None
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._post(url, secrets, delivery, lookups)
            if not 200 <= status < 300:
                redirect = ": redirects are not followed" if 300 <= status < 400 else ""
                error = f"status {status}{redirect}"
        except TimeoutError:
            error = f"no answer in {self._timeout_s:g} s"
        except ForbiddenTarget as reason:
            error = f"forbidden target: {reason}"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as reason:
            error = _describe(reason)
        duration_ms = round((time.perf_counter() - start) * 1000)
        return Attempt(at=at, status=status, error=error, duration_ms=duration_ms)

    async def _post(
        self, url: str, secrets: Sequence[str], delivery: Delivery, lookups: _Lookups
    ) -> int:
        parts = check_url(url, allow_insecure=self._allow_insecure)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        loop = asyncio.get_running_loop()
        lookup = loop.run_in_executor(self._threads, look_up, host, port)
        lookups.append(lookup)
        await asyncio.wait([lookup])
        address = pinned(lookup.result(), allow_insecure=self._allow_insecure)
        body = delivery.body.encode()
        headers = sign(secrets, delivery.message_id, int(time.time()), body)
        headers |= {"Host": parts.netloc, "Content-Type": "application/json"}
        headers |= {"User-Agent": _USER_AGENT, "Connection": "close"}
        request = self._http.build_request(
            "POST",
            httpx.URL(url).copy_with(host=address),
            content=body,
            headers=headers,
            extensions={"sni_hostname": host},
        )
        response = await self._http.send(request, stream=True)
        await response.aclose()  # what the receiver says beside the status is of no interest
        return response.status_code


class Dispatcher:
    """Empties the outbox."""

    def __init__(self, settings: GatewaySettings, outbox: Outbox, endpoints: EndpointStore) -> None:
        self._pauses_s = settings.webhook_retry_after_s
        self._lease_s = settings.webhook_timeout_s * 2
        self._outbox = outbox
        self._endpoints = endpoints
        self._sender = Sender(settings)
        self._by_target: Counter[str] = Counter()
        self._by_owner: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, stop: threading.Event) -> None:
        """Until `stop` is set; what is under way then is finished or left to its lease."""
        try:
            while not stop.is_set():
                try:
                    await self.dispatch_due()
                except QueueUnavailable as error:
                    log.warning("outbox.queue_unavailable", reason=str(error))
                except Exception:
                    log.exception("outbox.failed")
                await asyncio.sleep(POLL_S)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=2)
        finally:
            for task in self._tasks:
                task.cancel()
            await self._sender.aclose()

    async def dispatch_due(self) -> None:
        """Start every attempt that is due, as far as there is room.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        while await asyncio.to_thread(self._outbox.fan_out):
            pass
        for delivery in await asyncio.to_thread(self._outbox.due):
            target = delivery.endpoint_id if not delivery.url else urlsplit(delivery.url).netloc
            if self._by_owner.total() >= IN_ALL:
                return
            busy = self._by_target[target] >= PER_TARGET
            if busy or self._by_owner[delivery.owner] >= PER_OWNER:
                until = datetime.now(UTC) + POSTPONED
                await asyncio.to_thread(self._outbox.postpone, delivery.id, until)
            elif await asyncio.to_thread(self._outbox.claim, delivery.id, self._lease_s):
                self._by_target[target] += 1
                self._by_owner[delivery.owner] += 1
                task = asyncio.create_task(self._deliver(delivery, target))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _deliver(self, delivery: Delivery, target: str) -> None:
        lookups: _Lookups = []
        try:
            settled = await self._attempted(delivery, lookups)
            await asyncio.to_thread(self._outbox.settle, settled)
        except QueueUnavailable as error:  # its lease runs out, and it is attempted again
            log.warning("outbox.not_settled", delivery_id=delivery.id, reason=str(error))
        except Exception:
            log.exception("outbox.delivery_failed", delivery_id=delivery.id)
        finally:
            await asyncio.gather(*lookups, return_exceptions=True)
            self._by_target -= Counter([target])
            self._by_owner -= Counter([delivery.owner])

    async def _attempted(self, delivery: Delivery, lookups: _Lookups) -> Delivery:
        """The delivery after one attempt more, or given up where its endpoint is gone."""
        now = datetime.now(UTC)
        try:
            endpoint = await asyncio.to_thread(
                self._endpoints.get, delivery.owner, delivery.endpoint_id
            )
        except EndpointNotFound:
            gone = Attempt(at=now, error="the endpoint was deleted", duration_ms=0)
            return delivery.after(gone, "failed", now)
        if endpoint.disabled_reason is not None:
            off = Attempt(at=now, error="the endpoint is disabled", duration_ms=0)
            return delivery.after(off, "failed", now)
        url, secrets = delivery.url or endpoint.url, endpoint.signing_secrets(now)
        attempt = await self._sender.attempt(url, secrets, delivery, lookups)
        facts = {"delivery_id": delivery.id, "status": attempt.status, "error": attempt.error}
        log.info("webhook.attempted", tries=delivery.tries + 1, **facts)
        if attempt.error is None:
            return delivery.after(attempt, "delivered", now)
        if attempt.status == 410:
            if not delivery.url:
                await asyncio.to_thread(
                    self._endpoints.disable, delivery.owner, endpoint.id, "it answered 410 Gone"
                )
            return delivery.after(attempt, "failed", now)
        if delivery.tries + 1 >= len(self._pauses_s):
            return delivery.after(attempt, "failed", now)
        pause_s = self._pauses_s[delivery.tries + 1] * (1 + random.uniform(0, JITTER))
        return delivery.after(attempt, "pending", datetime.now(UTC) + timedelta(seconds=pause_s))


def run_forever(settings: GatewaySettings, stop: threading.Event) -> None:
    """Empty the outbox until `stop` is set; outlives outages of Redis."""
    client = connect(settings)
    dispatcher = Dispatcher(settings, Outbox(client, settings), EndpointStore(client, settings))
    log.info("outbox.ready")
    asyncio.run(dispatcher.run(stop))
    client.close()
    log.info("outbox.stopped")


def _describe(error: Exception) -> str:
    """What went wrong, without what a receiver may have put into it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {getattr(cause, 'verify_message', '') or cause.reason or 'refused'}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OSError):
        return "the name cannot be resolved"
    return f"no answer: {type(error).__name__}"
