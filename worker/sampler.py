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

import torch
from jaxtyping import Float
from torch import Tensor

from heads_registry.base_model import BaseModel, Conditioning, Latents
from heads_registry.networks import Readout, TimeEmbedding
from worker.adapters import Adapters
from worker.guidance import (
    AdamW,
    ControlGroup,
    FeatureGradient,
    ReadoutTarget,
    UpdateRule,
    feature_gradient,
    group_controls,
    read,
    readout_update,
)
from worker.monitor import DistanceMonitor
from worker.passes import Branch, Passes, branches_of
from worker.plan import (
    Diverged,
    Form,
    SampleItem,
    Samples,
    SamplingPlan,
    Snapshot,
    Watch,
    initial_noise,
)
from worker.schedule import DDIMSchedule
from worker.start import Start

__all__ = [
    "Branch",
    "Diverged",
    "Form",
    "OnStep",
    "Run",
    "SampleItem",
    "Samples",
    "SamplingPlan",
    "Snapshot",
    "UpdateRule",
    "initial_noise",
    "sample",
]

OnStep = Callable[[int, int], None]
Control = tuple[int, ReadoutTarget]
"""The row of an item, and one of its controls."""


@torch.no_grad()
def sample(
    model: BaseModel,
    items: Sequence[SampleItem],
    plan: SamplingPlan,
    *,
    on_step: OnStep = lambda step_index, num_steps: None,
    watch: Watch | None = None,
) -> Samples:
    """Run the loop.

    Args:
        model: the frozen base model.
        items: pictures to make; each may have any number of controls.
        plan: what they share.
        on_step: called with (step_index, num_steps) before each step; raise in it to stop.
        watch: is shown distances and snapshots on the way.

    Raises:
        Diverged: an item's latents are no longer finite.
    """
    return Run(model, items, plan).run(on_step, watch)


