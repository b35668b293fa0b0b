"""Public request → effective request: request > head manifest > task > model manifest."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from heads_registry.catalogue import Catalogue, IncompatibleHead, UnknownHead, UnknownModel
from heads_registry.manifest import HeadManifest, ModelManifest
from jobs.controls import first_step
from jobs.request import (
    MAX_SEED,
    AppearanceControl,
    Control,
    CorrespondenceControl,
    GenerationRequest,
    IdentityControl,
    OutputOptions,
    Reference,
    SampledReference,
    SpatialControl,
    Task,
)
from service import adapters, schemas
from service.checks import (
    check_animation,
    check_candidates,
    check_evolution,
    check_faces,
    check_images,
    check_prompts,
    check_reference,
    check_size,
    check_span,
)
from service.controls import Control as AskedControl
from service.errors import (
    IncompatibleHeadName,
    InvalidRequest,
    UnknownHeadName,
    UnknownModelName,
)
from service.geometry import Picture
from service.init_image import check_init_image, take_init_image, take_mask
from service.references import FindRecord, Known, TakeImage, resolve_reference
from service.tasks import (
    REAL_DRAG_GUIDANCE_SCALE,
    RELATIVE,
    check_fields,
    controls_of,
    default_of,
    head_of_kind,
    task_of,
)

MODEL_DEFAULTS = (
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "eta",
    "form",
    "branch",
    "update_rule",
    "adapter_gradient",
)
"""Request fields whose default is in the model's manifest under the same name."""


@dataclass(frozen=True)
class Doors:
    """What a request may name that lies outside it.

    Attributes:
        catalogue: models and heads.
        default_model: where the request names none.
        take_image: an image of the request → the stored one.
        find_record: an earlier generation.
        face_detector: of models that have none of their own.
    """

    catalogue: Catalogue
    default_model: str
    take_image: TakeImage
    find_record: FindRecord
    face_detector: str | None = None


def resolve(asked: schemas.GenerationParameters, doors: Doors) -> GenerationRequest:
    """The effective request; images are taken last, when everything else is known to be right.

    Raises:
        InvalidRequest: a field does not fit the model or the head; names the field.
    """
    model = _model(asked.model or doors.default_model, doors.catalogue)
    task = task_of(asked)
    check_fields(asked, task)
    check_prompts(asked, model)
    size = {"height": _or(asked.height, model.height), "width": _or(asked.width, model.width)}
    check_size(size, model)
    check_images(asked, model)
    controls = controls_of(asked, task)
    heads = [_head(controls, index, model, doors.catalogue) for index in range(len(controls))]
    check_candidates(asked, bool(controls), model)
    check_reference(asked, controls)
    check_animation(asked, controls, model)
    check_faces(asked, controls, model.face_detector or doors.face_detector)
    reference, start, defaults = _reference(asked, task, model, size, doors)
    values = _values(asked, task, model, defaults) | size
    steps, strength = _steps(asked, start, values["num_inference_steps"])
    check_evolution(asked, steps)
    picture = Picture(**size, in_pixels=asked.unit == "px")
    draft = _Draft(asked, task, model, picture, values, steps)
    known = adapters.Known(doors.catalogue, model, picture, steps)
    beside = adapters.find_adapters(asked, controls, known)
    resolved = [
        draft.control(control, index, head, doors.take_image)
        for index, (control, head) in enumerate(zip(controls, heads, strict=True))
    ]
    init_image = None
    if strength is not None:
        init_image = take_init_image(asked, strength, doors.take_image, doors.find_record)
    return GenerationRequest(
        task=task,
        model=model.name,
        prompt=asked.prompt,
        num_candidates=asked.num_candidates,
        keep=asked.keep,
        num_images=_num_images(asked),
        seed=_seed(asked, reference, start, values["eta"]),
        controls=tuple(resolved),
        adapters=tuple(
            adapters.resolve_adapter(
                one, manifest, f"#/adapters/{index}", picture, doors.take_image
            )
            for index, (one, manifest) in enumerate(zip(asked.adapters, beside, strict=True))
        ),
        reference=reference,
        start=start,
        init_image=init_image,
        mask=take_mask(
            asked, init_image, reference, (size["width"], size["height"]), doors.take_image
        ),
        weight_sweep=asked.weight_sweep,
        output=OutputOptions(
            **asked.output.model_dump(exclude={"evolution_steps"}),
            evolution_steps=tuple(sorted(set(asked.output.evolution_steps))),
        ),
        **values,
    )


def _steps(
    asked: schemas.GenerationParameters, start: str, num_inference_steps: int
) -> tuple[range, float | None]:
    """The steps that are run, and the strength of the init image."""
    strength = check_init_image(asked, start, num_inference_steps)
    first = 0 if strength is None else first_step(strength, num_inference_steps)
    return range(first, num_inference_steps), strength


def _or(*candidates: Any) -> Any:
    return next(candidate for candidate in candidates if candidate is not None)


def _values(
    asked: schemas.GenerationParameters,
    task: Task,
    model: ModelManifest,
    by_reference: dict[str, Any],
) -> dict[str, Any]:
    """The plain fields; a reference's own settings stand between the task's and the model's.

    Its eta goes before the task's: with another one its noise gives another picture.
    """
    return {
        name: _or(
            getattr(asked, name),
            by_reference.get(name) if name == "eta" else None,
            default_of(name, task, model),
            by_reference.get(name),
            getattr(model.defaults, name),
        )
        for name in MODEL_DEFAULTS
    }


