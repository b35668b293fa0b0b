"""The gateway's errors: what a client can be told is wrong; problems.py turns them into answers.

    ServiceError
    ├── MalformedRequest         400  not JSON, or not a multipart form
    ├── Unauthorized             401  no API key, or not a valid one
    ├── NotFound                 404  no such generation, model or path
    ├── MethodNotAllowed         405  the path exists, the method does not
    ├── StateConflict            409  the generation is already over
    ├── IdempotencyInFlight      409  the same request is being worked on; carries Retry-After
    ├── Gone                     410  there was such a generation; its time is over
    ├── PayloadTooLarge          413  the body is over the limit
    ├── UnsupportedMediaType     415  a content type or image format that is not accepted
    ├── InvalidRequest           422  a field is wrong; its subclasses name the commonest reasons
    │   ├── UnknownModelName, UnknownHeadName, IncompatibleHeadName, UnknownUpload
    │   ├── UnknownAdapterName, IncompatibleAdapterName
    │   ├── IdempotencyKeyReused
    │   ├── InvalidBatch, with the errors of every item
    │   ├── UnusableReference
    │   └── InvalidImage, ImageTooLarge
    └── Unavailable              503  full or a peer is down; carries Retry-After
        ├── QueueIsFull, DecoderBusy, TooManyStreams
        └── StorageIsDown, QueueIsDown, NotReady

Errors of other rooms are mapped in problems.py; whatever is left is a bug: 500 without a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field


class FieldError(BaseModel):
    """One thing that is wrong, and where."""

    model_config = ConfigDict(extra="forbid")
    pointer: str | None = Field(
        None, description="JSON pointer into the body, as a URI fragment: `#/controls/0/weight`"
    )
    parameter: str | None = Field(
        None, description="query, path or header parameter, when it is not in the body"
    )
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details; `code` is stable and meant for programs."""

    type: str = Field(description="`urn:readout:problem:` and the code")
    title: str
    status: int
    detail: str
    instance: str = Field(description="path of the request")
    code: str
    request_id: str
    errors: list[FieldError] = Field(default_factory=list)


class ServiceError(Exception):
    """Base of everything the gateway answers with a problem."""

    status = 500
    code = "internal"
    title = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = headers or {}


class MalformedRequest(ServiceError):
    """The body cannot be parsed."""

    status, code, title = 400, "malformed_request", "Malformed request"


class Unauthorized(ServiceError):
    """No API key, or not a valid one."""

    status, code, title = 401, "unauthorized", "Unauthorized"

    def __init__(self, detail: str, *, known: bool = True) -> None:
        """`known` is False for a key that was sent and is not valid (RFC 6750, section 3)."""
        challenge = 'Bearer realm="readout"' + ("" if known else ', error="invalid_token"')
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


class NotFound(ServiceError):
    """No such thing."""

    status, code, title = 404, "not_found", "Not found"


class MethodNotAllowed(ServiceError):
    """The path exists, the method does not."""

    status, code, title = 405, "method_not_allowed", "Method not allowed"


class StateConflict(ServiceError):
    """The generation is in a state that does not allow this."""

    status, code, title = 409, "state_conflict", "State conflict"


class IdempotencyInFlight(ServiceError):
    """A request with the same idempotency key is being worked on."""

    status, code, title = 409, "idempotency_in_flight", "Request in flight"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class Gone(ServiceError):
    """There was such a generation; its record has expired."""

    status, code, title = 410, "gone", "Gone"


class PayloadTooLarge(ServiceError):
    """The body is over the limit."""

    status, code, title = 413, "payload_too_large", "Payload too large"


class UnsupportedMediaType(ServiceError):
    """A content type or image format that is not accepted."""

    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class InvalidRequest(ServiceError):
    """A field of the request is wrong."""

    status, code, title = 422, "invalid_request", "Invalid request"

    @classmethod
    def at(cls, pointer: str, detail: str) -> Self:
        """The error of one field of the body."""
        return cls(
            f"{pointer.removeprefix('#/')}: {detail}",
            errors=[FieldError(pointer=pointer, detail=detail)],
        )


class UnknownModelName(InvalidRequest):
    """No model of that name is installed."""

    code, title = "unknown_model", "Unknown model"


class UnknownHeadName(InvalidRequest):
    """No head of that name is installed."""

    code, title = "unknown_head", "Unknown head"


class IncompatibleHeadName(InvalidRequest):
    """The head belongs to another family of models."""

    code, title = "incompatible_head", "Incompatible head"


class UnknownAdapterName(InvalidRequest):
    """No adapter of that name is installed."""

    code, title = "unknown_adapter", "Unknown adapter"


class IncompatibleAdapterName(InvalidRequest):
    """The adapter belongs to another family of models, or is of another type."""

    code, title = "incompatible_adapter", "Incompatible adapter"


class UnknownUpload(InvalidRequest):
    """No upload has that id."""

    code, title = "unknown_upload", "Unknown upload"


class IdempotencyKeyReused(InvalidRequest):
    """The idempotency key came with another body before."""

    code, title = "idempotency_key_reused", "Idempotency key reused"


class InvalidBatch(InvalidRequest):
    """Items of a batch are wrong, so none of it runs."""

    code, title = "invalid_batch", "Invalid batch"


class UnusableReference(InvalidRequest):
    """The generation cannot be the reference of this one."""

    code, title = "unusable_reference", "Unusable reference"


class InvalidImage(InvalidRequest):
    """The bytes cannot be used as a control image."""

    code, title = "invalid_image", "Invalid image"


class ImageTooLarge(InvalidRequest):
    """The image has too many pixels."""

    code, title = "image_too_large", "Image too large"


class Unavailable(ServiceError):
    """The service cannot do it now; the same request may succeed later."""

    status, code, title = 503, "unavailable", "Service unavailable"


class QueueIsFull(Unavailable):
    """As many jobs wait as may wait."""

    code, title = "queue_full", "Queue full"


class DecoderBusy(Unavailable):
    """As many images wait to be decoded as may wait."""

    code, title = "decoder_busy", "Busy"


class TooManyStreams(Unavailable):
    """As many clients wait for events as may."""

    code, title = "too_many_streams", "Too many streams"


class StorageIsDown(Unavailable):
    """Object storage does not answer."""

    code, title = "storage_unavailable", "Object storage unavailable"


class QueueIsDown(Unavailable):
    """Redis does not answer."""

    code, title = "queue_unavailable", "Queue unavailable"


class NotReady(Unavailable):
    """A peer that the gateway needs does not answer."""

    code, title = "not_ready", "Not ready"
