"""Calls of the HTTP API: upload, create, wait, cancel, download; knows none of our rooms."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from client import sse
from client.errors import GenerationFailed, Refused, Unreachable, WaitTimeout
from client.sse import Event

TERMINAL = frozenset({"succeeded", "failed", "canceled"})
Generation = dict[str, Any]
"""A generation as the API shows it; see openapi.yaml."""

_TRANSIENT = frozenset({502, 503, 504})
_MAX_PAUSE_S = 10.0


class ReadoutClient:
    """One connection pool to one service. Errors: client/errors.py.

    Reads are tried again for `patience_s` when the service is away or busy; writes are not, since
    nobody knows whether the first one arrived.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        patience_s: float = 30.0,
    ) -> None:
        """`api_key` goes to the service alone, never to the storage behind presigned URLs."""
        self.url = url.rstrip("/")
        self._patience_s = patience_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s)

    def __enter__(self) -> ReadoutClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def upload(self, image: Path | bytes, name: str = "control.png") -> dict[str, Any]:
        """Store a control image; the answer's `id` goes into a request as `upload_id`."""
        content = image.read_bytes() if isinstance(image, Path) else image
        return self._json(self._send("POST", "/v1/uploads", files={"file": (name, content)}))

    def create(
        self, request: Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> Generation:
        """Ask for a generation; it is queued or already running in the answer.

        Args:
            request: see docs/api.md.
            idempotency_key: any text of yours; sent again with it, the request makes nothing new.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        answer = self._send("POST", "/v1/generations", json=dict(request), headers=headers)
        return self._json(answer)

    def get(self, generation_id: str) -> Generation:
        """A generation as it is now."""
        return self._json(self._read(f"/v1/generations/{generation_id}"))

    def generations(self, *, state: str | None = None, limit: int = 20) -> list[Generation]:
        """The newest generations, in short; `state` picks those in it."""
        query = f"?limit={limit}" + (f"&state={state}" if state else "")
        return [*self._json(self._read(f"/v1/generations{query}"))["items"]]

    def cancel(self, generation_id: str) -> Generation:
        """Stop a generation at its next step."""
        return self._json(self._send("POST", f"/v1/generations/{generation_id}/cancel"))

    def wait(
        self,
        generation_id: str,
        *,
        timeout_s: float = 900.0,
        on_update: Callable[[Generation], None] = lambda _: None,
    ) -> Generation:
        """Poll until the generation has its result.

        Args:
            generation_id: whose.
            timeout_s: how long at most.
            on_update: sees every answer on the way, the last one too.

        Raises:
            GenerationFailed: it ended otherwise.
            WaitTimeout: it goes on; it is not canceled.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            response = self._read(f"/v1/generations/{generation_id}")
            generation = self._json(response)
            on_update(generation)
            if generation["state"] == "succeeded":
                return generation
            if generation["state"] in TERMINAL:
                raise GenerationFailed(generation)
            pause = _retry_after(response, 1.0)
            if time.monotonic() + pause > deadline:
                raise WaitTimeout(f"generation {generation_id} is not done in {timeout_s:g} s")
            time.sleep(pause)

    def events(self, generation_id: str, *, after: str | None = None) -> Iterator[Event]:
        """What happens to a generation, as it happens; ends after the terminal event.

        A connection that breaks is made again where it broke, for `patience_s` without news.

        Args:
            generation_id: whose.
            after: `id` of the last event that was seen; None: from the beginning.
        """
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                for event in self._events(f"/v1/generations/{generation_id}/events", after):
                    after = event.id or after
                    yield event
                    if event.type in TERMINAL:
                        return
                    deadline = time.monotonic() + self._patience_s
                return
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
            except Refused as error:
                if error.status not in _TRANSIENT or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def _events(self, path: str, after: str | None) -> Iterator[Event]:
        """Of one connection; ends without an error only where there is nothing more to come."""
        headers = self._headers | ({"Last-Event-ID": after} if after else {})
        try:
            with self._http.stream("GET", path, headers=headers) as response:
                if not response.is_success:
                    response.read()
                    raise Refused(response.status_code, _problem(response))
                if response.status_code == 204:
                    return
                yield from sse.events(response.iter_lines())
        except httpx.HTTPError as error:
            raise Unreachable(f"no answer from {self.url}: {error}") from error
        raise Unreachable(f"{self.url} ended the stream early")

    def download(self, url: str) -> bytes:
        """The bytes behind a presigned URL of a result."""
        return self._read(url).content

    def heads(self) -> list[dict[str, Any]]:
        """The installed readout heads."""
        return [*self._json(self._read("/v1/heads"))["items"]]

    def models(self) -> list[dict[str, Any]]:
        """The installed models with their defaults and ranges."""
        return [*self._json(self._read("/v1/models"))["items"]]

    def _read(self, path: str) -> httpx.Response:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return self._send("GET", path)
            except Unreachable:
                pause = 0.5
                if time.monotonic() + pause > deadline:
                    raise
            except Refused as error:
                pause = float(error.problem.get("retry_after_s", 1.0))
                if error.status not in _TRANSIENT or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            headers = options.pop("headers", {}) | (self._headers if path[0] == "/" else {})
            response = self._http.request(method, path, headers=headers, **options)
        except httpx.HTTPError as error:
            where = path if path.startswith("http") else self.url
            raise Unreachable(f"no answer from {_origin(where)}: {error}") from error
        if response.is_success:
            return response
        problem = _problem(response)
        if "retry-after" in response.headers:
            problem["retry_after_s"] = _retry_after(response, 1.0)
        raise Refused(response.status_code, problem)

    @staticmethod
    def _json(response: httpx.Response) -> dict[str, Any]:
        try:
            return dict(response.json())
        except ValueError:
            raise Unreachable(f"{_origin(str(response.url))} does not speak this API") from None


def _origin(url: str) -> str:
    parsed = httpx.URL(url)
    return f"{parsed.scheme}://{parsed.netloc.decode()}"


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    return problem if isinstance(problem, dict) else {"title": response.reason_phrase}


def _retry_after(response: httpx.Response, default_s: float) -> float:
    try:
        return min(_MAX_PAUSE_S, max(0.1, float(response.headers.get("retry-after", default_s))))
    except ValueError:
        return default_s
