"""The denoising loop: DDIM with classifier-free guidance and readout guidance, a batch at a time.

It never sees a queue, a file or a picture format. For one batch of items it does, in each step,

    two_pass   x ← x - u(x);  ε ← CFG(x);  x' ← DDIM(x, ε)         sections 3.2 and 8.2
    one_pass   ε ← CFG(x), u(x) from the same pass;  x' ← DDIM(x, ε) - u(x)

with u the readout update of `worker.guidance`. DDIM's step is linear in ε with coefficient c_t < 0,
so the second form *is* section 3.2's ε̂ = ε + w ∇d, with w scaled by 1/|c_t| so that a weight moves
the latents equally at every timestep and in both forms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from heads_registry.base_model import BaseModel, Conditioning, Latents
from heads_registry.networks import Readout, TimeEmbedding
from worker.guidance import (
    ControlGroup,
    ReadoutTarget,
    UpdateRule,
    feature_gradient,
    group_controls,
    read,
    readout_update,
)
from worker.passes import Branch, Passes
from worker.schedule import DDIMSchedule

Form = Literal["one_pass", "two_pass"]
OnStep = Callable[[int, int], None]


class Diverged(Exception):
    """Latents or gradients of an item became infinite or NaN; names the item and the step."""

    def __init__(self, item: int, step_index: int) -> None:
        super().__init__(f"image {item} diverged at step {step_index}")
        self.item = item
        self.step_index = step_index


@dataclass(frozen=True)
class SampleItem:
    """One picture to make, independent of its batch neighbours."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    targets: tuple[ReadoutTarget, ...] = ()


@dataclass(frozen=True)
class SamplingPlan:
    """What all items of a batch share."""

    height: int
    width: int
    num_inference_steps: int = 100
    guidance_scale: float = 7.5
    eta: float = 0.0
    form: Form = "two_pass"
    branch: Branch = "unconditional"
    update_rule: UpdateRule = "elementwise"
    evolution_steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """What the model sees at one step (figure 15)."""

    step_index: int
    pred_original_sample: Latents
    readouts: list[list[Readout]]


@dataclass(frozen=True)
class Samples:
    """The result of a batch.

    Attributes:
        latents: (items, channels, h, w).
        distances: item × control: √objective on the features of the last step, in readout units.
        readouts: item × control: the readout on the same features, (channels, height, width).
        evolution: the snapshots asked for.
    """

    latents: Latents
    distances: list[list[float]]
    readouts: list[list[Readout]]
    evolution: list[Snapshot] = field(default_factory=list)


def initial_noise(
    seeds: Sequence[int], shape: tuple[int, int, int], num_steps: int, stochastic: bool
) -> tuple[Latents, list[Float[Tensor, "batch channels h w"]]]:
    """Each item's starting latents and variance noise, from its own CPU generator.

    A CPU generator gives the same numbers on every device; one an item makes a picture independent
    of its batch. Returns the latents and, when stochastic, one noise tensor a step.
    """
    draws = num_steps + 1 if stochastic else 1
    noises = []
    for seed in seeds:
        generator = torch.Generator("cpu").manual_seed(seed)
        noises.append(torch.stack([torch.randn(shape, generator=generator) for _ in range(draws)]))
    batch = torch.stack(noises, dim=1)
    return batch[0], list(batch[1:])


@torch.no_grad()
def sample(
    model: BaseModel,
    items: Sequence[SampleItem],
    plan: SamplingPlan,
    *,
    on_step: OnStep = lambda step_index, num_steps: None,
) -> Samples:
    """Run the loop.

    Args:
        model: the frozen base model.
        items: pictures to make; each may have any number of controls.
        plan: what they share.
        on_step: called with (step_index, num_steps) before each step; raise in it to stop.

    Raises:
        Diverged: an item's latents are no longer finite.
    """
    return _Run(model, items, plan).run(on_step)


