"""Which waiting job is next, and which may be computed together with it.

Start-time fair queueing (Goyal, Vin and Cheng 1996) over flows, one for each caller and priority: a
job's *turn* is the virtual time or the end of its flow's last job, whichever is later, and its flow
then ends cost ÷ weight after that. The lowest turn is next, and virtual time is the turn of the job
taken last. So callers share the workers by work and not by number of jobs; an interactive job goes
before the batch jobs that wait, of its own caller too, until interactive work has had its
`weight` times the batch work's share; and nobody starves, since every turn comes.

The Lua scripts (jobs/scripts.py) keep turns and take jobs; here is what a request means to them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import StrEnum

from jobs.request import Adapter, Control, GenerationRequest

REFERENCE_PIXELS = 512 * 512


class Priority(StrEnum):
    """Who waits for a job: somebody, or nobody in particular."""

    INTERACTIVE = "interactive"
    BATCH = "batch"

    @property
    def weight(self) -> int:
        """Its share of the workers beside the other's, where both have work waiting."""
        return 8 if self is Priority.INTERACTIVE else 1


def cost(request: GenerationRequest) -> float:
    """Work in steps of one picture of 512 × 512 px; a guided step counts twice.

    A reference counts as one more picture, although it may be known already; a ControlNet, which is
    the U-Net's encoder and runs once a pass, as half a picture.
    """
    steps = range(request.first_step, request.num_inference_steps)

    def acting(part: Control | Adapter) -> float:
        """Steps on which it acts, of those that are run."""
        start, end = (fraction * steps.stop for fraction in part.span)
        return max(0.0, end - max(start, steps.start))

    guided = max((acting(control) for control in request.controls), default=0.0)
    controlnets = [adapter for adapter in request.adapters if adapter.type == "controlnet"]
    beside = 0.5 * sum(acting(adapter) for adapter in controlnets) / len(steps)
    size = request.height * request.width / REFERENCE_PIXELS
    reference = steps.stop if request.reference is not None else 0
    return (request.num_samples * (len(steps) + guided) * (1 + beside) + reference) * size


def batch_group(request: GenerationRequest) -> str:
    """Jobs with the same one may share a sampler batch: model, size, steps, guidance and heads.

    Of those with a reference, edits of the same one. Adapters may differ: each sees its own rows.
    """
    shared = request.model_dump(
        mode="json",
        include={
            "model",
            "height",
            "width",
            "num_inference_steps",
            "guidance_scale",
            "eta",
            "form",
            "branch",
            "update_rule",
            "adapter_gradient",
            "reference",
        },
    )
    shared["first_step"] = request.first_step
    shared["evolution_steps"] = request.output.evolution_steps
    shared["heads"] = sorted(f"{control.type} {control.head}" for control in request.controls)
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class BatchPlace:
    """Where a job stands in a batch."""

    batch: str
    position: int
    custom_id: str = ""


def slot(request: GenerationRequest, priority: Priority, place: BatchPlace | None = None) -> str:
    """What CREATE is told of a job's place in the line, as JSON."""
    values: dict[str, object] = {
        "lane": priority.value,
        "weight": priority.weight,
        "cost": cost(request),
        "group": batch_group(request),
        "images": request.num_samples,
        "pixels": request.num_samples * request.height * request.width,
    }
    return json.dumps(values | (asdict(place) if place else {}))
