"""Readout guidance: from features and targets to a change of the latents; tensors in, tensors out.

Sections 3.2 and 8.2. The gradient is taken in two pieces of the chain rule. First each control's
distance is differentiated with respect to the *features*, through its head alone; then the
controls' feature gradients are mixed into one, and a single backward pass takes it through the
U-Net to the latents. One control costs the same as without the cut; several cost one U-Net
backward instead of one each, and can be balanced before they are mixed.

Mixing (docs/adr/0004-mixing-controls.md). Each control's feature gradient is divided by its own
norm and multiplied by its weight, so that weights compare controls whatever the units of their
heads. The step of the mixture is √Σ (weight × scale)², what independent updates would add up to:
one control of weight w moves the latents by w × scale, and doubling all weights doubles the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from heads_registry.networks import Feature, Readout, ReadoutHead, TimeEmbedding
from worker.passes import Branch
from worker.updates import AdamW, UpdateRule, columns, readout_update

__all__ = [
    "AdamW",
    "ControlGroup",
    "FeatureGradient",
    "Objective",
    "Reading",
    "ReadoutTarget",
    "ReferenceReadouts",
    "UpdateRule",
    "feature_gradient",
    "group_controls",
    "read",
    "readout_update",
]

Objective = Callable[[Readout, Readout], Float[Tensor, " batch"]]

GRADIENT_NORM = 64.0
"""Norm of an item's feature gradient as it enters the U-Net: keeps fp16 away from underflow."""
TINY = 1e-30
"""Keeps a zero gradient zero when it is divided by its norm."""


class ReferenceReadouts(Protocol):
    """What a head says along a reference's trajectory; see `worker.reference`."""

    def at(self, step_index: int, branch: Branch) -> Float[Tensor, "channels height width"]:
        """The readout before step `step_index`."""


class Reading(Protocol):
    """A head and what it is fed; see `ReadoutTarget`."""

    @property
    def head(self) -> ReadoutHead:
        """The network."""

    @property
    def taps(self) -> tuple[str, ...]:
        """Module paths of the features it reads."""

    @property
    def timestep_convention(self) -> str:
        """See `HeadManifest`."""


@dataclass(frozen=True, eq=False)
class ReadoutTarget:
    """One asked-for control of one item: what a head should say, how strongly, and when.

    Attributes:
        head: the network, frozen.
        taps: module paths of the features it reads.
        timestep_convention: see `HeadManifest`.
        target: what the readout should be, (channels, height, width), in readout units; or, for a
            relative head, a reference's readouts at every step.
        objective: the distance that is minimised.
        weight: rg_weight of section 8.1; 1 is very strong.
        span: rg_ratio, [start, end) as fractions of the steps.
        update_scale: the change of a latent at weight 1.
        measure: what results report of readout and target; None: the objective's square root.
        latent_range: of the rule ``adamw`` alone: the difference of readout values that the range
            of the latents stands for in the authors' loss; None: the loss stays as it is.
    """

    head: ReadoutHead
    taps: tuple[str, ...]
    timestep_convention: str
    target: Float[Tensor, "channels height width"] | ReferenceReadouts
    objective: Objective
    weight: float
    span: tuple[float, float]
    update_scale: float
    measure: Objective | None = None
    latent_range: float | None = None

    def guides(self, step_index: int, num_steps: int) -> bool:
        """Whether the control acts at a step; spans are rounded, not cut off (REFERENCE 4.11)."""
        start, end = (round(fraction * num_steps) for fraction in self.span)
        return self.weight > 0 and start <= step_index < end

    def target_at(self, step_index: int, branch: Branch) -> Float[Tensor, "channels height width"]:
        """The target of one step; a control image's is the same at all of them."""
        if isinstance(self.target, Tensor):
            return self.target
        return self.target.at(step_index, branch)

    def measured(self, readout: Readout, target: Readout) -> Float[Tensor, " batch"]:
        """What results report as the control's distance."""
        if self.measure is not None:
            return self.measure(readout, target)
        return self.objective(readout, target).sqrt()

    def measured_from(
        self, distances: Float[Tensor, " batch"], readout: Readout, target: Readout
    ) -> Float[Tensor, " batch"]:
        """The same where the objective's values are known already."""
        if self.measure is None:
            return distances.sqrt()
        return distances if self.measure is self.objective else self.measure(readout, target)


