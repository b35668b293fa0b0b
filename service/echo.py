"""The effective request in the public form: sent again, it means the same."""

from __future__ import annotations

from typing import Any

from jobs.request import (
    Adapter,
    AppearanceControl,
    Control,
    CorrespondenceControl,
    GenerationRequest,
    IdentityControl,
    SpatialControl,
)
from service import schemas
from service.geometry import echo_drags, echo_pairs, echo_region
from service.init_image import echo_init_image
from service.keypoints import OpenPoseKeypoints
from service.references import echo_reference


def echo(request: GenerationRequest) -> schemas.GenerationParameters:
    """The request as a client would have to send it to get exactly this."""
    fields = request.model_dump(
        exclude={"controls", "adapters", "output", "reference", "init_image", "mask"}
    )
    if request.init_image is not None:
        fields |= echo_init_image(request.init_image)
    return schemas.GenerationParameters(
        controls=tuple(_control(control) for control in request.controls),
        adapters=tuple(_adapter(adapter) for adapter in request.adapters),
        output=schemas.OutputOptions(**request.output.model_dump()),
        reference=echo_reference(request.reference) if request.reference else None,
        mask=schemas.ImageSource(upload_id=request.mask.upload_id) if request.mask else None,
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
    return schemas.SpatialControl(**_shown(control), **common)


def _adapter(adapter: Adapter) -> schemas.Adapter:
    return schemas.Adapter(
        type=adapter.type,
        model=adapter.model,
        scale=adapter.scale,
        span=adapter.span,
        **_shown(adapter),
    )


def _shown(part: SpatialControl | Adapter) -> dict[str, Any]:
    """The image or the key points, and how they are fitted to the picture."""
    image = schemas.ImageSource(upload_id=part.image.upload_id) if part.image else None
    keypoints = OpenPoseKeypoints.from_pose(part.pose) if part.pose else None
    return {"image": image, "keypoints": keypoints, "fit": part.fit}