class _Run:
    """The state of one run, so that the loop reads as the method does."""

    def __init__(self, model: BaseModel, items: Sequence[SampleItem], plan: SamplingPlan) -> None:
        self.model, self.items, self.plan = model, items, plan
        self.schedule = DDIMSchedule(
            model.ddim_scheduler(plan.num_inference_steps), plan.eta, model.device
        )
        shape = model.latent_shape(plan.height, plan.width)
        self.size = shape[1:]
        latents, noises = initial_noise(
            [item.seed for item in items], shape, len(self.schedule), self.schedule.is_stochastic
        )
        self.latents = latents.to(model.device, model.latent_dtype)
        self.noises = [noise.to(self.latents) for noise in noises]
        self.conditioning = self._encode_prompts()
        self.taps = tuple(
            dict.fromkeys(tap for item in items for target in item.targets for tap in target.taps)
        )
        self.observed_branch: Branch = (
            "conditional" if plan.branch == "conditional" else "unconditional"
        )
        self.groups: dict[tuple[tuple[int, int], ...], list[ControlGroup]] = {}
        self.diverged_at = torch.full((len(items),), -1, device=model.device)

    def _encode_prompts(self) -> dict[Branch, Conditioning]:
        """Conditioning of both branches; each different text is encoded once."""
        negative = [item.negative_prompt for item in self.items]
        positive = [item.prompt for item in self.items]
        unique = list(dict.fromkeys(negative + positive))
        encoded = self.model.encode_prompts(unique, self.plan.height, self.plan.width)
        return {
            "unconditional": encoded[[unique.index(text) for text in negative]],
            "conditional": encoded[[unique.index(text) for text in positive]],
        }

    def run(self, on_step: OnStep) -> Samples:
        """All steps, then the results."""
        num_steps = len(self.schedule)
        snapshots = []
        for step_index in range(num_steps):
            on_step(step_index, num_steps)
            controls = [
                (row, target)
                for row, item in enumerate(self.items)
                for target in item.targets
                if target.guides(step_index, num_steps)
            ]
            observe = step_index in self.plan.evolution_steps or step_index == num_steps - 1
            snapshots.append(self._step(step_index, controls, observe))
        self._raise_if_diverged()
        last = snapshots[-1]
        assert last is not None
        return Samples(
            self.latents,
            self._distances(last.readouts),
            last.readouts,
            [shot for shot in snapshots if shot and shot.step_index in self.plan.evolution_steps],
        )

    def _step(
        self, step_index: int, controls: list[tuple[int, ReadoutTarget]], observe: bool
    ) -> Snapshot | None:
        """One timestep: guide, predict the noise, go to the next latents."""
        update: Latents | None = None
        passes = Passes(self.observed_branch if observe else None)
        if controls:
            update = self._readout_update(step_index, controls, passes)
            if self.plan.form == "two_pass":
                self.latents, update = self.latents - update, None
                passes.forget()
        noise_pred = self._noise_pred(step_index, passes)
        snapshot = self._observe(step_index, noise_pred, passes) if observe else None
        noise = self.noises[step_index] if self.schedule.is_stochastic else None
        self.latents = self.schedule.step(self.latents, noise_pred, step_index, noise)
        if update is not None:
            self.latents = self.latents - update
        broken = ~torch.isfinite(self.latents).flatten(1).all(dim=1)
        fresh = broken & (self.diverged_at < 0)
        self.diverged_at = self.diverged_at.masked_fill(fresh, step_index)
        return snapshot

    def _readout_update(
        self, step_index: int, controls: list[tuple[int, ReadoutTarget]], passes: Passes
    ) -> Latents:
        """u(x) of all items, zero where no control acts; its U-Net pass is left in `passes`."""
        active = sorted({row for row, _ in controls})
        branches: tuple[Branch, ...] = (
            ("unconditional", "conditional") if self.plan.branch == "both" else (self.plan.branch,)
        )
        with torch.enable_grad(), self.model.capture_features(self.taps) as features:
            latents = _select(self.latents, active).detach().requires_grad_()
            output = self._denoise(
                latents.repeat(len(branches), 1, 1, 1),
                step_index,
                [(branch, active) for branch in branches],
            )
            mixture = feature_gradient(
                features,
                self.taps,
                self._groups(active, controls),
                lambda convention: self._time_embedding(step_index, convention),
                self.size,
                len(active),
                balanced=self.plan.update_rule in ("elementwise", "rms"),
            )
            (gradient,) = torch.autograd.grad(features, latents, mixture.gradients)
        passes.add([(branch, active) for branch in branches], output.detach(), features)
        change = readout_update(
            gradient,
            mixture.magnitude,
            mixture.step,
            self.plan.update_rule,
            self.schedule.alpha[step_index],
        )
        if len(active) == len(self.items):
            return change
        update = torch.zeros_like(self.latents)
        update[active] = change
        return update

    def _noise_pred(self, step_index: int, passes: Passes) -> Latents:
        """Classifier-free guidance in Imagen's form, ε_u + guidance_scale (ε_c - ε_u).

        Passes that guidance has made are not repeated; at a scale of 1 the unconditional branch
        is needed only where it is observed.
        """
        scale = self.plan.guidance_scale
        wanted: list[Branch] = ["conditional"]
        if scale != 1 or passes.observed == "unconditional":
            wanted.insert(0, "unconditional")
        missing = []
        for branch in wanted:
            rows = [row for row in range(len(self.items)) if (branch, row) not in passes]
            if rows:
                missing.append((branch, rows))
        if missing:
            taps = self.taps if passes.observed else ()
            latents = torch.cat([_select(self.latents, rows) for _, rows in missing])
            with self.model.capture_features(taps) as features:
                output = self._denoise(latents, step_index, missing)
            passes.add(missing, output, features)
        outputs = {branch: passes.output(branch, len(self.items)) for branch in wanted}
        noise_pred = {
            branch: self.schedule.noise_pred(output, self.latents, step_index)
            for branch, output in outputs.items()
        }
        if scale == 1:
            return noise_pred["conditional"]
        uncond, text = noise_pred["unconditional"], noise_pred["conditional"]
        return uncond + scale * (text - uncond)

    def _denoise(
        self, latents: Latents, step_index: int, parts: Sequence[tuple[Branch, list[int]]]
    ) -> Latents:
        conditioning = Conditioning.concatenate(
            [self.conditioning[branch][rows] for branch, rows in parts]
        )
        return self.model.denoise(latents, self.schedule.timesteps[step_index], conditioning)

    def _observe(self, step_index: int, noise_pred: Latents, passes: Passes) -> Snapshot:
        """x̂₀ and every control's readout on features that the step has computed anyway."""
        readouts: list[list[Readout]] = []
        for row, item in enumerate(self.items):
            features = passes.features(row) if item.targets else []
            readouts.append(
                [
                    read(
                        features,
                        self.taps,
                        target,
                        lambda convention: self._time_embedding(step_index, convention),
                        self.size,
                    )[0]
                    for target in item.targets
                ]
            )
        original = self.schedule.pred_original_sample(self.latents, noise_pred, step_index)
        return Snapshot(step_index, original, readouts)

    def _time_embedding(self, step_index: int, convention: str) -> TimeEmbedding:
        """(1, embedding) of the number that a head was trained to be told (REFERENCE 2.4)."""
        timestep = self.schedule.timesteps[step_index]
        if convention == "reversed":
            timestep = self.schedule.num_train_timesteps - timestep
        return self.model.embed_timestep(timestep[None])

    def _groups(
        self, active: list[int], controls: list[tuple[int, ReadoutTarget]]
    ) -> list[ControlGroup]:
        """The controls that act, stacked; made once for each set of them."""
        key = tuple((row, id(target)) for row, target in controls)
        if key not in self.groups:
            pairs = [(active.index(row), target) for row, target in controls]
            self.groups[key] = group_controls(pairs, self.model.device)
        return self.groups[key]

    def _distances(self, readouts: list[list[Readout]]) -> list[list[float]]:
        return [
            [
                float(target.objective(readout[None], target.target[None].to(readout)).sqrt())
                for target, readout in zip(item.targets, row, strict=True)
            ]
            for item, row in zip(self.items, readouts, strict=True)
        ]

    def _raise_if_diverged(self) -> None:
        for item, step_index in enumerate(self.diverged_at.tolist()):
            if step_index >= 0:
                raise Diverged(item, step_index)


def _select(latents: Latents, rows: Sequence[int]) -> Latents:
    """Some items' latents; all of them without a copy."""
    return latents if len(rows) == len(latents) else latents[list(rows)]
