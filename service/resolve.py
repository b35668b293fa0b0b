"""Public request → effective request: request > task > head manifest > model manifest."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from heads_registry.manifest import (
    Catalogue,
    HeadManifest,
    IncompatibleHead,
    ModelManifest,
    UnknownHead,
    UnknownModel,
)
from jobs.request import (
    MAX_SEED,
    GenerationRequest,
    OutputOptions,
    SpatialControl,
    StoredImage,
)
from service import schemas
from service.errors import (
    IncompatibleHeadName,
    InvalidRequest,
    UnknownHeadName,
    UnknownModelName,
)
from service.keypoints import OpenPoseKeypoints

TASK_DEFAULTS: dict[str, dict[str, Any]] = {"text_to_image": {}, "spatial": {"eta": 1.0}}
"""What table 1 of the paper says of a task, whatever the model: spatial control has eta 1."""

MODEL_DEFAULTS = (
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "eta",
    "form",
    "branch",
    "update_rule",
)
"""Request fields whose default is in the model's manifest under the same name."""

TakeImage = Callable[[schemas.ImageSource, str], StoredImage]


def resolve(
    asked: schemas.GenerationParameters,
    catalogue: Catalogue,
    default_model: str,
    take_image: TakeImage,
) -> GenerationRequest:
    """The effective request; images are taken last, when everything else is known to be right.

    Raises:
        InvalidRequest: a field does not fit the model or the head; names the field.
    """
    model = _model(asked.model or default_model, catalogue)
    task = asked.task or ("spatial" if asked.controls else "text_to_image")
    preset = TASK_DEFAULTS[task]
    values: dict[str, Any] = {
        name: _first(getattr(asked, name), preset.get(name), getattr(model.defaults, name))
        for name in MODEL_DEFAULTS
    }
    values["height"] = _first(asked.height, model.height)
    values["width"] = _first(asked.width, model.width)
    _check_prompts(asked, model)
    _check_task(asked, task)
    _check_size(values, model)
    _check_images(asked, model)
    _check_candidates(asked, model)
    _check_evolution(asked, values["num_inference_steps"])
    heads = [_head(asked.controls, index, model, catalogue) for index in range(len(asked.controls))]
    spans = [
        _span(control, index, head, model, values["num_inference_steps"])
        for index, (control, head) in enumerate(zip(asked.controls, heads, strict=True))
    ]
    return GenerationRequest(
        task=task,
        model=model.name,
        prompt=asked.prompt,
        num_images=asked.num_images,
        num_candidates=asked.num_candidates,
        keep=asked.keep,
        seed=_seed(asked),
        controls=tuple(
            _control(control, index, head, model, span, values, take_image)
            for index, (control, head, span) in enumerate(
                zip(asked.controls, heads, spans, strict=True)
            )
        ),
        output=OutputOptions(
            **asked.output.model_dump(exclude={"evolution_steps"}),
            evolution_steps=tuple(sorted(set(asked.output.evolution_steps))),
        ),
        **values,
    )


def echo(request: GenerationRequest) -> schemas.GenerationParameters:
    """The effective request in the public form: sent again, it means the same."""
    fields = request.model_dump(exclude={"controls", "output"})
    controls = tuple(
        schemas.SpatialControl(
            type=control.type,
            head=control.head,
            image=schemas.ImageSource(upload_id=control.image.upload_id) if control.image else None,
            keypoints=OpenPoseKeypoints.from_pose(control.pose) if control.pose else None,
            fit=control.fit,
            weight=control.weight,
            span=control.span,
        )
        for control in request.controls
    )
    output = schemas.OutputOptions(**request.output.model_dump())
    return schemas.GenerationParameters(controls=controls, output=output, **fields)


def guided_steps(span: tuple[float, float], num_inference_steps: int) -> range:
    """The steps that a span means; its ends are rounded, as in the sampler (REFERENCE 4.11)."""
    start, end = (round(fraction * num_inference_steps) for fraction in span)
    return range(start, end)


def _first(*candidates: Any) -> Any:
    return next(candidate for candidate in candidates if candidate is not None)


def _seed(asked: schemas.GenerationParameters) -> int:
    last = MAX_SEED - (max(asked.num_images, asked.num_candidates or 0) - 1)
    if asked.seed is None:
        return secrets.randbelow(2**32)
    if asked.seed > last:
        raise InvalidRequest.at(
            "#/seed", f"the last image would have a seed above {MAX_SEED}; use at most {last}"
        )
    return asked.seed


def _model(name: str, catalogue: Catalogue) -> ModelManifest:
    try:
        return catalogue.model(name)
    except UnknownModel as error:
        raise UnknownModelName.at("#/model", str(error)) from error


