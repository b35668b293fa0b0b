"""What is asked of the sampler and what comes back; no computing but the noise that starts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from heads_registry.base_model import Latents
from heads_registry.networks import Readout
from worker.adapters import AdapterInput
from worker.guidance import ReadoutTarget, UpdateRule
from worker.monitor import Measured
from worker.passes import Branch

Form = Literal["one_pass", "two_pass"]
AdapterGradient = Literal["constant", "full"]


class Diverged(Exception):
    """Latents or gradients of an item became infinite or NaN; names the item and the step."""

    def __init__(self, item: int, step_index: int) -> None:
        super().__init__(f"image {item} diverged at step {step_index}")
        self.item = item
        self.step_index = step_index


@dataclass(frozen=True, eq=False)
class SampleItem:
    """One picture to make, independent of its batch neighbours.

    Attributes:
        prompt: what to draw.
        negative_prompt: the text of the unconditional branch.
        seed: of the first latents and of the variance noise, where those below are not given.
        targets: its controls.
        adapters: its ControlNets and T2I-Adapters.
        start: (channels, h, w) the first latents, such as those of a reference.
        variance_noise: (steps, channels, h, w) DDIM's noise for eta > 0.
        init: (channels, h, w) clean latents of the picture that the item starts from, noised to
            the plan's first step; None: it starts from noise alone.
        repaint: (1, h, w) where that picture, or without one the twin, is repainted; elsewhere its
            latents come back after every step. None: everywhere.
        twin: (steps + 1, channels, h, w) the latents of its reference. The rule ``adamw`` counts
            them into the range of the item's own (REFERENCE 2.5).
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    targets: tuple[ReadoutTarget, ...] = ()
    adapters: tuple[AdapterInput, ...] = ()
    start: Float[Tensor, "channels h w"] | None = None
    variance_noise: Float[Tensor, "steps channels h w"] | None = None
    init: Float[Tensor, "channels h w"] | None = None
    repaint: Bool[Tensor, "1 h w"] | None = None
    twin: Float[Tensor, "states channels h w"] | None = None


@dataclass(frozen=True)
class SamplingPlan:
    """What all items of a batch share.

    The authors' code is ``SamplingPlan(branch="both", update_rule="adamw", rate=0.02)``; see
    docs/adr/0006-reference-compatible-mode.md.

    Attributes:
        first_step: the first step that is run, with an init image; steps, spans and noises are
            counted from the schedule's first in any case.
        rate: of ``adamw`` alone: the change of a latent in one update, rg_weight of its config.
        recurrent_steps: updates at each guided timestep of the form ``two_pass``.
        adapter_gradient: whether the readout gradient takes a ControlNet's residuals for constants,
            or goes through the ControlNet, too. A T2I-Adapter does not see the latents.
    """

    height: int
    width: int
    num_inference_steps: int = 100
    guidance_scale: float = 7.5
    eta: float = 0.0
    form: Form = "two_pass"
    branch: Branch = "unconditional"
    update_rule: UpdateRule = "elementwise"
    evolution_steps: tuple[int, ...] = ()
    first_step: int = 0
    rate: float = 0.02
    recurrent_steps: int = 1
    adapter_gradient: AdapterGradient = "constant"

    def __len__(self) -> int:
        """Steps that are run."""
        return self.num_inference_steps - self.first_step


@dataclass(frozen=True)
class Snapshot:
    """What the model sees at one step (figure 15)."""

    step_index: int
    pred_original_sample: Latents
    readouts: list[list[Readout]]


class Watch(Protocol):
    """Who looks on while a run goes on; must not hold it up."""

    def on_distances(self, distances: list[list[Measured | None]]) -> None:
        """Before each step: item × control, the newest distances that are known."""

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """After each of `evolution_steps`."""


@dataclass(frozen=True)
class Samples:
    """The result of a batch.

    Attributes:
        latents: (items, channels, h, w).
        distances: item × control: its measure on the features of the last step; for spatial
            controls √objective, in readout units.
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
