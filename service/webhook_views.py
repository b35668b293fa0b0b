"""Webhook endpoints and deliveries as clients send and see them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from jobs.outbox import Delivery
from jobs.webhooks import Endpoint
from service.errors import InvalidRequest
from service.schemas import Text
from service.settings import GatewaySettings
from service.strict import Strict
from service.webhook_guard import MAX_URL_CHARS, ForbiddenTarget, check_url

EventType = Literal[
    "generation.succeeded", "generation.failed", "generation.canceled", "batch.finished"
]
_Events = Annotated[tuple[EventType, ...], Field(strict=False, max_length=4)]
_Url = Annotated[str, Field(max_length=MAX_URL_CHARS, description="https, a public address")]
_Description = Annotated[Text, Field(max_length=200)]


class EndpointCreate(Strict):
    """A webhook endpoint."""

    url: _Url
    events: _Events = Field((), description="types to be told of; empty: all")
    description: _Description = ""


class EndpointUpdate(Strict):
    """Changes of an endpoint; what is left out or null stays."""

    url: _Url | None = None
    events: _Events | None = None
    description: _Description | None = None
    enabled: bool | None = None

    def changes(self) -> dict[str, Any]:
        """Field → value, as jobs/webhooks.py has them."""
        found = self.model_dump(exclude={"enabled"}, exclude_none=True)
        if self.enabled is not None:
            found["disabled_reason"] = None if self.enabled else "disabled by its owner"
        return found


class EndpointView(Strict):
    """A webhook endpoint."""

    id: str
    url: str = Field(description="empty for `inline`: the request has it")
    events: tuple[str, ...]
    description: str
    enabled: bool
    disabled_reason: str | None
    created_at: datetime


class SecretView(Strict):
    """A secret to verify with, for a Standard Webhooks library."""

    value: str
    until: datetime | None = Field(description="until when it signs; null: the current one")


class EndpointWithSecret(EndpointView):
    """A webhook endpoint with its secrets, newest first."""

    secrets: list[SecretView]


class EndpointList(Strict):
    """Endpoints, oldest first."""

    items: list[EndpointView]


class AttemptView(Strict):
    """One POST and what came of it."""

    at: datetime
    status: int | None = Field(description="null: there was no answer")
    error: str | None = Field(description="null: delivered")
    duration_ms: int


class DeliveryView(Strict):
    """A message on its way to an endpoint."""

    id: str
    message_id: str = Field(description="`webhook-id`: the same in every attempt")
    event_type: str
    url: str = Field(description="of a request's `webhook_url`; empty: the endpoint's")
    body: str
    state: Literal["pending", "delivered", "failed"]
    created_at: datetime
    next_attempt_at: datetime | None
    attempts: list[AttemptView] = Field(description="the latest 20, oldest first")


class DeliveryList(Strict):
    """Deliveries, newest first."""

    items: list[DeliveryView]


def shown(endpoint: Endpoint) -> EndpointView:
    """Without its secrets."""
    return EndpointView(**_fields(endpoint))


def with_secret(endpoint: Endpoint) -> EndpointWithSecret:
    """With its secrets."""
    secrets = [SecretView(value=one.value, until=one.until) for one in endpoint.secrets]
    return EndpointWithSecret(**_fields(endpoint), secrets=secrets)


def delivery_view(delivery: Delivery) -> DeliveryView:
    """A delivery without its owner."""
    fields = delivery.model_dump(exclude={"owner", "endpoint_id", "tries", "attempts"})
    attempts = [AttemptView(**one.model_dump()) for one in delivery.attempts]
    return DeliveryView(**fields, attempts=attempts)


def _fields(endpoint: Endpoint) -> dict[str, Any]:
    fields = endpoint.model_dump(exclude={"secrets"})
    return fields | {"enabled": endpoint.disabled_reason is None}


def check_target(url: str, pointer: str, settings: GatewaySettings) -> None:
    """Refuse a URL that no webhook may go to.

    Raises:
        InvalidRequest: at `pointer`.
    """
    try:
        check_url(url, allow_insecure=settings.webhook_allow_insecure)
    except ForbiddenTarget as error:
        raise InvalidRequest.at(pointer, str(error)) from error
