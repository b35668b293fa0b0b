"""The request's reference → what the worker samples or inverts, earlier generations included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from heads_registry.manifest import ModelManifest
from jobs.controls import Origin
from jobs.errors import JobNotFound
from jobs.record import JobRecord
from jobs.request import (
    GenerationRequest,
    InvertedReference,
    Reference,
    SampledReference,
    StoredImage,
)
from jobs.result import StoredResult
from service import schemas
from service.errors import UnusableReference

TakeImage = Callable[[schemas.ImageSource, str], StoredImage]
FindRecord = Callable[[str], JobRecord]


@dataclass(frozen=True)
class Known:
    """What else the request says, which a reference must go with or may fall back on.

    Attributes:
        model: the model.
        prompt: of the request.
        negative_prompt: the effective one.
        height: the effective one, px.
        width: the effective one, px.
        num_inference_steps: as asked for; None: left to the defaults.
    """

    model: ModelManifest
    prompt: str
    negative_prompt: str
    height: int
    width: int
    num_inference_steps: int | None


def resolve_reference(
    asked: schemas.Reference, known: Known, take_image: TakeImage, find_record: FindRecord
) -> tuple[Reference, dict[str, Any]]:
    """The effective reference, and fields of the request whose default it is.

    Raises:
        UnusableReference: the generation is not there, not done, or of another kind.
        UnknownUpload, InvalidImage, ImageTooLarge: see `ControlImages.take`.
    """
    if asked.generation is not None:
        return _of_generation(asked, known, find_record)
    negative_prompt = _or(asked.negative_prompt, known.negative_prompt)
    if asked.seed is not None:
        scale = _or(asked.guidance_scale, known.model.defaults.guidance_scale)
        reference = SampledReference(
            prompt=asked.prompt or "",
            negative_prompt=negative_prompt,
            seed=asked.seed,
            guidance_scale=scale,
            eta=_or(asked.eta, 0.0),
        )
        return reference, {"guidance_scale": scale}
    source = schemas.ImageSource(upload_id=asked.upload_id, base64=asked.base64)
    inverted = InvertedReference(
        image=take_image(source, "#/reference"),
        prompt=_or(asked.prompt, known.prompt),
        negative_prompt=negative_prompt,
        fit=asked.fit,
    )
    return inverted, {}


def echo_reference(reference: Reference) -> schemas.Reference:
    """The effective reference in the public form."""
    if reference.origin is not None:
        origin = reference.origin
        return schemas.Reference(generation=origin.generation, index=origin.index)
    if isinstance(reference, SampledReference):
        return schemas.Reference(**reference.model_dump(exclude={"type", "origin"}))
    return schemas.Reference(
        upload_id=reference.image.upload_id,
        prompt=reference.prompt,
        negative_prompt=reference.negative_prompt,
        fit=reference.fit,
    )


def _of_generation(
    asked: schemas.Reference, known: Known, find_record: FindRecord
) -> tuple[Reference, dict[str, Any]]:
    """An unguided picture is sampled again; one that followed controls or adapters is inverted."""
    for name in ("prompt", "negative_prompt"):
        if getattr(asked, name) is not None:
            raise UnusableReference.at(
                f"#/reference/{name}", "a generation has its own; leave this out"
            )
    assert asked.generation is not None
    origin = Origin(generation=asked.generation, index=asked.index)
    record = _record(origin, "#/reference", find_record)
    request = record.request
    _check_same(record, known)
    defaults = {"num_inference_steps": request.num_inference_steps}
    if _is_plain(request) and request.start == "seed":
        reference = SampledReference(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=_stored(record, origin).seed,
            guidance_scale=request.guidance_scale,
            eta=request.eta,
            origin=origin,
        )
        return reference, defaults | {"guidance_scale": request.guidance_scale}
    inverted = InvertedReference(
        image=_image(record, origin),
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        origin=origin,
    )
    return inverted, {}


def find_picture(
    generation: str, index: int, where: str, find_record: FindRecord
) -> tuple[Origin, StoredImage]:
    """A picture of an earlier generation, of whatever model and size.

    Args:
        generation: its id.
        index: which of its pictures.
        where: pointer of the field that names it.
        find_record: finds it.

    Raises:
        UnusableReference: the generation is not there, not done, or has no such picture.
    """
    origin = Origin(generation=generation, index=index)
    return origin, _image(_record(origin, where, find_record), origin)


def _image(record: JobRecord, origin: Origin) -> StoredImage:
    stored = _stored(record, origin)
    return StoredImage(
        upload_id=origin.generation,
        key=stored.key,
        sha256=stored.sha256,
        width=stored.width,
        height=stored.height,
    )


def _stored(record: JobRecord, origin: Origin) -> StoredResult:
    assert record.result is not None
    return record.result.images[origin.index]


def _record(origin: Origin, where: str, find_record: FindRecord) -> JobRecord:
    pointer = f"{where}/generation"
    try:
        record = find_record(origin.generation)
    except JobNotFound as error:
        raise UnusableReference.at(
            pointer, "no generation has this id, or it has expired; upload its picture instead"
        ) from error
    if record.result is None:
        raise UnusableReference.at(pointer, f"it is {record.state}; it must have succeeded")
    if origin.index >= len(record.result.images):
        raise UnusableReference.at(
            f"{where}/index", f"it has {len(record.result.images)} pictures, counted from 0"
        )
    return record


def _check_same(record: JobRecord, known: Known) -> None:
    """A reference is of the same model and size, and an unguided one of as many steps."""
    pointer, request = "#/reference/generation", record.request
    if request.model != known.model.name:
        raise UnusableReference.at(
            pointer, f"it is of model {request.model!r}, not of {known.model.name!r}"
        )
    if (request.width, request.height) != (known.width, known.height):
        raise UnusableReference.at(
            pointer,
            f"it is {request.width} by {request.height} px, the picture {known.width} by "
            f"{known.height}; ask for the same size",
        )
    steps = known.num_inference_steps
    if _is_plain(request) and steps not in (None, request.num_inference_steps):
        raise UnusableReference.at(
            "#/num_inference_steps",
            f"the reference has {request.num_inference_steps} steps; leave this out",
        )


def _is_plain(request: GenerationRequest) -> bool:
    """Whether prompt and seed alone made it."""
    return not (request.controls or request.adapters or request.init_image or request.mask)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
