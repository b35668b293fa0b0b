"""``/v1/webhook-endpoints``: where to be told, with which secret, and what came of it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from jobs.webhooks import INLINE, Endpoint
from service import webhook_views as views
from service.auth import CallerDep
from service.content_types import require_json
from service.errors import InvalidRequest
from service.openapi import problems
from service.services import ServicesDep

router = APIRouter(prefix="/v1/webhook-endpoints", tags=["webhooks"])


class LogQuery(BaseModel):
    """How much of the log."""

    model_config = ConfigDict(extra="forbid")
    limit: int = Field(20, ge=1, le=100)


@router.post(
    "",
    operation_id="createWebhookEndpoint",
    status_code=201,
    response_model=views.EndpointWithSecret,
    dependencies=[Depends(require_json)],
    responses=problems(400, 409, 413, 415, 422, 503),
)
def create(
    asked: views.EndpointCreate, services: ServicesDep, caller: CallerDep
) -> views.EndpointWithSecret:
    """Be told of generations that end, at this URL; the answer has the secret to verify with."""
    views.check_target(asked.url, "#/url", services.settings)
    made = services.endpoints.create(caller.owner, asked.url, asked.events, asked.description)
    return views.with_secret(made)


@router.get(
    "",
    operation_id="listWebhookEndpoints",
    response_model=views.EndpointList,
    responses=problems(503),
)
def list_endpoints(services: ServicesDep, caller: CallerDep) -> views.EndpointList:
    """Your endpoints, oldest first."""
    return views.EndpointList(
        items=[views.shown(one) for one in services.endpoints.list(caller.owner)]
    )


@router.get(
    "/{endpoint_id}",
    operation_id="getWebhookEndpoint",
    response_model=views.EndpointWithSecret,
    responses=problems(404, 503),
)
def get(endpoint_id: str, services: ServicesDep, caller: CallerDep) -> views.EndpointWithSecret:
    """An endpoint and its secrets; `inline` signs for a request's `webhook_url`."""
    return views.with_secret(services.endpoints.get(caller.owner, endpoint_id))


@router.patch(
    "/{endpoint_id}",
    operation_id="updateWebhookEndpoint",
    response_model=views.EndpointView,
    dependencies=[Depends(require_json)],
    responses=problems(400, 404, 413, 415, 422, 503),
)
def update(
    endpoint_id: str, asked: views.EndpointUpdate, services: ServicesDep, caller: CallerDep
) -> views.EndpointView:
    """Change what is given; `enabled: true` after a 410 sends to it again."""
    endpoint = services.endpoints.get(caller.owner, endpoint_id)
    if endpoint.id == INLINE:
        raise InvalidRequest("the inline endpoint has nothing to change; its secret can be rotated")
    if asked.url is not None:
        views.check_target(asked.url, "#/url", services.settings)
    changes = asked.changes()
    changed = services.endpoints.change(
        caller.owner, endpoint_id, lambda one: one.model_copy(update=changes)
    )
    return views.shown(changed)


@router.delete(
    "/{endpoint_id}",
    operation_id="deleteWebhookEndpoint",
    status_code=204,
    response_class=Response,
    responses=problems(404, 503),
)
def delete(endpoint_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Forget an endpoint, and what is not yet delivered to it."""
    services.endpoints.delete(caller.owner, endpoint_id)
    return Response(status_code=204)


@router.post(
    "/{endpoint_id}/rotate-secret",
    operation_id="rotateWebhookSecret",
    response_model=views.EndpointWithSecret,
    responses=problems(404, 413, 503),
)
def rotate(endpoint_id: str, services: ServicesDep, caller: CallerDep) -> views.EndpointWithSecret:
    """A new secret; for 24 hours messages carry a signature of the old one too."""
    return views.with_secret(services.endpoints.rotate(caller.owner, endpoint_id))


@router.get(
    "/{endpoint_id}/deliveries",
    operation_id="listWebhookDeliveries",
    response_model=views.DeliveryList,
    responses=problems(404, 422, 503),
)
def deliveries(
    endpoint_id: str,
    query: Annotated[LogQuery, Query()],
    services: ServicesDep,
    caller: CallerDep,
) -> views.DeliveryList:
    """What was sent to an endpoint and what came of it, newest first."""
    endpoint = services.endpoints.get(caller.owner, endpoint_id)
    log = services.outbox.log(caller.owner, endpoint.id, query.limit)
    return views.DeliveryList(items=[views.delivery_view(one) for one in log])


@router.post(
    "/{endpoint_id}/deliveries/{delivery_id}/redeliver",
    operation_id="redeliverWebhook",
    status_code=202,
    response_model=views.DeliveryView,
    responses=problems(404, 413, 503),
)
def redeliver(
    endpoint_id: str, delivery_id: str, services: ServicesDep, caller: CallerDep
) -> views.DeliveryView:
    """Send a message once more, with the same `webhook-id`."""
    endpoint: Endpoint = services.endpoints.get(caller.owner, endpoint_id)
    return views.delivery_view(services.outbox.redeliver(caller.owner, endpoint.id, delivery_id))
