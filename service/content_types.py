"""Bodies by content type: JSON where JSON is wanted, an image from a form or as the body itself."""

from __future__ import annotations

from starlette.datastructures import UploadFile
from starlette.requests import Request

from service.errors import FieldError, InvalidRequest, UnsupportedMediaType

LINES_TYPES = ("application/jsonl", "application/x-ndjson")
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "application/octet-stream")


def media_type(request: Request) -> str:
    """The body's content type without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def require_json(request: Request) -> None:
    """Refuse a body that does not say it is JSON.

    Raises:
        UnsupportedMediaType: says what to send.
    """
    found = media_type(request)
    kind, _, subtype = found.partition("/")
    if kind != "application" or not (subtype == "json" or subtype.endswith("+json")):
        raise UnsupportedMediaType(
            f"the body has content type {found or '(none)'}; send application/json"
        )


async def require_json_lines(request: Request) -> None:
    """Refuse a body that does not say it is JSON lines.

    Raises:
        UnsupportedMediaType: says what to send.
    """
    found = media_type(request)
    if found not in LINES_TYPES:
        raise UnsupportedMediaType(
            f"the body has content type {found or '(none)'}; send {' or '.join(LINES_TYPES)}"
        )


async def read_image(request: Request) -> bytes:
    """The image file of an upload, within the body's limit (middleware.BodyLimit).

    Raises:
        UnsupportedMediaType: neither a form nor an image.
        InvalidRequest: a form without exactly one part `file`.
    """
    found = media_type(request)
    if found == "multipart/form-data":
        return await _read_form(request)
    if found in IMAGE_TYPES:
        return await request.body()
    raise UnsupportedMediaType(
        f"the body has content type {found or '(none)'}; send multipart/form-data with a part "
        "`file`, or the image itself as image/png, image/jpeg or image/webp"
    )


async def _read_form(request: Request) -> bytes:
    async with request.form(max_files=1, max_fields=1) as form:
        file = form.get("file")
        if isinstance(file, UploadFile) and len(form.multi_items()) == 1:
            return await file.read()
    detail = "the form must have one part, a file named `file`"
    raise InvalidRequest(detail, errors=[FieldError(pointer="#/file", detail=detail)])
