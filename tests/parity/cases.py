"""The recorded runs as our engine sees them: models, heads, controls and the items of a batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from heads_registry.base_model import BaseModel, Latents
from heads_registry.importers import import_head
from heads_registry.loading import load_head
from heads_registry.manifest import HeadManifest
from heads_registry.networks import ReadoutHead
from tests.parity.golden import DATA, arrays
from worker.guidance import FeatureGradient, ReadoutTarget
from worker.objectives import appearance_distance, correspondence_distance, spatial_distance
from worker.passes import BOTH, Passes
from worker.plan import SampleItem, SamplingPlan
from worker.reference import Reader, Trajectory, TrajectoryReadouts, complete, record
from worker.sampler import Run, sample

CASES = sorted(path.stem for path in (DATA / "cases").glob("*.npz"))


@contextmanager
def one_thread() -> Iterator[None]:
    """The recording machine's number of threads; sums come in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def load_model(name: str) -> BaseModel:
    """A tiny pipeline of the recordings."""
    kind = StableDiffusionXLPipeline if name.endswith("xl") else StableDiffusionPipeline
    pipeline = kind.from_pretrained(DATA / "pipelines" / name, use_safetensors=True)
    return BaseModel(pipeline)


@dataclass
class Case:
    """One recorded run; item 0 of its batch is the reference, item 1 the picture that is made."""

    name: str
    model: BaseModel
    registry: Path

    @cached_property
    def data(self) -> dict[str, Tensor]:
        return arrays(DATA / "cases" / f"{self.name}.npz")

    @cached_property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((DATA / "cases" / f"{self.name}.json").read_text())
        return facts

    @property
    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = self.facts["config"]["generation_kwargs"]
        return options

    @property
    def guided(self) -> list[int]:
        return self.data["guided_idx"].tolist()

    def plan(self, row: int) -> SamplingPlan:
        """The reference-compatible mode, with the guidance scale of one of the two items."""
        scale = self.options["text_weight"]
        height, width = (8 * size for size in self.data["latents"].shape[-2:])
        return SamplingPlan(
            height=height,
            width=width,
            num_inference_steps=self.options["num_timesteps"],
            guidance_scale=scale[row] if isinstance(scale, list) else scale,
            eta=self.options["eta"],
            branch="both",
            update_rule="adamw",
            rate=self.options["rg_weight"],
        )

    @cached_property
    def edits(self) -> list[tuple[HeadManifest, ReadoutHead, float, bool]]:
        """Manifest, network, loss_rescale and use_emb of each control."""
        found = []
        for edit in self.facts["config"].get("rg_kwargs", ()):
            file = Path(edit["aggregation_kwargs"]["aggregation_ckpt"]).name
            manifest = import_head(DATA / file, self.registry, overwrite=True).manifest
            use_emb = edit.get("use_emb", True)
            found.append((manifest, load_head(manifest), edit["loss_rescale"], use_emb))
        return found

    @cached_property
    def readers(self) -> list[Reader]:
        return [
            Reader(
                manifest.name,
                head,
                manifest.feature_taps,
                manifest.timestep_convention if use_emb else "none",
            )
            for manifest, head, _, use_emb in self.edits
        ]

    def item(self, row: int, **changes: Any) -> SampleItem:
        """One item of the batch, with its recorded noise and without controls."""
        noise = self.data.get("zs")
        item = SampleItem(
            self.facts["prompts"][row],
            self.facts["negative_prompt"],
            start=self.data["latents"][0, row],
            variance_noise=None if noise is None else noise[:, row],
            twin=self.data["latents"][:, 0],
        )
        return replace(item, **changes)

    def reference(self) -> Trajectory:
        """The recorded trajectory of item 0, read by our heads."""
        trajectory = Trajectory(self.data["latents"][:, 0])
        steps, dtype = self.guided, torch.float32
        readers, plan = self.readers, self.plan(0)
        complete(self.model, trajectory, self.item(0), plan, readers, steps, BOTH, dtype=dtype)
        return trajectory

    def targets(self, trajectory: Trajectory) -> tuple[ReadoutTarget, ...]:
        """The controls, as the authors' code weighs them."""
        start, end = self.options["rg_ratio"]
        targets = []
        for index, ((manifest, head, weight, _), reader) in enumerate(
            zip(self.edits, self.readers, strict=True)
        ):
            low, high = manifest.value_range
            target: Any = TrajectoryReadouts(trajectory, reader.key)
            objective: Any = appearance_distance
            latent_range: float | None = 1.0
            if manifest.kind == "spatial":
                # recorded in the readout's range; the authors' code maps both to the latents'
                target = self.data[f"control_e{index}"]
                objective, latent_range = spatial_distance, high - low
            elif manifest.kind == "correspondence":
                source, destination = self.data["points_int_yx"]
                objective = partial(correspondence_distance, source=source, destination=destination)
                latent_range = None
            targets.append(
                ReadoutTarget(
                    head=head,
                    taps=manifest.feature_taps,
                    timestep_convention=reader.timestep_convention,
                    target=target,
                    objective=objective,
                    weight=weight,
                    span=(start, end),
                    update_scale=1.0,
                    latent_range=latent_range,
                )
            )
        return tuple(targets)


