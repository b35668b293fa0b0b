"""Tasks: presets of defaults and of controls, after table 1 of the paper.

What a request leaves out comes from: request > head manifest > the model's `tasks` > the table >
the model's defaults. A task's fields (`points`, `region`, `boxes`) become controls unless the
request has a control of that kind already, so that an echo, sent again, stays what it is.
"""

from __future__ import annotations

from typing import Any

from heads_registry.catalogue import Catalogue
from heads_registry.manifest import HeadManifest, ModelManifest, TaskDefaults
from jobs.request import Task
from service import schemas
from service.errors import InvalidRequest, UnknownHeadName

TABLE: dict[Task, TaskDefaults] = {
    "text_to_image": TaskDefaults(),
    "spatial": TaskDefaults(eta=1.0),
    "drag": TaskDefaults(eta=0.0, weight=1.0, span=(0.0, 0.5)),
    "appearance": TaskDefaults(eta=0.0, weight=1.0, span=(0.05, 0.5)),
    "identity": TaskDefaults(eta=1.0, weight=1.0, span=(0.05, 0.8)),
}
"""Table 1 of the paper; weight and span are those of relative controls, a spatial head's are in
its manifest or the model's, but that in a drag it has the drag's span: before it the picture is the
reference's. The guidance scale of 7.5 is SD's own, so it is the model's default."""

REAL_DRAG_GUIDANCE_SCALE = 3.5
"""Table 1, dragging a real image: its inversion has none, and a strong one leaves it behind."""

FIELDS: dict[str, tuple[Task, ...]] = {
    "points": ("drag",),
    "boxes": ("identity",),
    "region": ("drag", "appearance"),
}
"""Short fields of the request → the tasks that turn them into controls."""

RELATIVE = ("correspondence", "appearance", "identity")


def task_of(asked: schemas.GenerationParameters) -> Task:
    """The task that is meant where none is named: by what is given."""
    if asked.task is not None:
        return asked.task
    kinds = {control.type for control in asked.controls}
    if asked.points is not None or "correspondence" in kinds:
        return "drag"
    if asked.boxes is not None or "identity" in kinds:
        return "identity"
    if asked.reference is not None or asked.region is not None or "appearance" in kinds:
        return "appearance"
    return "spatial" if kinds else "text_to_image"


def check_fields(asked: schemas.GenerationParameters, task: Task) -> None:
    """Whether the short fields belong to the task and nothing is said twice.

    Raises:
        InvalidRequest: names the field.
    """
    for name, tasks in FIELDS.items():
        if getattr(asked, name) is not None and task not in tasks:
            raise InvalidRequest.at(
                f"#/{name}", f"task {task} has none; it goes with {' and '.join(tasks)}"
            )
    kinds = [control.type for control in asked.controls]
    for name, kind in (
        ("points", "correspondence"),
        ("boxes", "identity"),
        ("region", "appearance"),
    ):
        if getattr(asked, name) is not None and kind in kinds:
            raise InvalidRequest.at(
                f"#/{name}", f"there is a control of type {kind} too; say it there alone"
            )
    if task == "text_to_image" and (asked.controls or asked.reference):
        raise InvalidRequest.at(
            "#/task", "text_to_image takes no controls and no reference; name another task"
        )
    if task == "spatial" and not asked.controls:
        raise InvalidRequest.at("#/task", "spatial needs at least one control; use text_to_image")
    if task == "drag" and asked.points is None and "correspondence" not in kinds:
        raise InvalidRequest.at("#/points", "missing; drag needs at least one pair of from and to")


def controls_of(asked: schemas.GenerationParameters, task: Task) -> tuple[Any, ...]:
    """All controls: those of the request, then those that the task adds."""
    kinds = {control.type for control in asked.controls}
    added: list[Any] = []
    if task in ("drag", "appearance") and "appearance" not in kinds:
        added.append(schemas.AppearanceControl(type="appearance", region=asked.region))
    if asked.points is not None:
        added.append(schemas.CorrespondenceControl(type="correspondence", points=asked.points))
    if task == "identity" and "identity" not in kinds:
        added.append(schemas.IdentityControl(type="identity", boxes=asked.boxes))
        if "appearance" not in kinds:
            pairs = asked.boxes
            faces = tuple(pair.picture or pair.reference for pair in pairs) if pairs else None
            around = schemas.Region(boxes=faces, outside=True)
            added.append(
                schemas.AppearanceControl(type="appearance", towards="original", region=around)
            )
    controls = asked.controls + tuple(added)
    if len(controls) > schemas.MAX_CONTROLS:
        raise InvalidRequest.at(
            "#/controls",
            f"{len(controls)} with those of task {task}; at most {schemas.MAX_CONTROLS}",
        )
    return controls


def head_of_kind(
    kind: str, pointer: str, model: ModelManifest, catalogue: Catalogue
) -> HeadManifest:
    """The model's head of a kind: the one of that name, or the first.

    Raises:
        UnknownHeadName: the model has none.
    """
    heads = [head for head in catalogue.heads_for(model) if head.kind == kind]
    if not heads:
        fitting = ", ".join(head.name for head in catalogue.heads_for(model)) or "none"
        raise UnknownHeadName.at(
            pointer,
            f"model {model.name!r} has no {kind} head, which this needs; installed: {fitting}",
        )
    return next((head for head in heads if head.name == kind), heads[0])


def default_of(name: str, task: Task, model: ModelManifest) -> Any:
    """What model and table say of `name` for a task; None: nothing."""
    own = model.tasks.get(task) if task != "text_to_image" else None
    for defaults in (own, TABLE[task]):
        if defaults is not None and (value := getattr(defaults, name, None)) is not None:
            return value
    return None
