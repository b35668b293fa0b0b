"""``/v1/uploads``: control images."""

from __future__ import annotations

from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request

from service import answers
from service.auth import CallerDep
from service.content_types import read_image
from service.openapi import problems
from service.services import ServicesDep
from service.views import upload_view

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

_FILE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "required": True,
    "description": "a PNG, JPEG or WebP picture: as the part `file` of a form, or as the body",
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary"}},
            }
        },
        "image/png": _FILE,
        "image/jpeg": _FILE,
        "image/webp": _FILE,
        "application/octet-stream": _FILE,
    },
}


@router.post(
    "",
    operation_id="createUpload",
    status_code=201,
    response_model=answers.UploadView,
    responses=problems(400, 413, 415, 422, 503),
    openapi_extra={"requestBody": _BODY},
)
async def create(request: Request, services: ServicesDep, caller: CallerDep) -> answers.UploadView:
    """Store a control image, upright, without metadata, transparency over black, ≤ 2048 px."""
    data = await read_image(request)
    upload = await anyio.to_thread.run_sync(services.images.keep, data, caller.owner)
    return upload_view(upload)
