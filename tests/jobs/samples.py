"""Small real objects of jobs/ for tests of any room."""

from __future__ import annotations

import redis

from jobs.keys import record_key
from jobs.request import GenerationRequest
from jobs.result import ResultSummary, StoredResult, attempt_prefix
from jobs.settings import CoreSettings


def a_request(**changes: object) -> GenerationRequest:
    values: dict[str, object] = {
        "task": "text_to_image",
        "model": "tiny",
        "prompt": "a person",
        "negative_prompt": "",
        "num_images": 1,
        "seed": 7,
        "height": 64,
        "width": 64,
        "num_inference_steps": 10,
        "guidance_scale": 7.5,
        "eta": 0.0,
        "form": "two_pass",
        "branch": "unconditional",
        "update_rule": "elementwise",
    }
    return GenerationRequest.model_validate(values | changes)


def a_result(job_id: str, attempt: int) -> ResultSummary:
    prefix = attempt_prefix(job_id, attempt)
    image = StoredResult(
        index=0, seed=7, key=f"{prefix}image-000.png", sha256="0" * 64, width=64, height=64
    )
    return ResultSummary(attempt=attempt, manifest_key=f"{prefix}manifest.json", images=(image,))


def let_lease_expire(client: redis.Redis, settings: CoreSettings, job_id: str) -> None:
    """What time does to the lease of a worker that died."""
    client.hset(record_key(settings, job_id), "lease_until", 0)