def _reference(
    asked: schemas.GenerationParameters,
    task: Task,
    model: ModelManifest,
    size: dict[str, int],
    doors: Doors,
) -> tuple[Reference | None, Any, dict[str, Any]]:
    """The reference, whose noise the picture begins with, and the defaults that follow."""
    if asked.reference is None:
        if asked.start == "reference":
            raise InvalidRequest.at("#/start", "there is no reference to begin with")
        return None, "seed", {}
    known = Known(
        model=model,
        prompt=asked.prompt,
        negative_prompt=_or(asked.negative_prompt, model.defaults.negative_prompt),
        num_inference_steps=asked.num_inference_steps,
        **size,
    )
    reference, defaults = resolve_reference(
        asked.reference, known, doors.take_image, doors.find_record
    )
    start = asked.start or ("reference" if task == "drag" else "seed")
    if isinstance(reference, SampledReference):
        if start == "reference":
            defaults["eta"] = reference.eta
    elif task == "drag":
        defaults.setdefault("guidance_scale", REAL_DRAG_GUIDANCE_SCALE)
    return reference, start, defaults


def _num_images(asked: schemas.GenerationParameters) -> int:
    if asked.weight_sweep is not None:
        return len(asked.weight_sweep)
    return asked.output.animation.frames if asked.output.animation else asked.num_images


def _seed(
    asked: schemas.GenerationParameters, reference: Reference | None, start: str, eta: float
) -> int:
    one_noise = asked.weight_sweep is not None or asked.output.animation is not None
    count = 1 if one_noise else max(asked.num_images, asked.num_candidates or 0)
    same_noise = start == "reference" and (isinstance(reference, SampledReference) or eta == 0)
    if same_noise and count > 1:
        raise InvalidRequest.at(
            "#/num_images",
            "every picture would begin with the reference's noise and be the same; ask for "
            'one, or let start be "seed"',
        )
    if start == "reference" and isinstance(reference, SampledReference):
        if asked.seed not in (None, reference.seed):
            raise InvalidRequest.at(
                "#/seed",
                f"the picture begins with the reference's noise, of seed {reference.seed}; leave "
                'this out, or let start be "seed"',
            )
        return reference.seed
    last = MAX_SEED - (count - 1)
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
    controls: tuple[AskedControl, ...], index: int, model: ModelManifest, catalogue: Catalogue
) -> HeadManifest:
    control, pointer = controls[index], f"#/controls/{index}"
    if control.head is None:
        return head_of_kind(control.type, pointer, model, catalogue)
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
    keypoints = isinstance(control, schemas.SpatialControl) and control.keypoints is not None
    if keypoints and head.signal != "pose":
        raise InvalidRequest.at(
            f"{pointer}/keypoints",
            f"head {head.name!r} reads {head.signal}; only pose heads take key points; "
            "give an image",
        )
    return head


@dataclass(frozen=True)
class _Draft:
    """What is known when controls are resolved."""

    asked: schemas.GenerationParameters
    task: Task
    model: ModelManifest
    picture: Picture
    values: dict[str, Any]
    steps: range

    def control(
        self, control: AskedControl, index: int, head: HeadManifest, take_image: TakeImage
    ) -> Control:
        """One control with its defaults; images are taken only after all checks of the control."""
        pointer = f"#/controls/{index}"
        common: dict[str, Any] = {
            "head": head.id,
            "span": self._span(control, pointer, head),
            "weight": self._default("weight", control, head),
        }
        if isinstance(control, schemas.CorrespondenceControl):
            points = "#/points" if self._is_added(index) else f"{pointer}/points"
            return CorrespondenceControl(
                points=self.picture.drags(control.points, points), **common
            )
        if isinstance(control, schemas.AppearanceControl):
            region = "#/region" if self._is_added(index) else f"{pointer}/region"
            return AppearanceControl(
                towards=control.towards,
                region=self.picture.region(control.region, region) if control.region else None,
                **common,
            )
        if isinstance(control, schemas.IdentityControl):
            boxes = "#/boxes" if self._is_added(index) else f"{pointer}/boxes"
            pairs = self.picture.pairs(control.boxes, boxes) if control.boxes else None
            return IdentityControl(boxes=pairs, **common)
        keypoints = control.keypoints
        aspect_ratio = self.picture.width / self.picture.height
        return SpatialControl(
            image=take_image(control.image, f"{pointer}/image") if control.image else None,
            pose=keypoints.to_pose(aspect_ratio) if keypoints else None,
            fit=control.fit,
            **common,
        )

    def _is_added(self, index: int) -> bool:
        """Whether the control comes from a short field."""
        return index >= len(self.asked.controls)

    def _default(self, name: str, control: AskedControl, head: HeadManifest) -> Any:
        is_relative = control.type in RELATIVE
        drags = self.task == "drag" and name == "span"  # until then it is the reference's picture
        by_task = default_of(name, self.task, self.model) if is_relative or drags else None
        if by_task is None and is_relative:  # under a task without such controls
            by_task = default_of(name, "appearance", self.model)
        return _or(
            getattr(control, name),
            getattr(head.defaults, name),
            by_task,
            getattr(self.model.defaults, name),
        )

    def _span(self, control: AskedControl, pointer: str, head: HeadManifest) -> tuple[float, float]:
        span: tuple[float, float] = self._default("span", control, head)
        check_span(span, self.steps, f"{pointer}/span", "control")
        return span
