"""``/v1/generations``: create, look at, list, cancel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from jobs import errors as jobs_errors
from jobs.record import JobRecord, JobState, is_job_id
from service import answers, schemas
from service.auth import CallerDep
from service.content_types import require_json
from service.creation import create_generation
from service.errors import FieldError, InvalidRequest, NotFound, StateConflict, TooManyStreams
from service.idempotency import REPLAYED, KeyDep
from service.listening import (
    EventStream,
    EventStreamResponse,
    LastEventIdDep,
    WaitDep,
    wait_until_over,
)
from service.openapi import EVENT_STREAM, problems
from service.services import Services, ServicesDep
from service.views import generation_summary, generation_view, preview_event

router = APIRouter(prefix="/v1/generations", tags=["generations"])


async def _generation_id(
    generation_id: Annotated[str, Path(description="`id` of a generation")],
) -> str:
    if not is_job_id(generation_id):
        raise NotFound("no generation has this id; it is not even of the form of one")
    return generation_id


GenerationId = Annotated[str, Depends(_generation_id)]


class ListQuery(BaseModel):
    """Which page of the list."""

    model_config = ConfigDict(extra="forbid")
    cursor: str | None = Field(
        None, max_length=64, description="`next_cursor` of the page before; null: the newest"
    )
    limit: int = Field(20, ge=1, le=100)
    state: JobState | None = Field(None, description="only these")


@router.post(
    "",
    operation_id="createGeneration",
    status_code=202,
    response_model=answers.GenerationView,
    dependencies=[Depends(require_json)],
    responses=problems(400, 409, 410, 413, 415, 422, 503, accepted=True),
)
async def create(
    asked: schemas.GenerationParameters,
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: KeyDep,
    wait_s: WaitDep,
) -> answers.GenerationView:
    """Queue a generation; the same `Idempotency-Key` again gets the first answer."""
    request_id = request.state.request_id
    made = await run_sync(create_generation, services, asked, caller, request_id, idempotency_key)
    response.headers["Location"] = f"{router.prefix}/{made.record.id}"
    if made.replayed:
        response.headers[REPLAYED] = "true"
    record = await _wait(made.record, wait_s, response, services)
    if record.state.terminal:
        response.status_code = 200
    return await _soon_viewed(record, response, services)


@router.get(
    "",
    operation_id="listGenerations",
    response_model=answers.GenerationList,
    responses=problems(422, 503),
)
def list_generations(
    query: Annotated[ListQuery, Query()], services: ServicesDep, caller: CallerDep
) -> answers.GenerationList:
    """Your generations, newest first; a page is not shifted by what is created meanwhile."""
    try:
        page = services.records.list(query.cursor, query.limit, query.state, caller.owner)
    except ValueError as error:
        wrong = FieldError(parameter="cursor", detail=str(error))
        raise InvalidRequest(f"cursor: {error}", errors=[wrong]) from error
    items = [generation_summary(record) for record in page.records]
    return answers.GenerationList(items=items, next_cursor=page.next_cursor)


@router.get(
    "/{generation_id}",
    operation_id="getGeneration",
    response_model=answers.GenerationView,
    responses=problems(404, 410, 503, poll=True),
)
async def get(
    generation_id: GenerationId,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    wait_s: WaitDep,
) -> answers.GenerationView:
    """A generation: its state, and its result once it has one."""
    record = await run_sync(services.records.get, generation_id, caller.owner)
    if not record.state.terminal:
        record = await _wait(record, wait_s, response, services)
    return await _soon_viewed(record, response, services)


@router.get(
    "/{generation_id}/events",
    operation_id="streamGenerationEvents",
    response_class=EventStreamResponse,
    responses=problems(404, 410, 422, 503) | EVENT_STREAM,
)
async def events(
    generation_id: GenerationId, services: ServicesDep, caller: CallerDep, after: LastEventIdDep
) -> Response:
    """What happens to a generation, as server-sent events, until it is over.

    Types: `queued`, `position`, `started`, `progress`, `preview`, `requeued`, and one of
    `succeeded`, `failed` and `canceled`, whose data is the generation. Reconnecting with
    `Last-Event-ID` resumes.
    """
    record = await run_sync(services.records.get, generation_id, caller.owner)

    def show(job_id: str) -> dict[str, Any]:
        settings, now = services.settings, services.records.get(job_id)
        view = generation_view(now, services.objects, settings.presigned_url_expiry_s)
        return view.model_dump(mode="json")

    def show_preview(data: Mapping[str, Any]) -> dict[str, Any]:
        return preview_event(data, services.objects)

    stream = EventStream(services.feed, services.records, record, after, show, show_preview)
    if await stream.is_over():
        return Response(status_code=204)  # which tells a browser not to come again
    if services.listeners.full:
        raise TooManyStreams("too many clients wait for events already; poll instead")
    return EventStreamResponse(_counted(stream, services))


@router.post(
    "/{generation_id}/cancel",
    operation_id="cancelGeneration",
    response_model=answers.GenerationView,
    responses=problems(404, 409, 410, 413, 503),
)
def cancel(
    generation_id: GenerationId, response: Response, services: ServicesDep, caller: CallerDep
) -> answers.GenerationView:
    """Cancel a generation; computing stops at the next step. Canceling it again changes nothing."""
    try:
        record = services.records.request_cancel(generation_id, caller.owner)
    except jobs_errors.StateConflict as error:
        record = services.records.get(generation_id, caller.owner)
        if record.state != JobState.CANCELED:
            raise StateConflict(
                f"the generation has already {record.state}; there is nothing to cancel"
            ) from error
    return _view(record, response, services)


async def _counted(stream: EventStream, services: Services) -> AsyncIterator[bytes]:
    """The frames; the client counts as one that waits until they end or it has gone."""
    with services.listeners.one_more():
        async for frame in stream.frames():
            yield frame


async def _wait(
    record: JobRecord, seconds: int, response: Response, services: Services
) -> JobRecord:
    """The record when it is over or `seconds` have passed; at once where too many wait."""
    if not seconds or services.listeners.full:
        return record
    with services.listeners.one_more():
        await wait_until_over(services.feed, record.id, seconds)
    response.headers["Preference-Applied"] = f"wait={seconds}"
    try:
        return await run_sync(services.records.get, record.id)
    except jobs_errors.QueueUnavailable:
        return record  # what was created is not undone by this


async def _soon_viewed(
    record: JobRecord, response: Response, services: Services
) -> answers.GenerationView:
    """`_view`; in a thread where URLs are to be signed, which takes its time."""
    if record.result is None:
        return _view(record, response, services)
    return await run_sync(_view, record, response, services)


def _view(record: JobRecord, response: Response, services: Services) -> answers.GenerationView:
    settings = services.settings
    if not record.state.terminal:
        response.headers["Retry-After"] = str(settings.poll_interval_s)
    return generation_view(record, services.objects, settings.presigned_url_expiry_s)
