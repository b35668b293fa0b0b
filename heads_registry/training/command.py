"""`readout train head`: recipes and data → heads that are served; wiring only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from heads_registry.base_model import BaseModel
from heads_registry.manifest import BUILTIN_DIR, Catalogue
from heads_registry.training.data import load_labelled_images
from heads_registry.training.groups import load_faces, load_videos
from heads_registry.training.loop import HeadTrainer
from heads_registry.training.negatives import anchor_rows, make_negatives
from heads_registry.training.progress import NoLog, TensorBoardLog
from heads_registry.training.recipe import HeadRecipe
from heads_registry.training.tasks import CorrespondenceTask, SpatialTask, Task, TripletTask

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Options:
    """What `readout train head` is asked for.

    Args:
        recipes: files; several are trained together and must be of one kind.
        data: the folder, see docs/data.md.
        out: the registry directory's `heads` folder, where manifest and weights go.
        run: checkpoint, caches, previews.
        model: name in the catalogue of `registries` and the built-in one.
        limit: use only so many images, videos or people.
        minutes: see `HeadTrainer`.
        device, dtype: of the frozen model.
        mixed_precision: see `HeadTrainer`.
        tensorboard: write event files under `run`.
    """

    recipes: Sequence[Path]
    data: Path
    out: Path
    run: Path
    model: str = "mannequin-64"
    registries: Sequence[Path] = field(default_factory=tuple)
    limit: int | None = None
    minutes: float | None = None
    device: str = "cpu"
    dtype: str = "float32"
    mixed_precision: bool = False
    tensorboard: bool = False


def train_heads(options: Options, say: Callable[[str], None] = print) -> list[Path]:
    """Train, measure and save; returns the manifests' paths.

    Raises:
        RegistryError: the recipe, the data or the model cannot be used; one line that says why.
        ValueError: too little data, or recipes that cannot be trained together.
    """
    recipes = [HeadRecipe.load(path) for path in options.recipes]
    manifest = Catalogue([BUILTIN_DIR, *options.registries]).model(options.model)
    log = TensorBoardLog(options.run / "tensorboard") if options.tensorboard else NoLog()
    load = _loader(recipes, options, manifest.width, manifest.height)
    model = BaseModel.load(manifest, options.device, DTYPES[options.dtype])
    trainer = HeadTrainer(
        model,
        recipes,
        load(model),
        options.run,
        minutes=options.minutes,
        mixed_precision=options.mixed_precision,
        log=log,
    )
    say(f"{trainer.task.examples} training examples, {len(trainer.task.validation)} held out")
    trainer.train()
    metrics = trainer.evaluate()
    log.metrics(trainer.step, metrics)
    for name, values in metrics.items():
        say(f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in values.items()))
    return trainer.save(options.out, manifest.family, metrics)


def _loader(
    recipes: Sequence[HeadRecipe], options: Options, width: int, height: int
) -> Callable[[BaseModel], Task]:
    """Read and check the data now; what remains needs the model."""
    first = recipes[0]
    if len(recipes) > 1 and first.kind != "spatial":
        raise ValueError("relative heads are trained one at a time")
    if first.kind == "spatial":
        labels = list(dict.fromkeys(str(recipe.label) for recipe in recipes))
        images = load_labelled_images(options.data, labels, width, height, options.limit)
        return lambda _model: SpatialTask(images)
    if first.kind == "identity":
        grouped = load_faces(options.data, width, height, options.limit)
    else:
        tracks = first.kind == "correspondence"
        grouped = load_videos(options.data, width, height, options.limit, tracks)
    if first.kind == "correspondence":
        return lambda _model: CorrespondenceTask(grouped, first.points)

    def with_negatives(model: BaseModel) -> Task:
        rows = anchor_rows(grouped, first.negatives.per_group)
        edits = make_negatives(
            model, grouped, rows, first.negatives, options.run / "negatives", first.seed
        )
        return TripletTask(
            grouped, rows, edits, first.negatives.others, identity=first.kind == "identity"
        )

    return with_negatives
