"""Adapters in the sampler: what ControlNets and T2I-Adapters add to each pass, item by item.

Section 7 of the paper combines them with readout guidance. Every item has its own adapters, or
none: of a batch, a ControlNet sees the rows that ask for it, and other rows get zeros. Tensors in,
tensors out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import ControlNetModel
from jaxtyping import Float
from torch import Tensor

from heads_registry.adapters import LoadedAdapter, check_sizes
from heads_registry.base_model import BaseModel, Conditioning, Latents, Residuals


@dataclass(frozen=True, eq=False)
class AdapterInput:
    """One asked-for adapter of one picture.

    Attributes:
        adapter: the network and its manifest.
        image: what it is shown, in [0, 1], at the picture's size.
        scale: factor of what it adds.
        span: [start, end) of the steps it acts on, as fractions.
    """

    adapter: LoadedAdapter
    image: Float[Tensor, "channels height width"]
    scale: float
    span: tuple[float, float]

    def acts(self, step_index: int, num_steps: int) -> bool:
        """Whether it adds anything at a step; spans are rounded as controls' are."""
        start, end = (round(fraction * num_steps) for fraction in self.span)
        return self.scale > 0 and start <= step_index < end


Entry = tuple[int, AdapterInput]
"""A row of the pass, and one adapter of its item."""


class Adapters:
    """The adapters of a run's items; what T2I-Adapters add is computed once, here."""

    def __init__(
        self,
        model: BaseModel,
        inputs: Sequence[Sequence[AdapterInput]],
        num_steps: int,
        size: tuple[int, int],
    ) -> None:
        self.model, self.inputs, self.num_steps, self.size = model, inputs, num_steps, size
        self._images: dict[int, Tensor] = {}
        self._features: dict[tuple[int, int], list[Tensor]] = {}
        with torch.no_grad():
            for one in (one for own in inputs for one in own):
                self._prepare(one)

    def _prepare(self, one: AdapterInput) -> None:
        network, key = one.adapter.network, (id(one.adapter), id(one.image))
        if isinstance(network, ControlNetModel):
            self._images[id(one.image)] = one.image.to(self.model.device, self.model.dtype)
        elif key not in self._features:
            image = one.image.to(self.model.device, self.model.dtype)
            features = network(image[None])
            check_sizes(one.adapter.manifest.id, features, self.model.unet, self.size)
            self._features[key] = features

    def residuals(
        self,
        latents: Latents,
        timestep: Float[Tensor, ""],
        conditioning: Conditioning,
        rows: Sequence[int],
        step_index: int,
    ) -> Residuals | None:
        """What is added to one pass; None: nothing.

        Args:
            latents: (rows, channels, h, w) of the pass; where they require a gradient, so does
                what a ControlNet makes of them.
            timestep: of the step.
            conditioning: of the rows.
            rows: the item of each row; an item may have several.
            step_index: the step.
        """
        acting = [
            (row, one)
            for row, item in enumerate(rows)
            for one in self.inputs[item]
            if one.acts(step_index, self.num_steps)
        ]
        if not acting:
            return None
        controlnets = [entry for entry in acting if _is_controlnet(entry)]
        others = [entry for entry in acting if not _is_controlnet(entry)]
        residuals = Residuals(intrablock=self._from_t2i_adapters(others, len(rows)))
        for adapter in dict.fromkeys(one.adapter for _, one in controlnets):
            entries = [entry for entry in controlnets if entry[1].adapter is adapter]
            own = self._from_controlnet(adapter, entries, latents, timestep, conditioning)
            total = own if not residuals.down else _add([*residuals.down, residuals.mid], own)
            residuals = replace(residuals, down=tuple(total[:-1]), mid=total[-1])
        return residuals

    def _from_controlnet(
        self,
        adapter: LoadedAdapter,
        entries: Sequence[Entry],
        latents: Latents,
        timestep: Float[Tensor, ""],
        conditioning: Conditioning,
    ) -> list[Tensor]:
        """The residuals of all rows, the middle block's last; one pass for the rows that ask."""
        positions = [row for row, _ in entries]
        own = conditioning[positions]
        down, mid = adapter.network(
            latents[positions].to(self.model.dtype, memory_format=torch.channels_last),
            timestep,
            encoder_hidden_states=own.prompt_embeds,
            controlnet_cond=torch.stack([self._images[id(one.image)] for _, one in entries]),
            added_cond_kwargs=own.added,
            return_dict=False,
        )
        return [_spread(tensor, entries, len(latents)) for tensor in (*down, mid)]

    def _from_t2i_adapters(self, entries: Sequence[Entry], num_rows: int) -> tuple[Tensor, ...]:
        """The features of all rows, summed over each row's adapters."""
        totals: list[Tensor] = []
        for row, one in entries:
            features = self._features[id(one.adapter), id(one.image)]
            for level, feature in enumerate(features):
                if level == len(totals):
                    totals.append(feature.new_zeros(num_rows, *feature.shape[1:]))
                totals[level][row] += one.scale * feature[0]
        return tuple(totals)


def _is_controlnet(entry: Entry) -> bool:
    return isinstance(entry[1].adapter.network, ControlNetModel)


def _spread(tensor: Tensor, entries: Sequence[Entry], num_rows: int) -> Tensor:
    """Each entry's residual times its scale, at its row; an item's entries are added up."""
    scales = torch.tensor([one.scale for _, one in entries]).to(tensor)
    index = torch.tensor([row for row, _ in entries], device=tensor.device)
    scaled = tensor * scales[:, None, None, None]
    return tensor.new_zeros(num_rows, *tensor.shape[1:]).index_add(0, index, scaled)


def _add(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(left, right, strict=True)]
