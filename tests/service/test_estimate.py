"""Estimates over HTTP."""

from __future__ import annotations

from typing import Any

import httpx

from jobs.connection import connect
from jobs.figures import Figures
from jobs.record import RecordStore
from service.settings import GatewaySettings
from tests.service.conftest import pointers, problem


def test_unknown_and_then_measured(
    client: httpx.Client, settings: GatewaySettings, records: RecordStore
) -> None:
    body: dict[str, Any] = {"prompt": "a", "width": 96, "num_inference_steps": 7}
    before = sum(records.counts().values())
    first = client.post("/v1/estimate", json=body)
    assert first.status_code == 200, first.text
    assert (first.json()["measured_jobs"], first.json()["seconds"]) == (0, None)
    created = client.post("/v1/generations", json=body).json()
    request = records.get(created["id"]).request
    redis = connect(settings)
    Figures(redis, settings).keep(request, {"load": 9.0, "sample": 3.5}, "a GPU", 2**30)
    redis.close()
    found = client.post("/v1/estimate", json=body | {"num_inference_steps": 14}).json()
    assert (found["seconds"], found["memory_bytes"]) == (7.0, 2**30)
    assert found["jobs_waiting"] >= 1
    assert sum(records.counts().values()) == before + 1
    wrong = client.post("/v1/estimate", json=body | {"height": 33})
    assert pointers(problem(wrong, 422, "invalid_request")) == ["#/height"]