@dataclass(frozen=True)
class FeatureGradient:
    """The mixed gradient with respect to the features of one pass, and how to undo its scaling.

    Attributes:
        gradients: one a tap, shaped like the features; each item's has norm `GRADIENT_NORM`.
        magnitude: (items,) the factor back to the raw gradient.
        step: (items,) √Σ (weight × scale)².
        losses: (branches, items) Σ weight × objective.
        measured: (controls,) what results would report of each control in the first branch, in
            the order of `group_controls`' pairs.
    """

    gradients: list[Tensor]
    magnitude: Float[Tensor, " items"]
    step: Float[Tensor, " items"]
    losses: Float[Tensor, "branches items"]
    measured: Float[Tensor, " controls"]


@dataclass(frozen=True, eq=False)
class ControlGroup:
    """Controls that act together and share a head, stacked once on the device.

    Attributes:
        first: one of them, for what they share: head, taps, objective.
        items: the item of each control.
        index: the same as a tensor.
        places: of the controls among all that act.
        targets: (controls, channels, height, width), or with one set of them for each branch;
            None until `at` names the step of a reference.
        weight: (controls,) rg_weight.
        step: (controls,) weight × update_scale.
        references: whose readouts are the targets, one a control; empty for control images.
    """

    first: ReadoutTarget
    items: tuple[int, ...]
    index: Tensor
    places: Tensor
    targets: Readout | None
    weight: Float[Tensor, " controls"]
    step: Float[Tensor, " controls"]
    references: tuple[ReferenceReadouts, ...] = ()

    def at(
        self,
        step_index: int,
        branches: Sequence[Branch],
        extent: Float[Tensor, " items"] | None = None,
    ) -> ControlGroup:
        """The group at one step: a reference's readouts looked up, branch by branch.

        Args:
            step_index: the step.
            branches: whose features are differentiated, in the order of their rows.
            extent: the rule ``adamw`` alone: the range of each item's latents. The authors' losses
                are in units of it (REFERENCE 2.5), so it goes into the weights.
        """
        group = self
        if self.references:
            maps = [
                reference.at(step_index, branch)
                for branch in branches
                for reference in self.references
            ]
            group = replace(group, targets=torch.stack(maps).to(self.index.device))
        if extent is not None and self.first.latent_range is not None:
            units = (extent[self.index] / self.first.latent_range).square()
            group = replace(group, weight=self.weight * units)
        return group


def group_controls(
    pairs: Sequence[tuple[int, ReadoutTarget]], device: torch.device
) -> list[ControlGroup]:
    """Stack (item, control) pairs by the head and the objective that they share.

    An objective compares with control images or with references, never with both.
    """
    by_head: dict[tuple[int, int], list[int]] = {}
    for place, (_, control) in enumerate(pairs):
        by_head.setdefault((id(control.head), id(control.objective)), []).append(place)
    groups = []
    for places in by_head.values():
        items = tuple(pairs[place][0] for place in places)
        controls = [pairs[place][1] for place in places]
        weight = torch.tensor([control.weight for control in controls], dtype=torch.float32)
        scale = torch.tensor([control.update_scale for control in controls], dtype=torch.float32)
        targets = [control.target for control in controls]
        images = [target.to(device) for target in targets if isinstance(target, Tensor)]
        groups.append(
            ControlGroup(
                first=controls[0],
                items=items,
                index=torch.tensor(items, device=device),
                places=torch.tensor(places, device=device),
                targets=torch.stack(images) if images else None,
                weight=weight.to(device),
                step=(weight * scale).to(device),
                references=tuple(target for target in targets if not isinstance(target, Tensor)),
            )
        )
    return groups


