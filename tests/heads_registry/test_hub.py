"""Pulling heads from a hub repository: a small server that speaks what of its protocol is used."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from heads_registry.checkpoints import ImportRefused
from heads_registry.hub import HubUnavailable, pull
from tests.parity.golden import DATA

SHA = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/heads"


class Hub(ThreadingHTTPServer):
    """One public repository."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPOSITORY}/revision/main"):
            siblings = [
                {"rfilename": name, "size": len(data)} for name, data in self.server.files.items()
            ]
            body = json.dumps({"id": REPOSITORY, "sha": SHA, "siblings": siblings}).encode()
            self._answer(200, body, {"Content-Type": "application/json"})
            return
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{SHA}/")
        if name in self.server.files:
            data = self.server.files[name]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self._answer(200, data, {"ETag": etag, "X-Repo-Commit": SHA})
            return
        self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    head = DATA / "readout_tinysd15_spatial_depth.pt"
    files = {
        "README.md": b"heads",
        f"weights/{head.name}": head.read_bytes(),
        "weights/hostile.pt": b"cos\nsystem\n(S'true'\ntR.",
    }
    with Hub(files) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_every_head_is_imported_and_what_is_none_is_named(hub: Hub, tmp_path: Path) -> None:
    pulled = pull(REPOSITORY, tmp_path, endpoint=hub.url)
    assert [found.manifest.id for found in pulled.heads] == ["sd15/depth"]
    assert list(pulled.refused) == ["weights/hostile.pt"]
    assert "not a zip archive" in pulled.refused["weights/hostile.pt"]
    again = pull(REPOSITORY, tmp_path, endpoint=hub.url)
    assert "exists" in again.refused["weights/readout_tinysd15_spatial_depth.pt"]
    assert len(pull(REPOSITORY, tmp_path, endpoint=hub.url, overwrite=True).heads) == 1


def test_what_cannot_be_pulled_is_said(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(HubUnavailable, match="no such repository"):
        pull("nobody/nothing", tmp_path, endpoint=hub.url)
    with pytest.raises(HubUnavailable, match="write owner/name"):
        pull("a b/c", tmp_path, endpoint=hub.url)
    with pytest.raises(HubUnavailable, match="cannot be reached"):
        pull(REPOSITORY, tmp_path, endpoint="http://127.0.0.1:9")
    hub.files = {"README.md": b"heads"}
    with pytest.raises(ImportRefused, match=r"no \.pt file"):
        pull(REPOSITORY, tmp_path, endpoint=hub.url)
    assert not (tmp_path / "heads").exists()
