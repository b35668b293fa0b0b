"""The one handler: any exception to an RFC 9457 problem+json answer, never with a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from jobs import errors as jobs_errors
from service import errors
from service.errors import FieldError, Problem, ServiceError

PROBLEM_JSON = "application/problem+json"
MAX_ERRORS = 20
"""A hostile body can be wrong in a million places; the answer names the first of them."""

_BY_STATUS: dict[int, type[ServiceError]] = {
    400: errors.MalformedRequest,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    413: errors.PayloadTooLarge,
    415: errors.UnsupportedMediaType,
}
_FROM_JOBS: dict[type[Exception], Callable[[Exception], ServiceError]] = {
    jobs_errors.JobNotFound: lambda error: errors.NotFound("no generation has this id"),
    jobs_errors.JobExpired: lambda error: errors.Gone(
        "the generation has ended, and its record and results have expired"
    ),
    jobs_errors.EndpointNotFound: lambda error: errors.NotFound("no webhook endpoint has this id"),
    jobs_errors.DeliveryNotFound: lambda error: errors.NotFound("no delivery has this id"),
    jobs_errors.TooManyEndpoints: lambda error: errors.StateConflict(str(error)),
    jobs_errors.KeyReused: lambda error: errors.IdempotencyKeyReused(str(error)),
    jobs_errors.KeyInFlight: lambda error: errors.IdempotencyInFlight(str(error)),
    jobs_errors.QueueFull: lambda error: errors.QueueIsFull(str(error)),
    jobs_errors.StateConflict: lambda error: errors.StateConflict(str(error)),
    jobs_errors.QueueUnavailable: lambda error: errors.QueueIsDown(
        "the job queue does not answer; try again later"
    ),
    jobs_errors.StorageFull: lambda error: errors.StorageIsDown(
        "object storage is full; the operator must make room; try again later"
    ),
    jobs_errors.StorageUnavailable: lambda error: errors.StorageIsDown(
        "object storage does not answer; try again later"
    ),
}
_JSON_HINT = "not JSON in UTF-8, nested too deeply, or a number has too many digits"


def install(app: FastAPI) -> None:
    """Make every expected exception an answer; the rest is caught by `RequestContext`."""
    for kind in (ServiceError, jobs_errors.JobsError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, exception: Exception) -> Response:
    error = to_service_error(exception)
    if error.status == 500:
        raise exception
    return problem_response(request, error)


def to_service_error(exception: Exception) -> ServiceError:
    """What the client is told about an exception; a bug is told as nothing but that."""
    if isinstance(exception, ServiceError):
        return exception
    if isinstance(exception, RequestValidationError):
        return _from_validation(exception.errors(), exception.body)
    if isinstance(exception, HTTPException):
        return _from_http(exception)
    for kind in type(exception).__mro__:
        if kind in _FROM_JOBS:
            return _FROM_JOBS[kind](exception)
    return ServiceError("an error on our side; it is logged under this request_id")


def problem_response(request: Request, error: ServiceError) -> Response:
    """The error as application/problem+json."""
    problem = Problem(
        type=f"urn:readout:problem:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        instance=request.url.path,
        code=error.code,
        request_id=getattr(request.state, "request_id", ""),
        errors=list(error.errors),
    )
    headers = dict(error.headers)
    if isinstance(error, errors.Unavailable):
        busy_retry_s = request.app.state.services.settings.busy_retry_s
        headers.setdefault("Retry-After", str(busy_retry_s))
    content = problem.model_dump(mode="python", exclude_none=True)
    body = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, error.status, headers, media_type=PROBLEM_JSON)


def _from_http(exception: HTTPException) -> ServiceError:
    kind = _BY_STATUS.get(exception.status_code, errors.MalformedRequest)
    headers = dict(exception.headers or {})
    if exception.status_code == 404:
        return kind("nothing is at this path", headers=headers)
    if exception.status_code == 405:
        allowed = headers.get("allow", headers.get("Allow", ""))
        return kind(f"this path allows {allowed}".rstrip(), headers=headers)
    detail = str(exception.detail)
    if detail == "There was an error parsing the body":
        detail = f"the body cannot be parsed: {_JSON_HINT}"
    return kind(detail, headers=headers)


def _from_validation(found: Sequence[Any], body: Any) -> ServiceError:
    if found and found[0]["type"] == "json_invalid":
        reason, position = found[0]["ctx"]["error"], found[0]["loc"][-1]
        return errors.MalformedRequest(f"the body is not JSON: {reason} at character {position}")
    listed = [_field_error(error, body) for error in found[:MAX_ERRORS]]
    if not listed:
        return errors.InvalidRequest("the request is not valid")
    where = listed[0].parameter or (listed[0].pointer or "").removeprefix("#/") or "the body"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return errors.InvalidRequest(f"{where}: {listed[0].detail}{more}", errors=listed)


def field_errors(found: Sequence[Any], body: Any) -> list[FieldError]:
    """pydantic's errors of a value that is the whole body, as clients are told them."""
    return [
        FieldError(pointer=_pointer(error["loc"], body), detail=_message(error))
        for error in found[:MAX_ERRORS]
    ]


def _field_error(error: Any, body: Any) -> FieldError:
    place, *path = error["loc"]
    if place == "body":
        if error["type"].startswith("union_tag"):  # the discriminator is what is wrong
            path.append("type")
        return FieldError(pointer=_pointer(path, body), detail=_message(error))
    name = _encodable(str(path[0])) if path else place
    return FieldError(parameter=name, detail=_message(error))


def _encodable(name: str) -> str:
    """JSON allows half a surrogate pair in a field's name, UTF-8 does not."""
    return name.encode("utf-8", "replace").decode()


def _message(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown field; it is refused so that no setting is silently ignored"
    if error["type"] in ("missing", "union_tag_not_found"):
        return "missing; it is required"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message.replace("Input should be", "must be", 1)


def _pointer(path: Sequence[str | int], body: Any) -> str:
    """RFC 6901 pointer in URI-fragment form; parts that are not in the body (union tags) go."""
    parts: list[str] = []
    node = body
    for position, part in enumerate(path):
        last = position == len(path) - 1
        known = range(len(node)) if isinstance(node, list) else node
        if isinstance(known, dict | range) and part in known:
            node = node[part]
        elif not last or (isinstance(node, dict) and node.get("type") == part):
            continue
        parts.append(_encodable(str(part)).replace("~", "~0").replace("/", "~1"))
    return "#/" + "/".join(parts) if parts else "#"
