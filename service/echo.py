"""The effective request in the public form: sent again, it means the same."""

from __future__ import annotations

from typing import Any

from jobs.request import (
    AppearanceControl,
    Control,
    CorrespondenceControl,
    GenerationRequest,
    IdentityControl,
)
from service import schemas
from service.geometry import echo_drags, echo_pairs, echo_region
from service.keypoints import OpenPoseKeypoints
from service.references import echo_reference


def echo(request: GenerationRequest) -> schemas.GenerationParameters:
    """The request as a client would have to send it to get exactly this."""
    fields = request.model_dump(exclude={"controls", "output", "reference"})
    return schemas.GenerationParameters(
        controls=tuple(_control(control) for control in request.controls),
        output=schemas.OutputOptions(**request.output.model_dump()),
        reference=echo_reference(request.reference) if request.reference else None,
        **fields,
    )


def _control(control: Control) -> Any:
    common: dict[str, Any] = {
        "type": control.type,
        "head": control.head,
        "weight": control.weight,
        "span": control.span,
    }
    if isinstance(control, CorrespondenceControl):
        return schemas.CorrespondenceControl(points=echo_drags(control.points), **common)
    if isinstance(control, AppearanceControl):
        region = echo_region(control.region) if control.region else None
        return schemas.AppearanceControl(towards=control.towards, region=region, **common)
    if isinstance(control, IdentityControl):
        pairs = echo_pairs(control.boxes) if control.boxes else None
        return schemas.IdentityControl(boxes=pairs, **common)
    image = schemas.ImageSource(upload_id=control.image.upload_id) if control.image else None
    return schemas.SpatialControl(
        image=image,
        keypoints=OpenPoseKeypoints.from_pose(control.pose) if control.pose else None,
        fit=control.fit,
        **common,
    )