class Observed(Run):
    """Keeps what a guided step computed on its way."""

    gradient: Tensor
    losses: Tensor

    def readout_gradient(
        self, step_index: int, controls: list[tuple[int, ReadoutTarget]], passes: Passes
    ) -> tuple[list[int], Latents, FeatureGradient]:
        active, gradient, mixture = super().readout_gradient(step_index, controls, passes)
        self.gradient = gradient[0] * mixture.magnitude[0]
        self.losses = mixture.losses[:, 0]
        return active, gradient, mixture


@dataclass
class Errors:
    """The largest over all steps: relative (gradient L2, loss), and absolute."""

    gradient: float = 0.0
    loss: float = 0.0
    compared: float = 1.0
    moved: float = 0.0
    noise_pred: float = 0.0
    stepped: float = 0.0


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def relative(ours: Tensor, recorded: Tensor) -> float:
    return float((ours - recorded).norm() / recorded.norm())


def teacher_forced(case: Case) -> Errors:
    """Every step begins at the recorded latents, and DDIM's at the recorded updated ones."""
    latents, guided, errors = case.data["latents"], case.guided, Errors()
    targets = case.targets(case.reference())
    run = Observed(case.model, [case.item(1, targets=targets)], case.plan(1))
    for step_index in range(len(run.schedule)):
        run.latents = latents[step_index, 1:2]
        run.guide(step_index, Passes())
        if step_index in guided:
            position = guided.index(step_index)
            gradient = case.data["grad"][position, 0, 1]
            moved = case.data["latents_opt"][position, 0, 1]
            losses = case.data["loss_branch"][position, 0]
            # the update is nearly the sign, rate * g / (|g| + 1e-8): where rounding moves g by more
            # than a tenth of it, or g is as small as 1e-8 is to it, rounding decides
            size, rounding = gradient.abs(), (run.gradient - gradient).abs()
            decided = (rounding <= 0.1 * size) & (size > 4e-7)
            errors.gradient = max(errors.gradient, relative(run.gradient, gradient))
            errors.loss = max(errors.loss, relative(run.losses.double(), losses))
            errors.compared = min(errors.compared, float(decided.float().mean()))
            errors.moved = max(errors.moved, largest((run.latents[0] - moved)[decided]))
            run.latents = moved[None].clone()
        else:
            assert torch.equal(run.latents, latents[step_index, 1:2])
        noise_pred = run.noise_pred(step_index, Passes())
        recorded = case.data["eps_cfg"][step_index, 1]
        errors.noise_pred = max(errors.noise_pred, largest(noise_pred[0] - recorded))
        run.advance(step_index, noise_pred)
        recorded = latents[step_index + 1, 1]
        errors.stepped = max(errors.stepped, largest(run.latents[0] - recorded))
    return errors


def free_run(case: Case, dtype: torch.dtype) -> tuple[float, float]:
    """Largest differences of the reference's whole trajectory and of the picture's last latents."""
    parts = [case.model.pipeline, *(head for _, head, _, _ in case.edits)]
    latents, steps = case.data["latents"], [*case.guided, case.options["num_timesteps"] - 1]
    try:
        for part in parts:
            part.to(dtype)
        item, plan = case.item(0), case.plan(0)
        trajectory = record(case.model, item, plan, case.readers, steps, BOTH, dtype=dtype)
        item = case.item(1, targets=case.targets(trajectory), twin=trajectory.latents)
        samples = sample(case.model, [item], case.plan(1))
    finally:
        for part in parts:
            part.to(torch.float32)
    reference = largest(trajectory.latents - latents[:, 0])
    return reference, largest(samples.latents[0] - latents[-1, 1])


def main() -> None:
    """Print the table of docs/results.md."""
    models = {name: load_model(name) for name in ("tiny-sd15", "tiny-sdxl")}
    columns = "gradient | loss | after update | noise | after step | free, float32 | free, float64"
    print(f"| case | {columns} |\n|{'---|' * 8}")
    with one_thread(), TemporaryDirectory() as directory:
        for name in CASES:
            case = Case(
                name, models["tiny-sdxl" if "sdxl" in name else "tiny-sd15"], Path(directory)
            )
            errors = teacher_forced(case)
            values = [
                errors.gradient,
                errors.loss,
                errors.moved,
                errors.noise_pred,
                errors.stepped,
                free_run(case, torch.float32)[1],
                free_run(case, torch.float64)[1],
            ]
            print(f"| {name} | " + " | ".join(f"{value:.1e}" for value in values) + " |")


if __name__ == "__main__":
    main()
