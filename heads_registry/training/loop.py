"""The training loop of all heads: one pass of the frozen U-Net feeds every head in training.

Sections 3.2 and 4: latents of pictures are noised to random timesteps, the U-Net sees them with
the empty prompt, and each head learns what the task wants of its readouts. Pictures of one example
(a pair, a triplet) share the timestep, as they do when sampling is guided, and not the noise.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from heads_registry.base_model import BaseModel
from heads_registry.manifest import HeadManifest
from heads_registry.training.expect import duration
from heads_registry.training.frozen import FrozenFeatures, cached_latents
from heads_registry.training.progress import Cost, NoLog, TrainingLog
from heads_registry.training.recipe import HeadRecipe
from heads_registry.training.sheets import mixing_plot, preview_sheet, spread
from heads_registry.training.tasks import Examples, Readouts, Task
from heads_registry.training.trainee import Trainee, save_head

METRIC_FRACTIONS = tuple(round(tenth / 10, 1) for tenth in range(1, 10))
"""Fractions of the schedule at which held-out readouts are measured."""

PICTURES_AT_ONCE = 64
"""Of a pass of the U-Net when measuring; training's is the batch's."""

PREVIEW_FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
PREVIEWED = 6
"""Examples of a preview sheet."""

TRIAL_STEPS = 5
"""After which the duration is estimated."""

SHARED = ("kind", "batch_size", "accumulation_steps", "max_steps", "seed", "timesteps")
"""Fields of recipes in which heads that are trained together agree."""


class HeadTrainer:
    """Trains heads of one or several recipes together on the same examples.

    Args:
        model: the frozen base model.
        recipes: all with the same `SHARED`, since they share the loop.
        task: the kind's data and loss.
        run: directory of checkpoint and caches; a run that was stopped goes on from it.
        minutes: stop after so much training, if that comes before `max_steps`; the learning rate
            follows whichever is nearer. What a run then gives depends on the machine.
        mixed_precision: run the heads in bfloat16 where torch's autocast finds it safe; their
            weights and losses stay float32. The frozen model's dtype is its own.
        log: told of losses and metrics.
        starts: heads to train on from, by the recipes' names; the others begin untrained.
    """

    def __init__(
        self,
        model: BaseModel,
        recipes: Sequence[HeadRecipe],
        task: Task,
        run: Path,
        minutes: float | None = None,
        mixed_precision: bool = False,
        log: TrainingLog | None = None,
        starts: Mapping[str, HeadManifest] = MappingProxyType({}),
    ) -> None:
        shared = {tuple(getattr(recipe, name) for name in SHARED) for recipe in recipes}
        if len(shared) != 1:
            raise ValueError(f"heads trained together need one {', '.join(SHARED)}")
        ((_, self.batch_size, self.parts, self.max_steps, seed, fractions),) = shared
        self.model, self.task, self.run_directory, self.minutes = model, task, run, minutes
        self.mixed_precision, self.log = mixed_precision, log or NoLog()
        height, width = task.images.shape[2:]
        self.frozen = FrozenFeatures(model, width, height)
        steps = self.frozen.num_timesteps
        first = min(max(1, round(fractions[0] * steps)), steps - 1)
        self.timestep_range = (first, max(first + 1, round(fractions[1] * steps)))
        self.latents = cached_latents(model, task.images, run)
        self.generator = torch.Generator().manual_seed(seed)
        self.trainees = [
            Trainee.create(recipe, self.frozen.taps, model, starts.get(recipe.name))
            for recipe in recipes
        ]
        self.step, self.cost = 0, Cost(model.device)
        self._resume()

    @property
    def progress(self) -> float:
        """Share of the training that is done: of the steps, or of the minutes if nearer."""
        steps = self.step / self.max_steps
        return max(steps, self.cost.seconds / 60 / self.minutes) if self.minutes else steps

    def train(
        self, checkpoint_every_s: float = 120.0, say: Callable[[str], None] = lambda _: None
    ) -> None:
        """Run to the recipes' max_steps or the minutes' end, checkpointing on the way.

        After the first steps `say` is told how long it will take.
        """
        saved, first = time.monotonic(), (self.step, self.cost.seconds)
        names = "+".join(trainee.recipe.name for trainee in self.trainees)
        bar = tqdm(initial=self.step, total=self.max_steps, desc=names, mininterval=5)
        while self.progress < 1:
            with self.cost.timed():
                losses = self.train_step()
            bar.update()
            if self.step - first[0] == TRIAL_STEPS:
                each = (self.cost.seconds - first[1]) / TRIAL_STEPS
                say(duration(each, self.max_steps, self.minutes))
            if self.step % 50 == 0:
                values = {name: float(loss) for name, loss in losses.items()}
                self.log.losses(self.step, values)
                bar.set_postfix({name: f"{loss:.4f}" for name, loss in values.items()}, False)
            if time.monotonic() - saved > checkpoint_every_s:
                self.checkpoint()
                saved = time.monotonic()
        bar.close()
        self.checkpoint()

    def train_step(self) -> dict[str, Tensor]:
        """One step of every head; returns the losses, before it."""
        device, count = self.model.device, self.batch_size
        examples = self.task.draw(count, self.generator)
        timesteps = torch.randint(*self.timestep_range, (count,), generator=self.generator).to(
            device
        )
        noise = torch.randn(
            *examples.rows.shape, *self.latents.shape[1:], generator=self.generator
        ).to(device)
        losses: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device))
        size = count // self.parts
        for start in range(0, count, size):
            part = slice(start, start + size)
            heads = [trainee.head for trainee in self.trainees]
            readouts = self._readouts(examples[part], timesteps[part], noise[part], heads)
            for trainee, said in zip(self.trainees, readouts, strict=True):
                loss = self.task.loss(trainee.recipe, said, examples[part]) / self.parts
                loss.backward()
                losses[trainee.recipe.name] += loss.detach()
        progress = self.progress
        for trainee in self.trainees:
            trainee.step(progress)
        self.step += 1
        return losses

    def _readouts(
        self, examples: Examples, timesteps: Tensor, noise: Tensor, heads: Sequence[torch.nn.Module]
    ) -> Iterator[Readouts]:
        """(batch, pictures, channels, h', w') of each head, from one pass of the U-Net."""
        shape = examples.rows.shape
        latents = self.latents[examples.rows.flatten()].to(self.model.device)
        each = timesteps.repeat_interleave(shape[1])
        noised = self.frozen.add_noise(latents, noise.flatten(0, 1), each)
        features = self.frozen.features(noised, each)
        size = (latents.shape[-2], latents.shape[-1])
        for trainee, head in zip(self.trainees, heads, strict=True):
            autocast = (
                torch.autocast(self.model.device.type, torch.bfloat16)
                if self.mixed_precision
                else nullcontext()
            )
            with autocast:
                readout = self.frozen.readout(head, trainee.recipe, features, each, size)
            yield readout.unflatten(0, shape)

    @torch.no_grad()
    def said(self, examples: Examples, fraction: float, noise: Tensor) -> list[Readouts]:
        """What each trained head says of examples at a fraction of the schedule.

        Args:
            examples: some. fraction: of the schedule; 0 is clean.
            noise: (batch, pictures, *latent shape).
        """
        timestep = round(fraction * self.frozen.num_timesteps)
        timesteps = torch.full((len(examples),), timestep, device=self.model.device)
        heads = [trainee.trained for trainee in self.trainees]
        return list(self._readouts(examples, timesteps, noise.to(self.model.device), heads))

    @torch.no_grad()
    def evaluate(self, fractions: Sequence[float] = METRIC_FRACTIONS) -> dict[str, dict[str, Any]]:
        """Metrics of held-out examples by fraction of the schedule: head → `name_t0.1` → value."""
        result: dict[str, dict[str, Any]] = {one.recipe.name: {} for one in self.trainees}
        rows = self.task.validation.rows
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(*rows.shape, *self.latents.shape[1:], generator=generator)
        for fraction in fractions:
            for trainee, measured in zip(
                self.trainees, self._measure(fraction, noise), strict=True
            ):
                for name, value in self.task.summarise(trainee.recipe, measured).items():
                    result[trainee.recipe.name][f"{name}_t{fraction}"] = round(value, 4)
        return {name: self._tidy(metrics) for name, metrics in result.items()}

    def _measure(self, fraction: float, noise: Tensor) -> list[dict[str, np.ndarray]]:
        examples = self.task.validation
        size = max(1, PICTURES_AT_ONCE // examples.rows.shape[1])
        columns: list[dict[str, list[np.ndarray]]] = [defaultdict(list) for _ in self.trainees]
        for start in range(0, len(examples), size):
            part = slice(start, start + size)
            said = self.said(examples[part], fraction, noise[part])
            for trainee, column, readouts in zip(self.trainees, columns, said, strict=True):
                for name, values in self.task.measure(
                    trainee.recipe, readouts, examples[part]
                ).items():
                    column[name].append(values.float().cpu().numpy())
        return [
            {name: np.concatenate(values) for name, values in column.items()} for column in columns
        ]

    @staticmethod
    def _tidy(metrics: dict[str, Any]) -> dict[str, Any]:
        """The baseline is the same at all timesteps: once is enough."""
        baselines = [name for name in metrics if name.startswith("baseline_")]
        kept = {name: value for name, value in metrics.items() if name not in baselines}
        return kept | ({"rmse_baseline": metrics[baselines[0]]} if baselines else {})

    def preview(self) -> Mapping[str, tuple[Image.Image, Image.Image]]:
        """By head: a sheet of what it says of held-out examples, and its mixing weights."""
        examples = spread(self.task.validation, PREVIEWED)
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(*examples.rows.shape, *self.latents.shape[1:], generator=generator)
        said = {fraction: self.said(examples, fraction, noise) for fraction in PREVIEW_FRACTIONS}
        sheets = {}
        for index, trainee in enumerate(self.trainees):
            own = {fraction: readouts[index] for fraction, readouts in said.items()}
            sheet = preview_sheet(self.task, trainee.recipe, examples, own)
            sheets[trainee.recipe.name] = (
                sheet,
                mixing_plot(trainee.trained, list(self.frozen.taps)),
            )
        return sheets

    def save(self, directory: Path, family: str, metrics: dict[str, dict[str, Any]]) -> list[Path]:
        """Write fp16 safetensors and manifests that the service serves at once.

        The manifest's metrics end with what the training really took (`training`).
        """
        cost = {
            "examples": self.task.examples,
            "validation_examples": len(self.task.validation),
            "steps": self.step,
            "batch_size": self.batch_size,
            "heads_trained_together": len(self.trainees),
            **self.cost.summary(),
        }
        return [
            save_head(
                directory,
                family,
                trainee,
                self.frozen.taps,
                metrics[trainee.recipe.name] | {"training": cost | _origin(trainee)},
            )
            for trainee in self.trainees
        ]

    def checkpoint(self) -> None:
        """Write what a stopped training needs to go on."""
        self.run_directory.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "seconds": self.cost.seconds,
            "generator": self.generator.get_state(),
            "recipes": [trainee.recipe.hash for trainee in self.trainees],
            "trainees": [trainee.state_dict() for trainee in self.trainees],
        }
        partial = self.run_directory / "heads.pt.partial"
        torch.save(state, partial)
        partial.replace(self.run_directory / "heads.pt")

    def _resume(self) -> None:
        path = self.run_directory / "heads.pt"
        if not path.is_file():
            return
        state = torch.load(path, map_location=self.model.device, weights_only=True)
        if state["recipes"] != [trainee.recipe.hash for trainee in self.trainees]:
            raise ValueError(f"{path} is of other recipes; choose another run directory")
        self.step, self.cost.seconds = state["step"], state["seconds"]
        self.generator.set_state(state["generator"].cpu())
        for trainee, saved in zip(self.trainees, state["trainees"], strict=True):
            trainee.load_state_dict(saved)


def _origin(trainee: Trainee) -> dict[str, str]:
    return {"started_from": trainee.started_from} if trainee.started_from else {}
