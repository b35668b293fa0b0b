"""What the routes work with: one object of long-lived parts, made once per app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from starlette.requests import Request

from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from jobs.batches import BatchStore
from jobs.connection import connect, connect_async
from jobs.events import EventFeed
from jobs.figures import Figures
from jobs.idempotency import IdempotencyClaims
from jobs.outbox import Outbox
from jobs.queue import JobQueue, TicketWriter
from jobs.record import RecordStore
from jobs.store import ObjectStore
from jobs.webhooks import EndpointStore
from service.images import ControlImages
from service.listening import Listeners
from service.metrics import Metrics
from service.settings import GatewaySettings
from service.uploads import Decoder


@dataclass(frozen=True)
class Services:
    """The gateway's parts.

    Their clients block, so routes that use them are plain functions; only `redis_async` does not:
    it is for what every request asks and for what waits.
    """

    settings: GatewaySettings
    catalogue: Catalogue
    records: RecordStore
    batches: BatchStore
    figures: Figures
    queue: JobQueue
    tickets: TicketWriter
    objects: ObjectStore
    images: ControlImages
    metrics: Metrics
    claims: IdempotencyClaims
    endpoints: EndpointStore
    outbox: Outbox
    feed: EventFeed
    listeners: Listeners
    redis: Redis
    redis_async: AsyncRedis

    async def aclose(self) -> None:
        """Close all connections, those of the event loop too."""
        await self.redis_async.aclose()
        self.close()

    def close(self) -> None:
        """Close the connections that block."""
        self.tickets.close()
        self.redis.close()
        self.queue.close()
        self.objects.close()


def make_services(settings: GatewaySettings) -> Services:
    """Connect nothing yet, read every manifest.

    Raises:
        ManifestError: a registry directory or a manifest in it is broken.
    """
    objects = ObjectStore(settings)
    redis, redis_async, queue = connect(settings), connect_async(settings), JobQueue(settings)
    return Services(
        settings=settings,
        catalogue=Catalogue((BUILTIN_DIR, *settings.registry_dirs)),
        records=RecordStore(redis, settings),
        batches=BatchStore(redis, settings),
        figures=Figures(redis, settings),
        queue=queue,
        tickets=TicketWriter(queue),
        objects=objects,
        images=ControlImages(objects, Decoder(settings), settings.max_inline_image_bytes),
        metrics=Metrics(),
        endpoints=EndpointStore(redis, settings),
        outbox=Outbox(redis, settings),
        claims=IdempotencyClaims(redis, settings),
        redis=redis,
        redis_async=redis_async,
        feed=EventFeed(redis_async, settings),
        listeners=Listeners(settings.max_listeners),
    )


async def _services(request: Request) -> Services:
    # Dependencies are coroutines throughout: a plain function costs each request a thread.
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
