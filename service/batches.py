"""A batch's creation: every item checked before anything runs, then all admitted or none."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from jobs.batches import BatchItem, BatchRecord
from jobs.errors import AlreadyMade, QueueUnavailable
from jobs.request import StoredImage
from jobs.state import JobState
from service import schemas
from service.auth import Caller
from service.batch_schemas import (
    BatchCounts,
    BatchItemParameters,
    BatchItemView,
    BatchParameters,
    BatchView,
    WrongItem,
)
from service.creation import doors_of
from service.errors import (
    FieldError,
    InvalidBatch,
    InvalidRequest,
    MalformedRequest,
    PayloadTooLarge,
)
from service.idempotency import bind, claimed
from service.resolve import resolve
from service.services import Services
from service.views import failure_view

ROUTE = "POST /v1/batches"
MAX_REPORTED = 1000
"""Errors of a batch that are told; beyond that their number."""
_log = structlog.get_logger("gateway")


@dataclass(frozen=True)
class CreatedBatch:
    """The batch, and whether an earlier request made it."""

    record: BatchRecord
    replayed: bool = False


def create_batch(
    services: Services,
    asked: BatchParameters,
    caller: Caller,
    request_id: str,
    idempotency_key: str | None = None,
) -> CreatedBatch:
    """Queue all items, or say what is wrong with each that is.

    Raises:
        InvalidBatch: with the errors of every item.
        KeyReused, KeyInFlight: see jobs/idempotency.py.
        QueueFull, QueueUnavailable, StorageUnavailable: it cannot be taken now.
    """
    items = [item for item in asked.items if isinstance(item, BatchItemParameters)]
    wrong = len(items) < len(asked.items)
    key = None if wrong else bind(idempotency_key, caller.owner, ROUTE, asked)
    try:
        with claimed(services.claims, key):
            checked = check_items(services, asked, caller.owner)
            record = services.batches.create(checked, request_id, caller.owner, key)
    except AlreadyMade as earlier:
        return CreatedBatch(services.batches.get(earlier.made, caller.owner), True)
    enqueue(services, services.batches.job_ids(record.id))
    _log.info("batch_created", batch=record.id, items=record.total)
    return CreatedBatch(record)


def enqueue(services: Services, job_ids: Any) -> None:
    """Write a ticket for each job; the reconciler does it where Redis is away just now."""
    try:
        services.queue.enqueue_ids(list(job_ids))
    except QueueUnavailable:
        _log.warning("enqueue_deferred", jobs=len(job_ids))


def check_items(services: Services, asked: BatchParameters, owner: str) -> list[BatchItem]:
    """The effective requests of all items.

    Raises:
        InvalidBatch: with the errors of every item that is wrong.
        StorageUnavailable: uploads cannot be looked at.
    """

    images: dict[str, StoredImage] = {}

    def take(source: schemas.ImageSource, pointer: str) -> StoredImage:
        if source.upload_id is None:
            detail = "in a batch, send control images to POST /v1/uploads and name their ids"
            raise InvalidRequest.at(f"{pointer}/base64", detail)
        if source.upload_id not in images:
            images[source.upload_id] = services.images.take(source, pointer, owner)
        return images[source.upload_id]

    doors = doors_of(services, owner, take)
    found: list[BatchItem] = []
    errors: list[FieldError] = []
    seen: dict[str, int] = {}
    for index, item in enumerate(asked.items):
        if isinstance(item, WrongItem):
            errors += [_inside(index, error) for error in item.errors]
            continue
        if item.custom_id and seen.setdefault(item.custom_id, index) != index:
            detail = f"item {seen[item.custom_id]} has the same; leave it out or make it unique"
            errors.append(FieldError(pointer=f"#/items/{index}/custom_id", detail=detail))
        if item.webhook_url is not None:
            detail = "a batch is told of as a whole; register an endpoint at /v1/webhook-endpoints"
            errors.append(FieldError(pointer=f"#/items/{index}/webhook_url", detail=detail))
        try:
            request = resolve(item, doors)
        except InvalidRequest as error:
            errors += [_inside(index, one) for one in error.errors]
        else:
            found.append(BatchItem(request, item.custom_id))
    if errors:
        wrong = len({_item_of(error) for error in errors})
        more = f"; the first {MAX_REPORTED} errors are listed" if len(errors) > MAX_REPORTED else ""
        raise InvalidBatch(
            f"{wrong} of {len(asked.items)} items are wrong, so none of them runs{more}",
            errors=errors[:MAX_REPORTED],
        )
    return found


def _inside(index: int, error: FieldError) -> FieldError:
    pointer = (error.pointer or "#").removeprefix("#")
    return FieldError(pointer=f"#/items/{index}{pointer}", detail=error.detail)


def _item_of(error: FieldError) -> str:
    return (error.pointer or "").split("/")[2]


def parse_body(body: Any, most: int) -> BatchParameters:
    """A JSON body, checked as FastAPI would, but whole items only where they are not too many.

    Raises:
        PayloadTooLarge: more than `most` items.
        RequestValidationError: it is no batch.
    """
    items = body.get("items") if isinstance(body, dict) else None
    if isinstance(items, list) and len(items) > most:
        raise _too_many(most)
    try:
        return BatchParameters.model_validate(body, from_attributes=True)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(found, body=body) from error


def parse_lines(data: bytes, most: int) -> BatchParameters:
    """JSON lines, an item each, as POST /v1/batches would have them; blank ones are skipped.

    Raises:
        MalformedRequest: a line is not JSON; names it.
        PayloadTooLarge: more than `most` items; the rest is not read.
        RequestValidationError: no item.
    """
    items: list[Any] = []
    for number, line in enumerate(io.BytesIO(data), 1):
        if not line.strip():
            continue
        if len(items) == most:
            raise _too_many(most)
        try:
            items.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise MalformedRequest(f"line {number} is not JSON in UTF-8: {error}") from error
    return parse_body({"items": items}, most)


def _too_many(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"too many items; a batch may have {most}")


def batch_view(record: BatchRecord, services: Services) -> BatchView:
    """A batch; the manifest's URL is signed here."""
    counts = {state.value: record.counts[state] for state in JobState}
    ended = record.total - counts["queued"] - counts["running"]
    key = record.manifest_key
    return BatchView(
        id=record.id,
        state=record.state,
        total=record.total,
        counts=BatchCounts(**counts),
        progress=round(ended / record.total, 4),
        created_at=record.created_at,
        finished_at=record.finished_at,
        manifest_url=services.objects.presigned_get(key) if key else None,
    )


def item_views(services: Services, batch: str, start: int, limit: int) -> list[BatchItemView]:
    """Items from an index on."""
    return [
        BatchItemView(
            index=job.place.position,
            custom_id=job.place.custom_id,
            generation_id=job.id,
            state=job.state,
            failure=failure_view(job),
        )
        for job in services.batches.jobs(batch, start, limit)
        if job.place is not None
    ]
