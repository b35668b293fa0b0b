"""``/livez``, ``/readyz`` and ``/metrics``: for those who operate the service."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Response

from jobs.errors import JobsError
from service import answers
from service.errors import FieldError, NotReady
from service.metrics import CONTENT_TYPE
from service.openapi import problems
from service.services import ServicesDep

router = APIRouter(tags=["operation"])


@router.get("/livez", operation_id="livez", response_model=answers.Liveness, responses=problems())
async def livez() -> answers.Liveness:
    """The process answers; asks nobody else."""
    return answers.Liveness()


@router.get(
    "/readyz", operation_id="readyz", response_model=answers.Readiness, responses=problems(503)
)
def readyz(services: ServicesDep) -> answers.Readiness:
    """Redis and object storage answer; a missing bucket is created."""
    checks = {
        "redis": _check(services.records.counts),
        "object_storage": _check(services.objects.ensure_bucket),
    }
    broken = [
        FieldError(parameter=name, detail=state) for name, state in checks.items() if state != "ok"
    ]
    if broken:
        detail = "; ".join(f"{name}: {state}" for name, state in checks.items())
        raise NotReady(detail, errors=broken)
    return answers.Readiness(checks=checks)


@router.get("/metrics", operation_id="metrics", response_class=Response, responses=problems(503))
def metrics(services: ServicesDep) -> Response:
    """Prometheus' text format."""
    counts = services.records.counts()
    services.metrics.set_jobs({state.value: count for state, count in counts.items()})
    return Response(services.metrics.render(), media_type=CONTENT_TYPE)


def _check(ask: Callable[[], object]) -> str:
    try:
        ask()
    except JobsError as error:
        return str(error)
    return "ok"
