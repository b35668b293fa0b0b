from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jobs.settings import CoreSettings
from jobs.store import ObjectNotFound, ObjectStore, StorageFull, StorageUnavailable
from tests.servers import running_s3, settings_for

KEY = "jobs/gen_1/1/image-000.png"


def fetch(url: str) -> tuple[bytes, dict[str, str]]:
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - our own loopback server
        return response.read(), dict(response.headers)


def test_bytes_come_back(store: ObjectStore) -> None:
    data = bytes(range(256)) * 100
    store.put_bytes(KEY, data)
    assert store.get_bytes(KEY) == data
    found = store.head(KEY)
    assert (found.size_bytes, found.media_type) == (len(data), "image/png")


def test_a_presigned_url_is_fetched_without_credentials(store: ObjectStore) -> None:
    store.put_bytes(KEY, b"pixels")
    body, headers = fetch(store.presigned_get(KEY))
    assert (body, headers["Content-Type"]) == (b"pixels", "image/png")


def test_a_presigned_url_cannot_be_changed(store: ObjectStore) -> None:
    store.put_bytes("uploads/secret.png", b"secret")
    url = store.presigned_get(KEY).replace(KEY, "uploads/secret.png")
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(url)
    refused.value.close()
    assert refused.value.code == 403


def test_presigned_urls_name_the_endpoint_that_clients_see(core_settings: CoreSettings) -> None:
    public = "https://images.example.org"
    store = ObjectStore(core_settings.model_copy(update={"s3_public_endpoint_url": public}))
    assert store.presigned_get(KEY).startswith(f"{public}/{core_settings.s3_bucket}/{KEY}?")
    store.close()


def test_what_is_not_there(store: ObjectStore) -> None:
    for call in (store.get_bytes, store.head):
        with pytest.raises(ObjectNotFound, match="nothing/here"):
            call("nothing/here.png")
    store.delete("nothing/here.png")


def test_a_prefix_is_deleted_and_nothing_else(store: ObjectStore) -> None:
    for attempt in (1, 2, 12):
        for name in ("a.png", "b.png"):
            store.put_bytes(f"jobs/gen_1/{attempt}/{name}", b"x")
    assert store.delete_prefix("jobs/gen_1/1/") == 2
    assert store.delete_prefix("jobs/gen_1/1/") == 0
    assert len(store.list_keys("jobs/gen_1/")) == 4
    with pytest.raises(ValueError, match="must end"):
        store.delete_prefix("jobs/gen_1/1")


def test_the_bucket_is_made_once(core_settings: CoreSettings) -> None:
    store = ObjectStore(core_settings)
    with pytest.raises(ObjectNotFound, match=core_settings.s3_bucket):
        store.ping()
    for _ in range(2):
        store.ensure_bucket()
    store.ping()
    store.close()


def test_wrong_credentials_are_said(core_settings: CoreSettings) -> None:
    wrong = core_settings.model_validate(
        core_settings.model_dump() | {"s3_secret_access_key": "wrong"}
    )
    store = ObjectStore(wrong)
    with pytest.raises(StorageUnavailable, match="READOUT_S3"):
        store.ensure_bucket()
    store.close()


def test_storage_down_is_said_quickly_and_survived(tmp_path: Path) -> None:
    with running_s3(tmp_path) as s3:
        settings = settings_for("redis://127.0.0.1:1", s3.url)
        store = ObjectStore(settings)
        store.ensure_bucket()
        store.put_bytes(KEY, b"x")
    start = time.monotonic()
    for call in (lambda: store.put_bytes(KEY, b"y"), lambda: store.get_bytes(KEY), store.ping):
        with pytest.raises(StorageUnavailable, match="does not answer"):
            call()
    assert time.monotonic() - start < 10
    with running_s3(tmp_path, s3.server.port):
        assert store.get_bytes(KEY) == b"x"
    store.close()


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    core_settings: CoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    store = ObjectStore(core_settings)
    store.ensure_bucket()
    store.close()


@pytest.mark.parametrize(
    ("status", "code", "error", "says"),
    [
        (507, "XMinioStorageFull", StorageFull, "is full"),
        (500, "InternalError", StorageUnavailable, "its disk may be full"),
    ],
)
def test_a_full_disk_is_said_as_plainly_as_the_server_says_it(
    core_settings: CoreSettings, status: int, code: str, error: type[Exception], says: str
) -> None:
    """What MinIO and rclone answer on a full disk (rclone: tried on a full tmpfs)."""

    class Full(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = f"<Error><Code>{code}</Code><Message>full</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Full) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        store = ObjectStore(core_settings.model_copy(update={"s3_endpoint_url": url}))
        with pytest.raises(error, match=says):
            store.put_bytes("a", b"x")
        store.close()
        server.shutdown()