class Run:
    """The state of one run, so that the loop reads as the method does.

    Its steps are public because a reference's trajectory is recorded by them (worker/reference.py)
    and because the recorded runs of the authors' code are compared with them one by one.
    """

    def __init__(
        self,
        model: BaseModel,
        items: Sequence[SampleItem],
        plan: SamplingPlan,
        taps: Sequence[str] = (),
    ) -> None:
        self.model, self.items, self.plan = model, items, plan
        self.schedule = DDIMSchedule(
            model.ddim_scheduler(plan.num_inference_steps), plan.eta, model.device
        )
        self.steps = range(plan.first_step, len(self.schedule))
        self.start, self.noises = self._noise()
        self.latents = self.start.latents
        self.size = (self.latents.shape[2], self.latents.shape[3])
        self.conditioning = self._encode_prompts()
        self.adapters = Adapters(
            model, [item.adapters for item in items], len(self.schedule), self.size
        )
        self.taps = tuple(
            dict.fromkeys(
                [*taps, *(tap for item in items for target in item.targets for tap in target.taps)]
            )
        )
        self.observed_branch: Branch = (
            "conditional" if plan.branch == "conditional" else "unconditional"
        )
        self.groups: dict[tuple[tuple[int, int], ...], list[ControlGroup]] = {}
        self.diverged_at = torch.full((len(items),), -1, device=model.device)
        self.monitor = DistanceMonitor([len(item.targets) for item in items], model.device)

    def _noise(self) -> tuple[Start, list[Float[Tensor, "batch channels h w"]]]:
        """The first latents and each step's variance noise: drawn, unless an item has its own."""
        shape = self.model.latent_shape(self.plan.height, self.plan.width)
        seeds = [item.seed for item in self.items]
        latents, noises = initial_noise(
            seeds, shape, len(self.schedule), self.schedule.is_stochastic
        )
        latents = latents.to(self.model.device, self.model.latent_dtype)
        noises = [noise.to(latents) for noise in noises]
        for row, item in enumerate(self.items):
            if item.variance_noise is not None:
                for noise, own in zip(noises, item.variance_noise, strict=False):
                    noise[row] = own.to(noise)
        return Start(self.items, latents, self.schedule, self.plan.first_step), noises

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

    def run(self, on_step: OnStep, watch: Watch | None = None) -> Samples:
        """All steps, then the results."""
        snapshots = []
        for step_index in self.steps:
            if watch is not None:
                watch.on_distances(self.monitor.latest())
            on_step(step_index - self.steps.start, len(self.steps))
            is_shown = step_index in self.plan.evolution_steps
            snapshot = self._step(step_index, is_shown or step_index == self.steps[-1])
            snapshots.append(snapshot)
            if watch is not None and snapshot is not None and is_shown:
                self._raise_if_diverged()
                watch.on_snapshot(snapshot)
        self._raise_if_diverged()
        last = snapshots[-1]
        assert last is not None
        return Samples(
            self.latents,
            self._distances(last),
            last.readouts,
            [shot for shot in snapshots if shot and shot.step_index in self.plan.evolution_steps],
        )

    def _step(self, step_index: int, observe: bool) -> Snapshot | None:
        """One timestep: guide, predict the noise, go to the next latents."""
        passes = Passes((self.observed_branch,) if observe else ())
        update = self.guide(step_index, passes)
        noise_pred = self.noise_pred(step_index, passes)
        snapshot = self._observe(step_index, noise_pred, passes) if observe else None
        self.advance(step_index, noise_pred, update)
        broken = ~torch.isfinite(self.latents).flatten(1).all(dim=1)
        fresh = broken & (self.diverged_at < 0)
        self.diverged_at = self.diverged_at.masked_fill(fresh, step_index)
        return snapshot

    def controls_at(self, step_index: int) -> list[Control]:
        """The controls that act at a step."""
        return [
            (row, target)
            for row, item in enumerate(self.items)
            for target in item.targets
            if target.guides(step_index, len(self.schedule))
        ]

    def guide(self, step_index: int, passes: Passes) -> Latents | None:
        """Readout guidance: two_pass moves the latents, one_pass returns u(x) for later.

        The U-Net pass of one_pass is left in `passes`.
        """
        controls = self.controls_at(step_index)
        if not controls:
            return None
        optimizer = AdamW(self.plan.rate)
        if self.plan.form == "one_pass":
            return self._readout_update(step_index, controls, passes, optimizer)
        for _ in range(self.plan.recurrent_steps):
            update = self._readout_update(step_index, controls, passes, optimizer)
            self.latents = self.latents - update
            passes.forget()
        return None

    def advance(self, step_index: int, noise_pred: Latents, update: Latents | None = None) -> None:
        """DDIM's step, section 3.1; less one_pass' u(x); what is not repainted stays."""
        noise = self.noises[step_index] if self.schedule.is_stochastic else None
        latents = self.schedule.step(self.latents, noise_pred, step_index, noise)
        if update is not None:
            latents = latents - update
        self.latents = self.start.keep(latents, step_index)

    def _readout_update(
        self, step_index: int, controls: list[Control], passes: Passes, optimizer: AdamW
    ) -> Latents:
        """u(x) of all items, zero where no control acts; its U-Net pass is left in `passes`."""
        active, gradient, mixture = self.readout_gradient(step_index, controls, passes)
        rule = self.plan.update_rule
        if rule == "adamw":
            change = optimizer.update(gradient * mixture.magnitude[:, None, None, None])
        else:
            alpha = self.schedule.alpha[step_index]
            change = readout_update(gradient, mixture.magnitude, mixture.step, rule, alpha)
        if len(active) == len(self.items):
            return self.start.within(change)
        update = torch.zeros_like(self.latents)
        update[active] = change
        return self.start.within(update)

    def readout_gradient(
        self, step_index: int, controls: list[Control], passes: Passes
    ) -> tuple[list[int], Latents, FeatureGradient]:
        """∂ distance / ∂ latents of the items that have controls, up to the mixture's magnitude.

        Returns the rows of those items, their gradients and what they were made of.
        """
        active = sorted({row for row, _ in controls})
        branches = branches_of(self.plan.branch)
        with torch.enable_grad(), self.model.capture_features(self.taps) as features:
            latents = _select(self.latents, active).detach().requires_grad_()
            output = self._denoise(
                latents.repeat(len(branches), 1, 1, 1),
                step_index,
                [(branch, active) for branch in branches],
            )
            extent = self._extent(step_index, active)
            mixture = feature_gradient(
                features,
                self.taps,
                [
                    group.at(step_index, branches, extent)
                    for group in self._groups(active, controls)
                ],
                lambda convention: self.time_embedding(step_index, convention),
                self.size,
                len(active),
                balanced=self.plan.update_rule in ("elementwise", "rms"),
            )
            (gradient,) = torch.autograd.grad(features, latents, mixture.gradients)
        places = [(row, self.items[row].targets.index(target)) for row, target in controls]
        self.monitor.note(step_index, places, mixture.measured)
        passes.add([(branch, active) for branch in branches], output.detach(), features)
        return active, gradient, mixture

    def _extent(self, step_index: int, rows: Sequence[int]) -> Float[Tensor, " items"] | None:
        """max - min of each item's latents and its twin's, which ``adamw`` alone asks for."""
        if self.plan.update_rule != "adamw":
            return None
        extents = []
        for row in rows:
            latents, twin = self.latents[row], self.items[row].twin
            if twin is not None:
                latents = torch.stack([latents, twin[step_index].to(latents)])
            extents.append(latents.max() - latents.min())
        return torch.stack(extents)

    def noise_pred(self, step_index: int, passes: Passes) -> Latents:
        """Classifier-free guidance in Imagen's form, ε_u + guidance_scale (ε_c - ε_u).

        Passes that guidance has made are not repeated; at a scale of 1 the unconditional branch
        is needed only where it is observed.
        """
        scale = self.plan.guidance_scale
        wanted: list[Branch] = ["conditional"]
        if scale != 1 or "unconditional" in passes.observed:
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
        timestep = self.schedule.timesteps[step_index]
        items = [row for _, rows in parts for row in rows]
        seen = latents if self.plan.adapter_gradient == "full" else latents.detach()
        residuals = self.adapters.residuals(seen, timestep, conditioning, items, step_index)
        return self.model.denoise(latents, timestep, conditioning, residuals)

    def _observe(self, step_index: int, noise_pred: Latents, passes: Passes) -> Snapshot:
        """x̂₀ and every control's readout on features that the step has computed anyway."""
        readouts: list[list[Readout]] = []
        for row, item in enumerate(self.items):
            features = passes.features(self.observed_branch, row) if item.targets else []
            readouts.append(
                [
                    read(
                        features,
                        self.taps,
                        target,
                        lambda convention: self.time_embedding(step_index, convention),
                        self.size,
                    )[0]
                    for target in item.targets
                ]
            )
        original = self.schedule.pred_original_sample(self.latents, noise_pred, step_index)
        return Snapshot(step_index, original, readouts)

    def time_embedding(self, step_index: int, convention: str) -> TimeEmbedding:
        """(1, embedding) of the number that a head was trained to be told (REFERENCE 2.4)."""
        timestep = self.schedule.timesteps[step_index]
        if convention == "reversed":
            timestep = self.schedule.num_train_timesteps - timestep
        return self.model.embed_timestep(timestep[None])

    def _groups(self, active: list[int], controls: list[Control]) -> list[ControlGroup]:
        """The controls that act, stacked; made once for each set of them."""
        key = tuple((row, id(target)) for row, target in controls)
        if key not in self.groups:
            pairs = [(active.index(row), target) for row, target in controls]
            self.groups[key] = group_controls(pairs, self.model.device)
        return self.groups[key]

    def _distances(self, last: Snapshot) -> list[list[float]]:
        def distance(target: ReadoutTarget, readout: Readout) -> float:
            wanted = target.target_at(last.step_index, self.observed_branch)
            return float(target.measured(readout[None], wanted[None].to(readout)))

        return [
            [distance(target, readout) for target, readout in zip(item.targets, row, strict=True)]
            for item, row in zip(self.items, last.readouts, strict=True)
        ]

    def _raise_if_diverged(self) -> None:
        for item, step_index in enumerate(self.diverged_at.tolist()):
            if step_index >= 0:
                raise Diverged(item, step_index)


def _select(latents: Latents, rows: Sequence[int]) -> Latents:
    """Some items' latents; all of them without a copy."""
    return latents if len(rows) == len(latents) else latents[list(rows)]
