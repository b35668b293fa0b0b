from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis
from pydantic import ValidationError

from jobs.keys import record_key
from jobs.reconciler import Reconciler
from jobs.record import RecordStore
from jobs.request import GenerationRequest
from jobs.settings import CoreSettings
from tests.jobs.samples import a_request, let_lease_expire

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("path", sorted(DATA.glob("request-*.json")), ids=lambda path: path.stem)
def test_requests_of_earlier_versions_are_read_as_they_were_meant(path: Path) -> None:
    """A field that a version adds has a default that changes nothing: workers go first."""
    written = json.loads(path.read_text())
    read = GenerationRequest.model_validate(written).model_dump(mode="json")
    assert {name: read[name] for name in written} == written


def test_a_mask_in_an_init_image_is_read_as_the_request_s() -> None:
    image = {"upload_id": "u", "key": "k", "sha256": "s", "width": 8, "height": 8}
    written = a_request(init_image={"image": image, "strength": 0.5}).model_dump(mode="json")
    assert written.pop("mask") is None
    written["init_image"]["mask"] = None
    assert GenerationRequest.model_validate_json(json.dumps(written)).mask is None
    written["init_image"]["mask"] = image | {"key": "mask"}
    read = GenerationRequest.model_validate_json(json.dumps(written))
    assert read.mask is not None
    assert read.init_image is not None
    assert (read.mask.key, read.init_image.image.key) == ("mask", "k")


def test_a_worker_that_does_not_know_a_field_costs_an_attempt_and_loses_nothing(
    records: RecordStore, reconciler: Reconciler, client: redis.Redis, core_settings: CoreSettings
) -> None:
    job = records.create(a_request()).id
    key = record_key(core_settings, job)
    newer = json.loads(client.hget(key, "request")) | {"of_tomorrow": 1}
    client.hset(key, "request", json.dumps(newer))
    with pytest.raises(ValidationError, match="of_tomorrow"):
        records.take("older worker")
    let_lease_expire(client, core_settings, job)
    reconciler.reconcile_once()
    assert client.hmget(key, ["state", "attempt"]) == ["queued", "1"]