def _head(
    controls: tuple[schemas.SpatialControl, ...],
    index: int,
    model: ModelManifest,
    catalogue: Catalogue,
) -> HeadManifest:
    control, pointer = controls[index], f"#/controls/{index}"
    try:
        head = catalogue.head(model, control.head)
    except UnknownHead as error:
        raise UnknownHeadName.at(f"{pointer}/head", str(error)) from error
    except IncompatibleHead as error:
        raise IncompatibleHeadName.at(f"{pointer}/head", str(error)) from error
    if head.kind != control.type:
        raise IncompatibleHeadName.at(
            f"{pointer}/head", f"this is a {head.kind} head; a {control.type} control needs another"
        )
    if control.keypoints is not None and head.signal != "pose":
        raise InvalidRequest.at(
            f"{pointer}/keypoints",
            f"head {head.name!r} reads {head.signal}; only pose heads take key points; "
            "give an image",
        )
    return head


def _check_prompts(asked: schemas.GenerationParameters, model: ModelManifest) -> None:
    for name, text in (("prompt", asked.prompt), ("negative_prompt", asked.negative_prompt)):
        if text is not None and len(text) > model.max_prompt_chars:
            raise InvalidRequest.at(
                f"#/{name}",
                f"{len(text)} characters; model {model.name!r} takes {model.max_prompt_chars}",
            )
    if not asked.prompt.strip() and not asked.controls:
        raise InvalidRequest.at(
            "#/prompt", "empty, and there is no control: say what to draw, or add a control"
        )


def _check_task(asked: schemas.GenerationParameters, task: str) -> None:
    if task == "text_to_image" and asked.controls:
        raise InvalidRequest.at("#/task", "text_to_image takes no controls; use spatial")
    if task == "spatial" and not asked.controls:
        raise InvalidRequest.at("#/task", "spatial needs at least one control; use text_to_image")


def _check_size(values: dict[str, Any], model: ModelManifest) -> None:
    for name in ("height", "width"):
        size = values[name]
        if size % model.size_multiple or not model.min_size <= size <= model.max_size:
            raise InvalidRequest.at(
                f"#/{name}",
                f"{size} px; model {model.name!r} takes multiples of {model.size_multiple} "
                f"from {model.min_size} to {model.max_size}",
            )


def _check_images(asked: schemas.GenerationParameters, model: ModelManifest) -> None:
    if asked.num_images > model.max_images:
        raise InvalidRequest.at(
            "#/num_images",
            f"{asked.num_images} images; model {model.name!r} makes {model.max_images} at a time",
        )


def _check_candidates(asked: schemas.GenerationParameters, model: ModelManifest) -> None:
    count = asked.num_candidates
    if count is None:
        return
    if count < asked.num_images:
        detail = f"{count} candidates for {asked.num_images} images; give at least as many"
    elif count > model.max_images:
        detail = f"{count}; model {model.name!r} makes {model.max_images} at a time"
    elif count > asked.num_images and not asked.controls:
        detail = "candidates are ranked by their controls, and there are none; add one"
    else:
        return
    raise InvalidRequest.at("#/num_candidates", detail)


def _check_evolution(asked: schemas.GenerationParameters, num_inference_steps: int) -> None:
    for index, step in enumerate(asked.output.evolution_steps):
        if step >= num_inference_steps:
            raise InvalidRequest.at(
                f"#/output/evolution_steps/{index}",
                f"step {step} does not exist: the steps are 0 to {num_inference_steps - 1}",
            )


def _span(
    control: schemas.SpatialControl,
    index: int,
    head: HeadManifest,
    model: ModelManifest,
    num_inference_steps: int,
) -> tuple[float, float]:
    span: tuple[float, float] = _first(control.span, head.defaults.span, model.defaults.span)
    if not guided_steps(span, num_inference_steps):
        raise InvalidRequest.at(
            f"#/controls/{index}/span",
            f"{list(span)} contains none of the {num_inference_steps} steps, so the control "
            "would do nothing; widen it or take more steps",
        )
    return span


def _control(
    control: schemas.SpatialControl,
    index: int,
    head: HeadManifest,
    model: ModelManifest,
    span: tuple[float, float],
    values: dict[str, Any],
    take_image: TakeImage,
) -> SpatialControl:
    image = take_image(control.image, f"#/controls/{index}/image") if control.image else None
    keypoints = control.keypoints
    return SpatialControl(
        head=head.id,
        image=image,
        pose=keypoints.to_pose(values["width"] / values["height"]) if keypoints else None,
        fit=control.fit,
        weight=_first(control.weight, head.defaults.weight, model.defaults.weight),
        span=span,
    )
