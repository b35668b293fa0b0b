"""`readout train head`: recipes and data → heads that are served; wiring only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from heads_registry.base_model import BaseModel
from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from heads_registry.device import resolve_device, resolve_dtype
from heads_registry.training.data import load_labelled_images
from heads_registry.training.expect import after, before
from heads_registry.training.groups import load_faces, load_videos
from heads_registry.training.loop import HeadTrainer
from heads_registry.training.negatives import anchor_rows, make_negatives
from heads_registry.training.progress import NoLog, TensorBoardLog
from heads_registry.training.recipe import HeadRecipe
from heads_registry.training.tasks import (
    CorrespondenceTask,
    SpatialTask,
    Task,
    TripletTask,
    check_others,
)

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """What `readout train head` is asked for.

    Args:
        recipes: files; several are trained together and must be of one kind.
        data: the folder, see docs/data.md.
        out: a registry directory, or its `heads` folder: manifest and weights go there.
        run: checkpoint, caches, previews; None: runs/ and the heads' names.
        model: name in the catalogue of `registries` and the built-in one.
        limit: use only so many images, videos or people.
        minutes: see `HeadTrainer`.
        device, dtype: of the frozen model; auto: a GPU where there is one, and half precision
            where the hardware multiplies it fast.
        mixed_precision: see `HeadTrainer`; None: where the frozen model is in half precision.
        tensorboard: write event files under `run`.
        fine_tune: start from the installed heads of the recipes' names.
    """

    recipes: Sequence[Path]
    data: Path
    out: Path
    run: Path | None = None
    model: str = "mannequin-64"
    registries: Sequence[Path] = field(default_factory=tuple)
    limit: int | None = None
    minutes: float | None = None
    device: str = "auto"
    dtype: str = "auto"
    mixed_precision: bool | None = None
    tensorboard: bool = False
    fine_tune: bool = False

    def run_directory(self, recipes: Sequence[HeadRecipe]) -> Path:
        """Where checkpoint, caches and previews of these recipes go."""
        return self.run or Path("runs") / "+".join(recipe.name for recipe in recipes)

    def resolved_device(self) -> torch.device:
        """The device to train on.

        Raises:
            ValueError: there is no such device.
        """
        if self.device == "auto":
            return resolve_device("auto")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {self.device}: {str(error).splitlines()[0]}") from error
        return torch.device(self.device)

    def resolved_dtype(self, device: torch.device) -> torch.dtype:
        """Of the frozen model.

        Raises:
            ValueError: no such dtype.
        """
        if self.dtype not in ("auto", *DTYPES):
            raise ValueError(f"--dtype {self.dtype}: choose auto, {', '.join(DTYPES)}")
        return resolve_dtype(self.dtype, device)


def train_heads(options: Options, say: Callable[[str], None] = print) -> list[Path]:
    """Train, measure and save; returns the manifests' paths.

    Raises:
        RegistryError: the recipe, the data or the model cannot be used; one line that says why.
        ValueError: too little data, or recipes that cannot be trained together.
    """
    recipes = [HeadRecipe.load(path) for path in options.recipes]
    catalogue = Catalogue([BUILTIN_DIR, *options.registries])
    manifest = catalogue.model(options.model)
    fine_tuned = recipes if options.fine_tune else ()
    starts = {one.name: catalogue.head(manifest, one.name) for one in fine_tuned}
    run = options.run_directory(recipes)
    device = options.resolved_device()
    dtype = options.resolved_dtype(device)
    log = TensorBoardLog(run / "tensorboard") if options.tensorboard else NoLog()
    load = _loader(recipes, options, manifest.width, manifest.height, run)
    model = BaseModel.load(manifest, device, dtype)
    mixed = options.mixed_precision
    trainer = HeadTrainer(
        model,
        recipes,
        load(model),
        run,
        minutes=options.minutes,
        mixed_precision=dtype != torch.float32 if mixed is None else mixed,
        log=log,
        starts=starts,
    )
    for line in before(recipes[0], trainer.task.examples, len(trainer.task.validation)):
        say(line)
    trainer.train(say=say)
    out = options.out if options.out.name == "heads" else options.out / "heads"
    return _finish(trainer, out, manifest.family, run, say)


def _finish(
    trainer: HeadTrainer, out: Path, family: str, run: Path, say: Callable[[str], None]
) -> list[Path]:
    """Measure, draw, save."""
    metrics = trainer.evaluate()
    trainer.log.metrics(trainer.step, metrics)
    for trainee in trainer.trainees:
        say(after(trainee.recipe, metrics[trainee.recipe.name]))
    for name, pictures in trainer.preview().items():
        for what, picture in zip(("preview", "mixing"), pictures, strict=True):
            picture.save(run / f"{name}-{what}.png")
            say(str(run / f"{name}-{what}.png"))
    return trainer.save(out, family, metrics)


def prepare_negatives(options: Options) -> int:
    """Make the negatives that `train_heads` would make first, into the same place.

    Returns:
        How many there are.

    Raises:
        RegistryError, ValueError: as `train_heads`; or the recipe needs no negatives.
    """
    loaded = HeadRecipe.load(options.recipes[0])
    if loaded.kind not in ("appearance", "identity"):
        raise ValueError(f"{options.recipes[0]}: {loaded.kind} heads are trained without negatives")
    manifest = Catalogue([BUILTIN_DIR, *options.registries]).model(options.model)
    load = _loader(
        [loaded], options, manifest.width, manifest.height, options.run_directory([loaded])
    )
    device = options.resolved_device()
    task = load(BaseModel.load(manifest, device, options.resolved_dtype(device)))
    assert isinstance(task, TripletTask)
    return len(task.negatives)


def _loader(
    recipes: Sequence[HeadRecipe], options: Options, width: int, height: int, run: Path
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

    check_others(grouped, first.negatives)  # before the edits, which take long

    def with_negatives(model: BaseModel) -> Task:
        rows = anchor_rows(grouped, first.negatives.per_group)
        edits = make_negatives(model, grouped, rows, first.negatives, run / "negatives", first.seed)
        return TripletTask(grouped, rows, edits, first.negatives, identity=first.kind == "identity")

    return with_negatives
