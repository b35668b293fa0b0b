"""Records and manifests as clients see them: presigned URLs for keys, ranges for every field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

from pydantic.fields import FieldInfo

from heads_registry.catalogue import Catalogue
from heads_registry.manifest import AdapterManifest, HeadManifest, ModelManifest
from jobs.record import JobRecord
from jobs.result import (
    Preview,
    ResultSummary,
    StoredAnimation,
    StoredFrame,
    StoredReadout,
    StoredResult,
)
from jobs.store import ObjectStore
from service import answers, schemas
from service.echo import echo
from service.geometry import echo_pairs
from service.images import Upload
from service.resolve import MODEL_DEFAULTS
from service.strict import Strict
from service.tasks import TABLE


def generation_view(
    record: JobRecord, objects: ObjectStore, expiry_s: int
) -> answers.GenerationView:
    """One generation; URLs are signed here, without asking the storage."""
    running = record.state == "running"
    return answers.GenerationView(
        id=record.id,
        state=record.state,
        attempt=record.attempt,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        progress=_progress(record, objects) if running else None,
        failure=failure_view(record),
        result=_result(record.result, objects, expiry_s) if record.result else None,
        request=echo(record.request).model_copy(update={"webhook_url": record.webhook_url}),
    )


def generation_summary(record: JobRecord) -> answers.GenerationSummary:
    """One line of the list."""
    return answers.GenerationSummary(
        id=record.id,
        state=record.state,
        attempt=record.attempt,
        model=record.request.model,
        prompt=record.request.prompt,
        num_images=record.request.num_images,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        failure=failure_view(record),
    )


def upload_view(upload: Upload) -> answers.UploadView:
    """An upload without its place in storage."""
    return answers.UploadView(**upload.model_dump(exclude={"key", "owner"}))


def head_view(head: HeadManifest, catalogue: Catalogue) -> answers.HeadView:
    """A head and the models it fits."""
    accepts: list[Literal["image", "keypoints"]] = ["image"] if head.kind == "spatial" else []
    if head.kind == "spatial" and head.signal == "pose":
        accepts.append("keypoints")
    return answers.HeadView(
        id=head.id,
        name=head.name,
        title=head.title,
        description=head.description,
        kind=head.kind,
        signal=head.signal,
        family=head.base_model,
        models=sorted(m.name for m in catalogue.models.values() if m.family == head.base_model),
        accepts=accepts,
        defaults=head.defaults.model_dump(),
        metrics=head.metrics,
        licence=head.licence,
        source=head.source,
    )


def adapter_view(adapter: AdapterManifest, catalogue: Catalogue) -> answers.AdapterView:
    """An adapter and the models it fits."""
    is_pose = adapter.conditioning == "pose"
    return answers.AdapterView(
        id=adapter.id,
        name=adapter.name,
        title=adapter.title,
        description=adapter.description,
        type=adapter.type,
        conditioning=adapter.conditioning,
        family=adapter.base_model,
        models=sorted(m.name for m in catalogue.models.values() if m.family == adapter.base_model),
        accepts=["image", "keypoints"] if is_pose else ["image"],
        defaults=adapter.defaults.model_dump(),
        max_scale=adapter.max_scale,
        size_multiple=adapter.size_multiple,
        metrics=adapter.metrics,
        licence=adapter.licence,
    )


def model_view(model: ModelManifest, catalogue: Catalogue, default_model: str) -> answers.ModelView:
    """A model with what every request field may be for it."""
    return answers.ModelView(
        name=model.name,
        title=model.title,
        description=model.description,
        family=model.family,
        pipeline=model.pipeline,
        is_default=model.name == default_model,
        heads=[head.id for head in catalogue.heads_for(model)],
        adapters=[adapter.id for adapter in catalogue.adapters_for(model)],
        parameters=_parameters(model),
        metrics=model.metrics,
        licence=model.licence,
    )


def failure_view(record: JobRecord) -> answers.FailureView | None:
    """Why it failed, if it did."""
    return answers.FailureView(**record.failure.model_dump()) if record.failure else None


def previews_view(previews: Sequence[Preview], objects: ObjectStore) -> list[answers.PreviewView]:
    """Frames that are in storage already, with URLs."""
    return [
        answers.PreviewView(index=frame.index, **_frame(frame, objects).model_dump())
        for frame in previews
    ]


def preview_event(data: Mapping[str, Any], objects: ObjectStore) -> dict[str, Any]:
    """The data of a `preview` event with URLs in the place of keys."""
    frames = [Preview(step=data["step"], **image) for image in data["images"]]
    images = [view.model_dump(mode="json") for view in previews_view(frames, objects)]
    return {"attempt": data["attempt"], "step": data["step"], "images": images}


def _progress(record: JobRecord, objects: ObjectStore) -> answers.ProgressView | None:
    if record.progress is None:
        return None
    progress = record.progress
    return answers.ProgressView(
        step=progress.step,
        total_steps=progress.total_steps,
        stage=progress.stage,
        distances=[
            answers.CurrentDistanceView(**distance.model_dump()) for distance in progress.distances
        ],
        previews=previews_view(record.previews, objects),
    )


def _result(result: ResultSummary, objects: ObjectStore, expiry_s: int) -> answers.ResultView:
    return answers.ResultView(
        images=[_image(image, objects) for image in result.images],
        animation=_animation(result.animation, objects) if result.animation else None,
        manifest_url=objects.presigned_get(result.manifest_key),
        timings=result.timings,
        reference_psnr_db=result.reference_psnr_db,
        warnings=list(result.warnings),
        urls_expire_in_s=expiry_s,
    )


def _animation(stored: StoredAnimation, objects: ObjectStore) -> answers.AnimationView:
    url = objects.presigned_get(stored.key)
    return answers.AnimationView(url=url, **stored.model_dump(exclude={"key"}))


def _image(image: StoredResult, objects: ObjectStore) -> answers.ImageView:
    return answers.ImageView(
        index=image.index,
        seed=image.seed,
        url=objects.presigned_get(image.key),
        sha256=image.sha256,
        width=image.width,
        height=image.height,
        distances=[
            answers.ControlDistanceView(control=int(position), **distance.model_dump())
            for position, distance in sorted(image.distances.items(), key=lambda item: int(item[0]))
        ],
        score=image.score,
        rank=image.rank,
        boxes=[
            answers.FaceView(control=int(position), **pair)
            for position, pairs in image.boxes.items()
            for pair in (echoed.model_dump() for echoed in echo_pairs(pairs))
        ],
        readouts=_readouts(image.readouts, objects),
        evolution=[_frame(frame, objects) for frame in image.evolution],
    )


def _frame(frame: StoredFrame, objects: ObjectStore) -> answers.EvolutionFrameView:
    return answers.EvolutionFrameView(
        step=frame.step,
        url=objects.presigned_get(frame.key),
        readouts=_readouts(frame.readouts, objects),
    )


def _readouts(stored: tuple[StoredReadout, ...], objects: ObjectStore) -> list[answers.ReadoutView]:
    return [
        answers.ReadoutView(head=readout.head, url=objects.presigned_get(readout.key))
        for readout in stored
    ]


def _parameters(model: ModelManifest) -> dict[str, answers.ParameterView]:
    """Ranges by the request's schema, narrowed and given defaults by the model's manifest."""
    found = {
        **_ranges(schemas.GenerationParameters, ""),
        **_ranges(schemas.SpatialControl, "controls[]."),
        **_ranges(schemas.Adapter, "adapters[]."),
        **_ranges(schemas.OutputOptions, "output."),
        **_ranges(schemas.Animation, "output.animation."),
    }
    size = {
        "minimum": model.min_size,
        "maximum": model.max_size,
        "multiple_of": model.size_multiple,
    }
    narrowed: dict[str, dict[str, Any]] = {
        name: {"default": getattr(model.defaults, name)} for name in MODEL_DEFAULTS
    }
    narrowed |= {
        "model": {"default": model.name},
        "height": {"default": model.height, **size},
        "width": {"default": model.width, **size},
        "prompt": {"max_length": model.max_prompt_chars},
        "num_images": {"default": 1, "maximum": model.max_images},
        "num_candidates": {"maximum": model.max_images},
        "output.animation.frames": {"maximum": model.max_images},
        "controls[].weight": {"default": model.defaults.weight},
        "controls[].span": {
            "default": list(model.defaults.span),
            "minimum": 0,
            "maximum": 1,
            "max_length": 2,
        },
    }
    narrowed["negative_prompt"]["max_length"] = model.max_prompt_chars
    for name, changes in narrowed.items():
        found[name] = found[name].model_copy(update=changes)
    eta = found["eta"]
    by_task = ", ".join(
        f"{values.eta:g} for {task}" for task, values in TABLE.items() if values.eta is not None
    )
    found["eta"] = eta.model_copy(update={"description": f"DDIM stochasticity; {by_task}"})
    return found


@cache
def _ranges(schema: type[Strict], prefix: str) -> Mapping[str, answers.ParameterView]:
    properties = schema.model_json_schema()["properties"]
    return {
        prefix + name: _range(field, properties[name])
        for name, field in schema.model_fields.items()
        if name not in ("output", "animation")
    }


def _range(field: FieldInfo, described: dict[str, Any]) -> answers.ParameterView:
    options = [described, *described.get("anyOf", ())]
    limits = {key: value for option in options for key, value in option.items()}
    default = None if field.is_required() else limits.get("default")
    choices = limits.get("enum") or ([limits["const"]] if "const" in limits else None)
    return answers.ParameterView(
        default=default,
        minimum=limits.get("minimum"),
        maximum=limits.get("maximum"),
        max_length=limits.get("maxLength", limits.get("maxItems")),
        choices=choices,
        description=field.description,
    )
