"""``/v1/estimate``: what a generation would need, by what this deployment has measured."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from pydantic import Field

from jobs.record import JobState
from jobs.request import StoredImage
from service import schemas
from service.auth import CallerDep
from service.content_types import require_json
from service.creation import doors_of
from service.openapi import problems
from service.references import TakeImage
from service.resolve import resolve
from service.services import Services, ServicesDep
from service.strict import Strict

router = APIRouter(prefix="/v1", tags=["generations"])


class EstimateView(Strict):
    """Medians of measured jobs alike; null is unknown, and nothing is guessed."""

    measured_jobs: int = Field(description="jobs of this kind that it is based on; 0: unknown")
    seconds: float | None = Field(description="once it runs, alone, on a warm worker")
    seconds_low: float | None = Field(description="the 10th percentile")
    seconds_high: float | None = Field(description="the 90th")
    memory_bytes: int | None = Field(description="largest peak on the device, of as many pictures")
    device: str | None = Field(description="where the last of them ran")
    jobs_waiting: int = Field(description="of all callers, now")


@router.post(
    "/estimate",
    operation_id="estimateGeneration",
    response_model=EstimateView,
    dependencies=[Depends(require_json)],
    responses=problems(400, 413, 415, 422, 503),
)
def estimate(
    asked: schemas.GenerationParameters, services: ServicesDep, caller: CallerDep
) -> EstimateView:
    """Time and memory of a generation; it is checked as if it were created, and nothing is."""
    doors = doors_of(services, caller.owner, _looker(services, caller.owner))
    request = resolve(asked, doors)
    found = services.figures.estimate(request)
    waiting = services.records.counts()[JobState.QUEUED]
    return EstimateView(**found.model_dump(), jobs_waiting=waiting)


def _looker(services: Services, owner: str) -> TakeImage:
    """Uploads are looked up; an image in the request is not stored for an estimate."""

    def look(source: schemas.ImageSource, pointer: str) -> StoredImage:
        if source.upload_id is not None:
            return services.images.take(source, pointer, owner)
        return StoredImage(upload_id="", key="", sha256="", width=1, height=1)

    return look
