"""How much data a head needs, and what timestep conditioning is for; parts of `make results`.

Pose heads are trained here, briefly and alike but for what is compared, and then guide held-out
poses. They are kept under runs/results/learning, so that a stopped run goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluation.generate import MODEL, SIZE, Condition, Scenes, Studio, placement
from evaluation.measures import background_spread
from evaluation.scores import Scorer
from evaluation.statistics import bootstrap, mean, mean_difference
from heads_registry.base_model import BaseModel
from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from heads_registry.training.data import LabelledImages, load_labelled_images
from heads_registry.training.loop import HeadTrainer
from heads_registry.training.recipe import HeadRecipe
from heads_registry.training.tasks import SpatialTask
from world.files import write_dataset
from world.seeds import TEST, TRAIN

RECIPE = Path("heads_registry/training/recipes/mannequin-pose.yaml")
RUNS = Path("runs/results/learning")
EXAMPLES = 4000
HELD_OUT = 256
DATA_STEPS, CONDITIONING_STEPS = 2000, 600
"""Of the heads that are compared with each other."""
TRIAL_COUNT, TRIAL_STEPS, TRIAL_EXAMPLES = 50, 10, 200
"""Below so many scenes this is a trial of the code, with so many steps and examples."""

Row = dict[str, str | float]


def data(count: int) -> list[Row]:
    """Pose heads trained on 10, 100, 1000 and 4000 examples, with the same number of steps, and the
    error of what they read of held-out images (rmse, in units of the value range; the same images
    for all) and how well they guide held-out poses (PCK as above; gain over no control, paired)."""
    amounts = {f"{value} examples": value for value in (10, 100, 1000, EXAMPLES)}
    variants = {name: {"examples": value} for name, value in amounts.items()}
    return _compare(count, DATA_STEPS, variants)


def conditioning(count: int) -> list[Row]:
    """Pose heads with and without timestep conditioning (section 8.2), all examples, the same
    steps. The paper finds that without it pictures obey the control and leave the manifold of
    natural images: here, what is read, obedience, and the spread of the backgrounds' colours."""
    return _compare(
        count,
        CONDITIONING_STEPS,
        {
            "conditioned on the timestep": {"examples": EXAMPLES},
            "not conditioned": {"examples": EXAMPLES, "timestep_convention": "none"},
        },
    )


PARTS = {
    "data": ("Pose heads by amount of data", data),
    "conditioning": ("Pose heads without timestep conditioning", conditioning),
}
"""name → title, function of the count of held-out scenes."""


def _compare(count: int, steps: int, variants: dict[str, dict[str, Any]]) -> list[Row]:
    trial = count < TRIAL_COUNT
    scenes, scorer = Scenes.of(TEST[: max(8, count // 6)]), Scorer()
    plain_pictures = Studio(RUNS / "pictures").pictures(Condition(), scenes)
    plain = scorer(plain_pictures, scenes)["pck@0.1"]
    rows: list[Row] = [
        {"head": "no control", "poses": len(plain), "PCK@0.1": str(bootstrap(mean, plain))}
    ]
    for name, changes in variants.items():
        registry, metrics = _trained(steps=TRIAL_STEPS if trial else steps, trial=trial, **changes)
        studio = Studio(RUNS / "pictures", registry)
        pictures = studio.pictures(Condition(signal="pose"), scenes)
        found = scorer(pictures, scenes)["pck@0.1"]
        spread = background_spread(pictures) / background_spread(plain_pictures)
        rows.append(
            {
                "head": name,
                "poses": len(found),
                **{f"rmse t{at}": metrics[f"rmse_t{at}"] for at in (0.1, 0.3, 0.5, 0.7)},
                "rmse, always the mean": metrics["rmse_baseline"],
                "PCK@0.1": str(bootstrap(mean, found)),
                "gain": str(bootstrap(mean_difference, found, plain)),
                "background spread ÷ unguided": f"{spread:.2f}",
                "steps": metrics["training"]["steps"],
                "minutes": metrics["training"]["minutes"],
            }
        )
    return rows


def _trained(
    examples: int, steps: int, trial: bool, timestep_convention: str = "timestep"
) -> tuple[Path, dict[str, Any]]:
    """A registry with a pose head of the demo model, and the head's metrics."""
    recipe = HeadRecipe.load(RECIPE)
    recipe = recipe.model_copy(
        update={"max_steps": steps, "timestep_convention": timestep_convention}
    )
    catalogue = Catalogue([BUILTIN_DIR])
    manifest = catalogue.model(MODEL)
    name = f"pose-{examples}-{timestep_convention}-{steps}-{_version(manifest.sha256)}"
    registry = RUNS / name
    if not (registry / "heads" / f"{MODEL}-pose.yaml").is_file():
        task = SpatialTask(_images(trial), HELD_OUT if not trial else 16)
        task.examples = min(examples, task.examples)
        trainer = HeadTrainer(
            BaseModel.load(manifest, *placement()), [recipe], task, registry / "run"
        )
        trainer.train()
        trainer.save(registry / "heads", manifest.family, trainer.evaluate())
    head = Catalogue([BUILTIN_DIR, registry]).head(manifest, "pose")
    return registry, head.metrics


def _images(trial: bool) -> LabelledImages:
    """Training images; the last `HELD_OUT` of them measure."""
    count = TRIAL_EXAMPLES if trial else EXAMPLES + HELD_OUT
    folder = RUNS / f"images-{count}"
    if not (folder / "metadata.jsonl").is_file():
        write_dataset(folder, TRAIN[:count], SIZE, labels=["pose"])
    return load_labelled_images(folder, ["pose"], SIZE, SIZE)


def _version(hashes: dict[str, str]) -> str:
    return next((value[:8] for name, value in sorted(hashes.items()) if "unet" in name), "local")
