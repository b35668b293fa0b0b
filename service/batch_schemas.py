"""What clients send and get of batches; each item keeps its own errors, so that all are told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    Field,
    GetPydanticSchema,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import core_schema

from jobs.batches import BatchState
from jobs.record import JobState
from service.answers import FailureView
from service.errors import FieldError
from service.problems import field_errors
from service.schemas import GenerationParameters, Text
from service.strict import Strict

MAX_ITEMS = 10_000
"""Of the schema; `max_batch_items` of the settings is what counts."""


class BatchItemParameters(GenerationParameters):
    """A generation of a batch; control images come from uploads, not as base64."""

    custom_id: Text = Field("", max_length=128, description="your own name of it, once in a batch")


@dataclass(frozen=True)
class WrongItem:
    """An item that is not valid, and why."""

    errors: tuple[FieldError, ...]


def _keep_errors(
    value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
) -> BatchItemParameters | WrongItem:
    try:
        item: BatchItemParameters = handler(value)
    except ValidationError as error:
        return WrongItem(tuple(field_errors(error.errors(include_url=False), value)))
    return item


CheckedItem = Annotated[BatchItemParameters, WrapValidator(_keep_errors)]


class BatchParameters(Strict):
    """A batch: its items run when there is room, those that fit together in one pass."""

    items: Annotated[
        tuple[CheckedItem, ...], Field(strict=False, min_length=1, max_length=MAX_ITEMS)
    ]


UncheckedBatch = Annotated[
    Any,
    GetPydanticSchema(
        lambda _, handler: core_schema.json_or_python_schema(
            json_schema=handler(BatchParameters), python_schema=core_schema.any_schema()
        )
    ),
]
"""Anything, described as `BatchParameters`: for a route that checks it beside the event loop."""


class BatchCounts(Strict):
    """Items by state."""

    queued: int
    running: int
    succeeded: int
    failed: int
    canceled: int


class BatchView(Strict):
    """A batch."""

    id: str
    state: BatchState
    total: int
    counts: BatchCounts
    progress: float = Field(description="part of the items that have ended, 0 to 1")
    created_at: datetime
    finished_at: datetime | None
    manifest_url: str | None = Field(
        description="JSON lines, one an item, by `index`; a few seconds after the last has ended"
    )


class BatchItemView(Strict):
    """An item of a batch."""

    index: int
    custom_id: str
    generation_id: str = Field(description="see GET /v1/generations/{id}")
    state: JobState
    failure: FailureView | None


class BatchItemList(Strict):
    """Some items, by index; those whose records have expired are missing."""

    items: list[BatchItemView]
    next_start: int | None = Field(description="`start` of the next page; null: the last one")
