"""A generation's creation: resolve, admit, enqueue; once for each idempotency key."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import structlog

from jobs.errors import AlreadyMade
from jobs.record import JobRecord
from service import schemas
from service.auth import Caller
from service.idempotency import bind, claimed
from service.references import TakeImage
from service.resolve import Doors, resolve
from service.services import Services
from service.webhook_views import check_target

ROUTE = "POST /v1/generations"
_log = structlog.get_logger("gateway")


@dataclass(frozen=True)
class Created:
    """The record as it was when it was made, and whether an earlier request made it."""

    record: JobRecord
    replayed: bool = False


def doors_of(services: Services, owner: str, take_image: TakeImage) -> Doors:
    """What a request of this caller may name."""
    return Doors(
        catalogue=services.catalogue,
        default_model=services.settings.default_model,
        take_image=take_image,
        find_record=partial(services.records.get, owner=owner),
        face_detector=services.settings.face_detector,
    )


def create_generation(
    services: Services,
    asked: schemas.GenerationParameters,
    caller: Caller,
    request_id: str,
    idempotency_key: str | None = None,
) -> Created:
    """Queue what is asked for, or find what the same request made before.

    Raises:
        InvalidRequest: a field is wrong; see resolve.py.
        KeyReused, KeyInFlight: see jobs/idempotency.py.
        JobExpired: the same request made a generation whose record has expired.
        QueueFull, QueueUnavailable, StorageUnavailable: it cannot be taken now.
    """
    key = bind(idempotency_key, caller.owner, ROUTE, asked)
    doors = doors_of(services, caller.owner, partial(services.images.take, owner=caller.owner))
    try:
        with claimed(services.claims, key):
            if asked.webhook_url is not None:
                check_target(asked.webhook_url, "#/webhook_url", services.settings)
            effective = resolve(asked, doors)
            record = services.records.create(
                effective, request_id, caller.owner, key, webhook_url=asked.webhook_url
            )
    except AlreadyMade as earlier:
        return Created(services.records.get(earlier.made, caller.owner).as_created(), True)
    services.tickets.put(record.id)
    _log.info("generation_created", job_id=record.id, model=effective.model, task=effective.task)
    return Created(record)
