"""A real gateway on real servers, with a registry of manifests alone: no torch, no weights."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from PIL import Image

from heads_registry.catalogue import Catalogue
from jobs.connection import connect
from jobs.logs import configure_logging
from jobs.record import RecordStore
from jobs.settings import CoreSettings
from jobs.store import ObjectStore
from service.app import create_app
from service.settings import GatewaySettings
from stack.servers import Server
from tests.servers import S3, settings_for

MODEL: dict[str, Any] = {
    "name": "tiny",
    "title": "Tiny",
    "family": "tiny",
    "pipeline": "stable-diffusion",
    "source": "./tiny",
    "height": 64,
    "width": 64,
    "size_multiple": 32,
    "min_size": 32,
    "max_size": 128,
    "max_images": 4,
    "max_prompt_chars": 200,
    "defaults": {"num_inference_steps": 10, "guidance_scale": 5.0, "weight": 0.7},
    "licence": "Apache-2.0",
}
HEAD: dict[str, Any] = {
    "kind": "spatial",
    "weights": "weights.safetensors",
    "sha256": hashlib.sha256(b"no weights").hexdigest(),
    "feature_taps": ["up_blocks.0.resnets.0"],
    "feature_channels": [8],
    "projection_channels": 8,
    "time_embedding_channels": 8,
    "output_channels": 3,
    "licence": "Apache-2.0",
}


ADAPTER: dict[str, Any] = {
    "name": "pose-net",
    "title": "Pose",
    "type": "controlnet",
    "base_model": "tiny",
    "source": "./nothing",
    "conditioning": "pose",
    "licence": "Apache-2.0",
}


def write_registry(directory: Path) -> Path:
    """Families ``tiny`` with pose, depth and points, ``other`` with edge, ``whole`` with a depth
    head and one of each relative kind; adapters of ``tiny`` and ``other``.
    """
    manifests: dict[str, dict[str, Any]] = {
        "models/tiny.yaml": MODEL,
        "models/tiny-tuned.yaml": MODEL | {"name": "tiny-tuned", "max_images": 64},
        "models/other.yaml": MODEL | {"name": "other", "family": "other"},
        "heads/tiny-pose.yaml": HEAD
        | {"name": "pose", "title": "Pose", "signal": "pose", "base_model": "tiny"},
        "heads/tiny-depth.yaml": HEAD
        | {"name": "depth", "title": "Depth", "signal": "depth", "base_model": "tiny"}
        | {"defaults": {"weight": 0.3, "span": [0.2, 0.8]}},
        "heads/tiny-points.yaml": HEAD
        | {"name": "points", "title": "Points", "base_model": "tiny"}
        | {"kind": "correspondence", "output_channels": None},
        "heads/other-edge.yaml": HEAD
        | {"name": "edge", "title": "Edge", "signal": "edge", "base_model": "other"},
    }
    manifests |= {
        "models/whole.yaml": MODEL | {"name": "whole", "family": "whole"},
        "models/whole-tuned.yaml": MODEL
        | {
            "name": "whole-tuned",
            "family": "whole",
            "tasks": {
                "drag": {
                    "guidance_scale": 2.0,
                    "span": [0.3, 0.9],
                    "form": "one_pass",
                    "branch": "both",
                }
            },
        }
        | {"face_detector": "mannequin"},
        "heads/whole-depth.yaml": HEAD | {"name": "depth", "title": "D", "base_model": "whole"},
    }
    manifests |= {
        "adapters/pose.yaml": ADAPTER,
        "adapters/depth.yaml": ADAPTER
        | {"name": "depth-t2i", "type": "t2i_adapter", "conditioning": "depth", "max_scale": 1.5}
        | {"defaults": {"scale": 0.6, "span": [0.0, 0.7]}, "size_multiple": 64},
        "adapters/edge.yaml": ADAPTER | {"name": "edge-net", "base_model": "other"},
        "adapters/whole.yaml": ADAPTER | {"base_model": "whole"},
    }
    for kind in ("appearance", "correspondence", "identity"):
        manifests[f"heads/whole-{kind}.yaml"] = HEAD | {
            "name": kind,
            "title": kind,
            "base_model": "whole",
            "kind": kind,
            "output_channels": None,
        }
    for name, manifest in manifests.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    (directory / "heads" / "weights.safetensors").write_bytes(b"no weights")
    return directory


@contextmanager
def serving(settings: GatewaySettings) -> Iterator[httpx.Client]:
    """A gateway with these settings on a free port, and a client of it."""
    config = uvicorn.Config(
        create_app(settings), host="127.0.0.1", port=0, log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False
        ) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session", autouse=True)
def _logs_as_in_production() -> None:
    configure_logging("json")


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests without weights."""
    return write_registry(tmp_path_factory.mktemp("a registry"))


@pytest.fixture(scope="session")
def catalogue(registry: Path) -> Catalogue:
    """The registry, read."""
    return Catalogue([registry])


@pytest.fixture(scope="session")
def make_settings(valkey: Server, s3: S3, registry: Path) -> Callable[..., GatewaySettings]:
    """Gateway settings on the session's servers with a prefix and bucket of their own."""

    def make(**changes: Any) -> GatewaySettings:
        core: CoreSettings = settings_for(valkey.url, s3.url)
        values = core.model_dump() | {"registry_dirs": (registry,), "default_model": "tiny"}
        values |= {"auth": "none"}
        return GatewaySettings.model_validate(values | changes)

    return make


@pytest.fixture(scope="session")
def settings(make_settings: Callable[..., GatewaySettings]) -> GatewaySettings:
    """Of the session's gateway."""
    return make_settings(max_body_bytes=1_000_000, max_inline_image_bytes=200_000)


@pytest.fixture(scope="session")
def client(settings: GatewaySettings) -> Iterator[httpx.Client]:
    """A client of the session's gateway."""
    with serving(settings) as client:
        yield client


@pytest.fixture
def records(settings: GatewaySettings) -> Iterator[RecordStore]:
    """The gateway's records, as a worker sees them."""
    redis = connect(settings)
    yield RecordStore(redis, settings)
    redis.close()


@pytest.fixture
def objects(settings: GatewaySettings) -> Iterator[ObjectStore]:
    """The gateway's object storage, as a worker sees it."""
    store = ObjectStore(settings)
    yield store
    store.close()


def image_bytes(
    size: tuple[int, int] = (40, 30), mode: str = "RGB", kind: str = "PNG", **options: Any
) -> bytes:
    """A small image file."""
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def upload(client: httpx.Client, data: bytes | None = None) -> str:
    """Upload an image; its id."""
    response = client.post("/v1/uploads", files={"file": ("a.png", data or image_bytes())})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Assert that the answer is a whole problem of this kind; the problem."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["code"] == code, found
    assert found["status"] == status
    assert found["type"] == f"urn:readout:problem:{code}"
    assert found["request_id"] == response.headers["x-request-id"]
    assert found["instance"] == response.request.url.path
    assert found["title"]
    assert found["detail"]
    assert "Traceback" not in response.text
    if status == 503:
        assert int(response.headers["retry-after"]) >= 1
    return found


def pointers(found: dict[str, Any]) -> list[str]:
    """Which fields a problem names."""
    return [error.get("pointer", error.get("parameter")) for error in found["errors"]]
