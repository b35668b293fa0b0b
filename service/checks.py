"""What a request must fulfil whatever its controls; each check names the field that is wrong.

All raise `InvalidRequest`.
"""

from __future__ import annotations

from heads_registry.manifest import ModelManifest
from service import schemas
from service.controls import Control as AskedControl
from service.errors import InvalidRequest
from service.tasks import RELATIVE


def check_prompts(asked: schemas.GenerationParameters, model: ModelManifest) -> None:
    """Whether texts fit the model, and there is something to draw."""
    texts: dict[str, str | None] = {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
    }
    if asked.reference is not None:
        texts["reference/prompt"] = asked.reference.prompt
        texts["reference/negative_prompt"] = asked.reference.negative_prompt
    for name, text in texts.items():
        if text is not None and len(text) > model.max_prompt_chars:
            raise InvalidRequest.at(
                f"#/{name}",
                f"{len(text)} characters; model {model.name!r} takes {model.max_prompt_chars}",
            )
    followed = asked.controls or asked.adapters or asked.reference or asked.init_image
    if not asked.prompt.strip() and not followed:
        raise InvalidRequest.at(
            "#/prompt", "empty, and there is no control: say what to draw, or add a control"
        )


def check_size(values: dict[str, int], model: ModelManifest) -> None:
    """Whether the model draws pictures of this size."""
    for name, size in values.items():
        if size % model.size_multiple or not model.min_size <= size <= model.max_size:
            raise InvalidRequest.at(
                f"#/{name}",
                f"{size} px; model {model.name!r} takes multiples of {model.size_multiple} "
                f"from {model.min_size} to {model.max_size}",
            )


def check_images(asked: schemas.GenerationParameters, model: ModelManifest) -> None:
    """Whether the model draws so many pictures."""
    if asked.weight_sweep is not None:
        count = len(asked.weight_sweep)
        if count > model.max_images:
            raise InvalidRequest.at(
                "#/weight_sweep",
                f"{count} weights; model {model.name!r} makes {model.max_images} images at a time",
            )
        if asked.num_images not in (1, count):
            raise InvalidRequest.at(
                "#/num_images", f"the sweep makes {count}, one a weight; leave this out"
            )
    if asked.num_images > model.max_images:
        raise InvalidRequest.at(
            "#/num_images",
            f"{asked.num_images} images; model {model.name!r} makes {model.max_images} at a time",
        )


def check_animation(
    asked: schemas.GenerationParameters, controls: tuple[AskedControl, ...], model: ModelManifest
) -> None:
    """Whether there is a drag to animate, and the model makes so many frames."""
    animation = asked.output.animation
    if animation is None:
        return
    if not any(isinstance(control, schemas.CorrespondenceControl) for control in controls):
        raise InvalidRequest.at(
            "#/output/animation",
            "frames show a drag on its way, and nothing is dragged; add points",
        )
    if animation.frames > model.max_images:
        raise InvalidRequest.at(
            "#/output/animation/frames",
            f"{animation.frames}; model {model.name!r} makes {model.max_images} images at a time",
        )
    for name in ("weight_sweep", "num_candidates"):
        if getattr(asked, name) is not None:
            raise InvalidRequest.at(f"#/{name}", "not together with an animation; ask for one")
    if asked.num_images not in (1, animation.frames):
        raise InvalidRequest.at(
            "#/num_images", f"the animation makes {animation.frames}, its frames; leave this out"
        )


def check_reference(
    asked: schemas.GenerationParameters, controls: tuple[AskedControl, ...]
) -> None:
    """Whether relative controls have a reference, and a reference and a sweep have a use."""
    relative = [control for control in controls if control.type in RELATIVE]
    compared = [
        control
        for control in relative
        if not (isinstance(control, schemas.AppearanceControl) and control.towards == "original")
    ]
    if compared and asked.reference is None:
        raise InvalidRequest.at(
            "#/reference",
            f"missing; {compared[0].type} compares with one: an upload_id, base64, a generation, "
            "or prompt and seed",
        )
    is_kept = asked.start == "reference" or (asked.mask is not None and asked.init_image is None)
    if asked.reference is not None and not compared and not is_kept:
        raise InvalidRequest.at(
            "#/reference", "no control compares with it; add one, or leave the reference out"
        )
    if asked.weight_sweep is not None and not relative:
        raise InvalidRequest.at(
            "#/weight_sweep", "it scales controls that compare with a reference; there is none"
        )


def check_faces(
    asked: schemas.GenerationParameters,
    controls: tuple[AskedControl, ...],
    detector: str | None,
) -> None:
    """Whether faces that are not given can be found, and there are some where they are meant."""
    faces = [control for control in controls if isinstance(control, schemas.IdentityControl)]
    for index, control in enumerate(controls):
        added = index >= len(asked.controls)
        if isinstance(control, schemas.IdentityControl) and control.boxes is None and not detector:
            raise InvalidRequest.at(
                "#/boxes" if added else f"#/controls/{index}/boxes",
                "missing, and this model has no face detector: give the face's box in the "
                "reference, and in the picture",
            )
        region = control.region if isinstance(control, schemas.AppearanceControl) else None
        if region is not None and region.boxes is None and not faces:
            raise InvalidRequest.at(
                "#/region/boxes" if added else f"#/controls/{index}/region/boxes",
                "missing; only beside an identity control are they its faces",
            )


def check_evolution(asked: schemas.GenerationParameters, steps: range) -> None:
    """Whether the steps to be shown are run."""
    for index, step in enumerate(asked.output.evolution_steps):
        if step not in steps:
            raise InvalidRequest.at(
                f"#/output/evolution_steps/{index}",
                f"step {step} is not run: the steps are {steps.start} to {steps.stop - 1}",
            )


def guided_steps(span: tuple[float, float], num_inference_steps: int) -> range:
    """The steps that a span means; its ends are rounded, as in the sampler (REFERENCE 4.11)."""
    start, end = (round(fraction * num_inference_steps) for fraction in span)
    return range(start, end)


def check_span(span: tuple[float, float], steps: range, pointer: str, what: str) -> None:
    """Whether a control or an adapter acts at any of the steps that are run."""
    guided = guided_steps(span, steps.stop)
    if not guided:
        raise InvalidRequest.at(
            pointer,
            f"{list(span)} contains none of the {steps.stop} steps, so the {what} "
            "would do nothing; widen it or take more steps",
        )
    if guided.stop <= steps.start:
        raise InvalidRequest.at(
            pointer,
            f"{list(span)} ends before step {steps.start} of {steps.stop}, the first that is run "
            f"at this strength, so the {what} would do nothing; end it later, such as at 1, or "
            "raise the strength",
        )


def check_candidates(
    asked: schemas.GenerationParameters, has_controls: bool, model: ModelManifest
) -> None:
    """Whether so many can be made, and there is something to rank them by."""
    count = asked.num_candidates
    if count is None:
        return
    if asked.weight_sweep is not None:
        detail = "a sweep makes one picture a weight, and ranks none; leave this out"
    elif count < asked.num_images:
        detail = f"{count} candidates for {asked.num_images} images; give at least as many"
    elif count > model.max_images:
        detail = f"{count}; model {model.name!r} makes {model.max_images} at a time"
    elif count > asked.num_images and not has_controls:
        detail = "candidates are ranked by their controls, and there are none; add one"
    else:
        return
    raise InvalidRequest.at("#/num_candidates", detail)
