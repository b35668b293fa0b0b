"""`create_app`: settings in, a FastAPI app out; wiring only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import anyio.to_thread
import structlog
from fastapi import FastAPI

from jobs.errors import JobsError
from service import openapi, problems
from service.auth import Authentication
from service.middleware import BodyLimit, RequestContext
from service.routes import (
    batches,
    catalogue,
    estimate,
    generations,
    health,
    uploads,
    webhooks,
)
from service.services import Services, make_services
from service.settings import GatewaySettings

MULTIPART_OVERHEAD_BYTES = 4096
_log = structlog.get_logger("gateway")


def create_app(settings: GatewaySettings) -> FastAPI:
    """The gateway.

    Raises:
        ManifestError: a registry directory or a manifest in it is broken.
    """
    services = make_services(settings)
    app = FastAPI(
        title="Readout",
        version=version("readout-service"),
        summary="Readout Guidance (Luo et al., CVPR 2024) as a service",
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    for module in (generations, batches, estimate, uploads, webhooks, catalogue, health):
        app.include_router(module.router)
    upload_bytes = settings.max_upload_bytes + MULTIPART_OVERHEAD_BYTES
    limits = {
        "/v1/uploads": upload_bytes,
        "/v1/batches": settings.max_batch_body_bytes,
        "/v1/batches/jsonl": settings.max_batch_body_bytes,
    }
    app.add_middleware(BodyLimit, default_bytes=settings.max_body_bytes, by_path=limits)
    app.add_middleware(Authentication, settings=settings, redis=services.redis_async)
    app.add_middleware(RequestContext, metrics=services.metrics)
    problems.install(app)
    openapi.install(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    try:
        await anyio.to_thread.run_sync(services.objects.ensure_bucket)
    except JobsError as error:  # not ready is a state that passes, not a reason to die
        _log.warning("object_storage_not_ready", reason=str(error))
    yield
    await services.aclose()