def feature_gradient(
    features: Sequence[Feature],
    taps: Sequence[str],
    groups: Sequence[ControlGroup],
    time_embedding: Callable[[str], TimeEmbedding],
    size: tuple[int, int],
    num_items: int,
    *,
    balanced: bool = True,
) -> FeatureGradient:
    """Differentiate every control's distance with respect to the features and mix the gradients.

    Args:
        features: of `taps`, (rows, channels, h', w'); rows are the items once, or the items of
            the unconditional branch followed by the same items of the conditional one.
        taps: module paths of `features`.
        groups: the controls that act, with their targets at this step.
        time_embedding: timestep convention → (1, embedding).
        size: the latents' (h, w).
        num_items: items in `features`.
        balanced: mix gradients of equal norm (see above); otherwise the plain weighted sum, which
            the two unnormalised rules need.
    """
    branches = features[0].shape[0] // num_items
    device = features[0].device
    dtype = torch.promote_types(features[0].dtype, torch.float32)
    mixed = [torch.zeros_like(feature, dtype=dtype) for feature in features]
    weighted_norm, total_weight, squared_step = torch.zeros(
        3, num_items, device=device, dtype=dtype
    )
    losses = torch.zeros(branches * num_items, device=device, dtype=dtype)
    measured = torch.zeros(sum(len(group.items) for group in groups), device=device, dtype=dtype)
    for group in groups:
        index = torch.cat([group.index + branch * num_items for branch in range(branches)])
        gradients, distances, own = _head_gradient(
            features, taps, group, index, time_embedding, size
        )
        measured.index_copy_(0, group.places, own.to(dtype))
        norm = _norm(gradients, branches)
        weight = group.weight.to(dtype)
        factor = weight / (norm + TINY) if balanced else weight
        for total, gradient in zip(mixed, gradients, strict=True):
            total.index_add_(0, index, gradient * columns(factor.repeat(branches)))
        losses.index_add_(0, index, weight.repeat(branches) * distances.to(dtype))
        weighted_norm.index_add_(0, group.index, weight * norm)
        total_weight.index_add_(0, group.index, weight)
        squared_step.index_add_(0, group.index, group.step.to(dtype).square())
    mixed_norm = _norm(mixed, branches)
    scale = columns((GRADIENT_NORM / (mixed_norm + TINY)).repeat(branches))
    raw_norm = weighted_norm / (total_weight + TINY) if balanced else mixed_norm
    return FeatureGradient(
        [(total * scale).to(feature.dtype) for total, feature in zip(mixed, features, strict=True)],
        magnitude=raw_norm / GRADIENT_NORM,
        step=squared_step.sqrt(),
        losses=losses.view(branches, num_items),
        measured=measured,
    )


def read(
    features: Sequence[Feature],
    taps: Sequence[str],
    control: Reading,
    time_embedding: Callable[[str], TimeEmbedding],
    size: tuple[int, int],
) -> Readout:
    """The readout of a control's head, in the head's dtype.

    Args:
        features: of `taps`, (rows, channels, h', w'); a head reads those that it names.
        taps: module paths of `features`.
        control: whose head, taps and timestep convention.
        time_embedding: timestep convention → (1, embedding).
        size: the latents' (h, w).
    """
    dtype = control.head.mixing_weights.dtype
    inputs = [features[taps.index(tap)].to(dtype) for tap in control.taps]
    embedding = None
    if control.timestep_convention != "none":
        embedding = time_embedding(control.timestep_convention).to(dtype)
        embedding = embedding.expand(inputs[0].shape[0], -1)
    readout: Readout = control.head(inputs, embedding, size)
    return readout


def _head_gradient(
    features: Sequence[Feature],
    taps: Sequence[str],
    group: ControlGroup,
    index: Tensor,
    time_embedding: Callable[[str], TimeEmbedding],
    size: tuple[int, int],
) -> tuple[list[Tensor], Float[Tensor, " rows"], Float[Tensor, " controls"]]:
    """∂ distance / ∂ features for controls that share a head, (branches × controls, …) a tap.

    The distances come along, and what results would report of the first branch.
    """
    assert group.targets is not None
    working = torch.promote_types(features[0].dtype, torch.float32)
    with torch.enable_grad():
        leaves = [
            feature.detach().index_select(0, index).to(working).requires_grad_()
            for feature in features
        ]
        readout = read(leaves, taps, group.first, time_embedding, size).to(working)
        targets = group.targets.to(working).repeat(len(index) // len(group.targets), 1, 1, 1)
        distances = group.first.objective(readout, targets)
        gradients = torch.autograd.grad(distances.sum(), leaves, allow_unused=True)
    gradients = tuple(
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    )
    distances, count = distances.detach(), len(group.items)
    first = distances[:count], readout[:count].detach(), targets[:count]
    return list(gradients), distances, group.first.measured_from(*first)


def _norm(gradients: Sequence[Tensor], branches: int) -> Float[Tensor, " items"]:
    """Euclidean norm over all taps and branches of each item."""
    squares = sum(gradient.square().sum(dim=(1, 2, 3)) for gradient in gradients)
    assert isinstance(squares, Tensor)
    return squares.view(branches, -1).sum(dim=0).sqrt()
