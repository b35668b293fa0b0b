"""From a gradient to a change of the latents: the rules of section 8.2, and the authors'."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from heads_registry.base_model import Latents

UpdateRule = Literal["elementwise", "rms", "unnormalized", "timestep_rescaled", "adamw"]

EPSILON = 1e-8
"""ε of the normalised update, as in the authors' AdamW."""
UNNORMALIZED_RATE = 200.0 / 0.02
"""Section 8.2 uses a rate of 200 for the raw gradient where the normalised rule has 2e-2."""


def readout_update(
    gradient: Latents,
    magnitude: Float[Tensor, " items"],
    step: Float[Tensor, " items"],
    rule: UpdateRule,
    alpha: Float[Tensor, ""],
) -> Latents:
    """The change to subtract from the latents, by the rules of section 8.2.

    Args:
        gradient: of the distance with respect to the latents, up to the factor `magnitude`.
        magnitude: the factor back to the raw gradient.
        step: the change of a latent that the weights ask for.
        rule: ``elementwise`` g / (√g² + ε), the paper's choice; ``rms`` the same with one norm an
            item; ``unnormalized`` 200 · g; ``timestep_rescaled`` 200 · √(1-ᾱ) · g; ``adamw`` is
            `AdamW`'s.
        alpha: ᾱ_t.
    """
    raw = gradient * columns(magnitude)
    step = columns(step)
    if rule == "elementwise":
        return step * raw / (raw.abs() + EPSILON)
    if rule == "rms":
        rms = raw.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return step * raw / (rms + EPSILON)
    if rule == "timestep_rescaled":
        raw = raw * (1 - alpha).sqrt()
    return step * UNNORMALIZED_RATE * raw


class AdamW:
    """The authors' optimiser, fresh at every timestep (REFERENCE 2.6): Adam without weight decay.

    Its first step is `rate` · g / (|g| + ε): the rule ``elementwise`` with a step that no weight
    changes. Later steps of `recurrent_steps` have its moments.
    """

    BETAS = (0.9, 0.999)

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.count = 0
        self.mean: Latents | float = 0.0
        self.square: Latents | float = 0.0

    def update(self, gradient: Latents) -> Latents:
        """The change to subtract from the latents."""
        first, second = self.BETAS
        self.count += 1
        self.mean = first * self.mean + (1 - first) * gradient
        self.square = second * self.square + (1 - second) * gradient.square()
        mean = self.mean / (1 - first**self.count)
        norm = (self.square / (1 - second**self.count)).sqrt()
        return self.rate * mean / (norm + EPSILON)


def columns(values: Float[Tensor, " rows"]) -> Float[Tensor, "rows 1 1 1"]:
    """One number a row, to be multiplied with maps."""
    return values[:, None, None, None]
