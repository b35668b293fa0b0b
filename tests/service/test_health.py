"""Peers that are down, a full queue, bugs: clear answers, and nothing lost."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from heads_registry.manifest import ManifestError
from service.app import create_app
from service.settings import GatewaySettings
from tests.servers import ACCESS_KEY, SECRET_KEY, running_s3, running_valkey
from tests.service import conftest
from tests.service.conftest import image_bytes, pointers, problem, serving, upload

MakeSettings = Callable[..., GatewaySettings]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_alive_and_ready(client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {
        "status": "ready",
        "checks": {"redis": "ok", "object_storage": "ok"},
    }


def test_redis_goes_and_comes_back(make_settings: MakeSettings, tmp_path: Path) -> None:
    port = free_port()
    settings = make_settings(redis_url=f"redis://127.0.0.1:{port}/0")
    with running_valkey(tmp_path, port) as server, serving(settings) as client:
        created = client.post("/v1/generations", json={"prompt": "a"}).json()["id"]
        server.kill()
        assert client.get("/livez").status_code == 200
        found = problem(client.get("/readyz"), 503, "not_ready")
        assert pointers(found) == ["redis"]
        for answer in (
            client.post("/v1/generations", json={"prompt": "a"}),
            client.get("/v1/generations"),
            client.get(f"/v1/generations/{created}"),
            client.post(f"/v1/generations/{created}/cancel"),
            client.get("/metrics"),
        ):
            problem(answer, 503, "queue_unavailable")
        assert upload(client)
        with running_valkey(tmp_path, port):
            assert client.get("/readyz").status_code == 200
            assert client.get(f"/v1/generations/{created}").json()["state"] == "queued"


def test_storage_goes_and_comes_back(make_settings: MakeSettings, tmp_path: Path) -> None:
    port = free_port()
    settings = make_settings(s3_endpoint_url=f"http://127.0.0.1:{port}")
    control = {"type": "spatial", "head": "depth"}
    with running_s3(tmp_path, port) as s3, serving(settings) as client:
        image = {"upload_id": upload(client)}
        asked = {"prompt": "", "controls": [control | {"image": image}]}
        s3.server.kill()
        assert client.get("/livez").status_code == 200
        assert pointers(problem(client.get("/readyz"), 503, "not_ready")) == ["object_storage"]
        form: dict[str, Any] = {"files": {"file": ("a.png", image_bytes())}}
        problem(client.post("/v1/uploads", **form), 503, "storage_unavailable")
        problem(client.post("/v1/generations", json=asked), 503, "storage_unavailable")
        assert client.get("/v1/generations").json()["items"] == []
        assert client.post("/v1/generations", json={"prompt": "a"}).status_code == 202
        with running_s3(tmp_path, port):
            assert client.get("/readyz").status_code == 200
            assert client.post("/v1/generations", json=asked).status_code == 202


def test_the_gateway_starts_without_its_peers(make_settings: MakeSettings) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    settings = make_settings(redis_url=f"redis://{nowhere}/0", s3_endpoint_url=f"http://{nowhere}")
    with serving(settings) as client:
        found = problem(client.get("/readyz"), 503, "not_ready")
        assert pointers(found) == ["redis", "object_storage"]


def test_wrong_storage_credentials_are_not_ready(make_settings: MakeSettings) -> None:
    with serving(make_settings(s3_secret_access_key="wrong")) as client:
        answer = client.get("/readyz")
        assert pointers(problem(answer, 503, "not_ready")) == ["object_storage"]
        assert ACCESS_KEY not in answer.text
        assert SECRET_KEY not in answer.text


def test_a_full_queue(make_settings: MakeSettings) -> None:
    with serving(make_settings(max_queued=2)) as client:
        first = client.post("/v1/generations", json={"prompt": "a"}).json()["id"]
        assert client.post("/v1/generations", json={"prompt": "a"}).status_code == 202
        problem(client.post("/v1/generations", json={"prompt": "a"}), 503, "queue_full")
        client.post(f"/v1/generations/{first}/cancel")
        assert client.post("/v1/generations", json={"prompt": "a"}).status_code == 202


def test_admission_is_exact_under_concurrency(make_settings: MakeSettings) -> None:
    with serving(make_settings(max_queued=7)) as client:
        statuses: list[int] = []

        def create() -> None:
            answer = client.post("/v1/generations", json={"prompt": "a"})
            statuses.append(answer.status_code)

        threads = [threading.Thread(target=create) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [202] * 7 + [503] * 13


def test_metrics_count_by_route(client: httpx.Client) -> None:
    client.get("/v1/generations/gen_" + "0" * 24)
    found = client.get("/metrics")
    assert found.headers["content-type"].startswith("text/plain")
    line = 'readout_http_requests_total{method="GET",route="/v1/generations/{generation_id}"'
    assert line in found.text
    assert 'readout_jobs{state="queued"}' in found.text
    assert "gen_0" not in found.text


def test_a_bug_is_a_problem_without_a_traceback(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def create_buggy(settings: GatewaySettings) -> FastAPI:
        app = create_app(settings)

        @app.get("/bug")
        def bug() -> None:
            raise RuntimeError("a secret of ours")

        return app

    monkeypatch.setattr(conftest, "create_app", create_buggy)
    with serving(make_settings()) as client:
        answer = client.get("/bug", headers={"X-Request-ID": "find-me"})
        found = problem(answer, 500, "internal")
    assert found["request_id"] == "find-me"
    assert "secret" not in answer.text
    assert "a secret of ours" in capsys.readouterr().out


def test_a_broken_registry_is_said_at_the_start(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match="no such registry directory"):
        create_app(make_settings(registry_dirs=(tmp_path / "nowhere",)))
