"""``/v1/batches``: create, look at, list the items of, cancel, try failed ones again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field

from jobs.batches import BatchRecord
from jobs.errors import JobExpired, JobNotFound
from jobs.errors import StateConflict as Conflict
from service.auth import Caller, CallerDep
from service.batch_schemas import BatchItemList, BatchParameters, BatchView, UncheckedBatch
from service.batches import (
    batch_view,
    create_batch,
    enqueue,
    item_views,
    parse_body,
    parse_lines,
)
from service.content_types import require_json, require_json_lines
from service.errors import Gone, NotFound, StateConflict
from service.idempotency import REPLAYED, KeyDep
from service.openapi import problems
from service.services import Services, ServicesDep


class _JsonInThread(Request):
    """Parses its JSON beside the event loop: a batch may have a lot of it."""

    async def json(self) -> Any:
        """The body, parsed."""
        return await anyio.to_thread.run_sync(json.loads, await self.body())


class _Route(APIRoute):
    """A route whose requests are `_JsonInThread`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The usual one, given such a request."""
        handle = super().get_route_handler()

        async def handle_parsing_in_thread(request: Request) -> Response:
            return await handle(_JsonInThread(request.scope, request.receive))

        return handle_parsing_in_thread


router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=_Route)
_BATCH_ID = re.compile(r"batch_[0-9a-f]{24}")
_LINES: dict[str, Any] = {
    "required": True,
    "description": "one item of `POST /v1/batches` a line",
    "content": {
        "application/jsonl": {"schema": {"type": "string"}},
        "application/x-ndjson": {"schema": {"type": "string"}},
    },
}


async def _batch_id(batch_id: Annotated[str, Path(description="`id` of a batch")]) -> str:
    if not _BATCH_ID.fullmatch(batch_id):
        raise NotFound("no batch has this id; it is not even of the form of one")
    return batch_id


BatchId = Annotated[str, Depends(_batch_id)]


class ItemQuery(BaseModel):
    """Which items."""

    model_config = ConfigDict(extra="forbid")
    start: int = Field(0, ge=0, le=1_000_000, description="index of the first")
    limit: int = Field(100, ge=1, le=500)


@router.post(
    "",
    operation_id="createBatch",
    status_code=202,
    response_model=BatchView,
    dependencies=[Depends(require_json)],
    responses=problems(400, 409, 410, 413, 415, 422, 503, accepted=True),
)
def create(
    body: Annotated[UncheckedBatch, Body()],
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: KeyDep,
) -> BatchView:
    """Queue many generations: all of them, or none and what is wrong with each."""
    asked = parse_body(body, services.settings.max_batch_items)
    return _create(asked, request, response, services, caller, idempotency_key)


@router.post(
    "/jsonl",
    operation_id="createBatchFromLines",
    status_code=202,
    response_model=BatchView,
    dependencies=[Depends(require_json_lines)],
    responses=problems(400, 409, 410, 413, 415, 422, 503, accepted=True),
    openapi_extra={"requestBody": _LINES},
)
async def create_from_lines(
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: KeyDep,
) -> BatchView:
    """The same from a file of JSON lines."""
    data = await request.body()

    def work() -> BatchView:
        asked = parse_lines(data, services.settings.max_batch_items)
        return _create(asked, request, response, services, caller, idempotency_key)

    return await anyio.to_thread.run_sync(work)


def _create(
    asked: BatchParameters,
    request: Request,
    response: Response,
    services: Services,
    caller: Caller,
    idempotency_key: str | None,
) -> BatchView:
    made = create_batch(services, asked, caller, request.state.request_id, idempotency_key)
    response.headers["Location"] = f"{router.prefix}/{made.record.id}"
    if made.replayed:
        response.headers[REPLAYED] = "true"
    return _view(made.record, response, services)


@router.get(
    "/{batch_id}",
    operation_id="getBatch",
    response_model=BatchView,
    responses=problems(404, 410, 503, poll=True),
)
def get(
    batch_id: BatchId, response: Response, services: ServicesDep, caller: CallerDep
) -> BatchView:
    """A batch: its state, how many items are in which, and its manifest once it has ended."""
    with _batch_errors():
        return _view(services.batches.get(batch_id, caller.owner), response, services)


@router.get(
    "/{batch_id}/items",
    operation_id="listBatchItems",
    response_model=BatchItemList,
    responses=problems(404, 410, 422, 503),
)
def list_items(
    batch_id: BatchId,
    query: Annotated[ItemQuery, Query()],
    services: ServicesDep,
    caller: CallerDep,
) -> BatchItemList:
    """Its items with their generations, by index."""
    with _batch_errors():
        record = services.batches.get(batch_id, caller.owner)
    after = query.start + query.limit
    return BatchItemList(
        items=item_views(services, batch_id, query.start, query.limit),
        next_start=after if after < record.total else None,
    )


@router.post(
    "/{batch_id}/cancel",
    operation_id="cancelBatch",
    response_model=BatchView,
    responses=problems(404, 409, 410, 413, 503),
)
def cancel(
    batch_id: BatchId, response: Response, services: ServicesDep, caller: CallerDep
) -> BatchView:
    """Cancel what waits and runs; what has succeeded stays. Again: the same answer."""
    with _batch_errors():
        services.batches.get(batch_id, caller.owner)
        return _view(services.batches.cancel(batch_id), response, services)


@router.post(
    "/{batch_id}/retry",
    operation_id="retryBatch",
    status_code=202,
    response_model=BatchView,
    responses=problems(404, 409, 410, 413, 503, accepted=True),
)
def retry(
    batch_id: BatchId,
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
) -> BatchView:
    """Run the failed items again, as new generations in their places."""
    with _batch_errors():
        services.batches.get(batch_id, caller.owner)
        enqueue(services, services.batches.retry(batch_id, request.state.request_id))
        response.headers["Location"] = f"{router.prefix}/{batch_id}"
        return _view(services.batches.get(batch_id), response, services)


def _view(record: BatchRecord, response: Response, services: Services) -> BatchView:
    if not record.state.terminal:
        response.headers["Retry-After"] = str(services.settings.poll_interval_s)
    return batch_view(record, services)


@contextmanager
def _batch_errors() -> Iterator[None]:
    """What is said of generations elsewhere, said of batches."""
    try:
        yield
    except JobExpired as error:
        raise Gone("this batch has ended, and its time is over") from error
    except JobNotFound as error:
        raise NotFound("no batch has this id") from error
    except Conflict as error:
        raise StateConflict(str(error)) from error
