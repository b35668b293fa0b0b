"""A request's references: found in the cache, or sampled, inverted and read once.

What decides the numbers makes the key; what changes from edit to edit (points, boxes, weights) does
not. Heads are no part of it either: a trajectory gathers the readouts of every head that asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from heads_registry.base_model import BaseModel, Latents, Pixels
from jobs.request import InvertedReference, SampledReference
from worker.controls import LoadImage
from worker.images import to_images
from worker.init_image import Beginning, Mask, picture_of, pixels_of
from worker.models import LoadedHead
from worker.passes import branches_of
from worker.plan import SampleItem, SamplingPlan
from worker.reference import OnPass, Reader, Trajectory, complete, invert, record
from worker.reference_cache import ReferenceCache, reference_key

INVERTED_GUIDANCE_SCALE = 1.0
"""Table 1: the reference trajectory of a real image has no classifier-free guidance."""
POOR_PSNR_DB = 20.0
"""Below it a reconstruction is visibly another picture, and the result carries a warning."""


class InversionFailed(Exception):
    """A picture cannot be inverted; the message says what may help."""


@dataclass(frozen=True)
class Noise:
    """First latents that are another reference's, and what tells them from others."""

    latents: Latents
    facts: dict[str, Any]

    @classmethod
    def of(cls, reference: SampledReference | InvertedReference, trajectory: Trajectory) -> Noise:
        """A reference's, from its trajectory."""
        return cls(trajectory.latents[0], _asked(reference))


@dataclass
class References:
    """Provides the trajectories of one request, and counts what they cost.

    Attributes:
        model: the base model.
        plan: of the pictures that will be compared.
        cache: where trajectories are kept.
        load_image: fetches a stored image.
        on_pass: called before each U-Net pass; raise in it to stop.
        forwards: U-Net passes made so far.
        found: trajectories that were known, by where they were: memory, disk or storage.
    """

    model: BaseModel
    plan: SamplingPlan
    cache: ReferenceCache
    load_image: LoadImage
    on_pass: OnPass
    forwards: int = 0
    found: Counter[str] = field(default_factory=Counter)

    def provide(
        self,
        reference: SampledReference | InvertedReference,
        heads: Iterable[LoadedHead],
        steps: Iterable[int],
        beginning: Beginning | None = None,
        noise: Noise | None = None,
    ) -> Trajectory:
        """A trajectory with the readouts of these heads at these steps.

        Args:
            reference: what is sampled.
            heads: that read it.
            steps: at which they do.
            beginning: what it starts from in the place of its noise alone.
            noise: what it starts from in the place of its seed's.

        Raises:
            InversionFailed: the picture's reconstruction is not finite.
        """
        readers = list({head.manifest.sha256: _reader(head) for head in heads}.values())
        item, plan = self._item(reference, beginning)
        facts = self._facts(reference, plan, beginning)
        if noise is not None:
            item = replace(item, start=noise.latents)
            facts["noise"] = noise.facts
        key = reference_key(facts)
        branches = branches_of(self.plan.branch)
        known = self.cache.find(key)
        if known is None:
            if isinstance(reference, InvertedReference):
                pixels = self._pixels(reference)
                item = replace(item, start=self._noise(pixels, reference, plan))
            trajectory = record(
                self.model, item, plan, readers, steps, branches, on_pass=self._count
            )
            if isinstance(reference, InvertedReference):
                trajectory.psnr_db = self._psnr(trajectory, pixels)
            self.cache.put(key, trajectory)
            return trajectory
        # what a trimmed trajectory lacks stays this job's own; the cache decides what it keeps
        self.found[known.source] += 1
        trajectory = replace(known.trajectory, readouts=dict(known.trajectory.readouts))
        if complete(
            self.model, trajectory, item, plan, readers, steps, branches, on_pass=self._count
        ):
            self.cache.put(key, trajectory)
        return trajectory

    def picture(
        self, reference: SampledReference | InvertedReference, trajectory: Trajectory
    ) -> Image.Image:
        """What a reference shows: the image itself, or the picture its trajectory ends with."""
        pixels = (
            self._pixels(reference)
            if isinstance(reference, InvertedReference)
            else self.model.decode(trajectory.latents[-1:].to(self.model.device))
        )
        [image] = to_images(pixels)
        return image

    def kept(
        self,
        reference: SampledReference | InvertedReference,
        trajectory: Trajectory,
        mask: Mask,
    ) -> Beginning:
        """A reference as what pictures keep where a mask is black: its way and what it shows."""
        facts = {"reference": _asked(reference), "mask": mask.facts}
        picture = self.picture(reference, trajectory)
        return Beginning(picture, mask, facts, trajectory=trajectory.latents)

    def _count(self) -> None:
        self.on_pass()
        self.forwards += 1

    def _item(
        self, reference: SampledReference | InvertedReference, beginning: Beginning | None
    ) -> tuple[SampleItem, SamplingPlan]:
        """How the reference is sampled."""
        inverted = isinstance(reference, InvertedReference)
        plan = replace(
            self.plan,
            guidance_scale=INVERTED_GUIDANCE_SCALE if inverted else reference.guidance_scale,
            eta=0.0 if inverted else reference.eta,
            evolution_steps=(),
            first_step=self.plan.first_step if beginning else 0,
        )
        seed = 0 if inverted else reference.seed
        item = SampleItem(reference.prompt, reference.negative_prompt, seed)
        if beginning is not None:
            item = replace(
                item,
                init=beginning.latents,
                repaint=beginning.repaint,
                twin=beginning.trajectory,
            )
        return item, plan

    def _facts(
        self,
        reference: SampledReference | InvertedReference,
        plan: SamplingPlan,
        beginning: Beginning | None,
    ) -> dict[str, Any]:
        manifest = self.model.manifest
        assert manifest is not None
        asked = _asked(reference)
        if beginning is not None:
            asked["init_image"] = beginning.facts
        return {
            "version": 1,
            "reference": asked,
            "size": [plan.height, plan.width],
            "steps": plan.num_inference_steps,
            "model": manifest.model_dump(
                mode="json", include={"family", "source", "revision", "variant", "sha256"}
            ),
            "location": manifest.location,
            "schedule": dict(self.model.ddim_scheduler(plan.num_inference_steps).config),
            "dtype": str(self.model.dtype),
            "device": self.model.device.type,
            "torch": torch.__version__,
        }

    def _pixels(self, reference: InvertedReference) -> Pixels:
        """The picture at the request's size, in [-1, 1]."""
        size = (self.plan.width, self.plan.height)
        return pixels_of(picture_of(self.load_image(reference.image), size, reference.fit))

    def _noise(
        self, pixels: Pixels, reference: InvertedReference, plan: SamplingPlan
    ) -> torch.Tensor:
        latents = self.model.encode(pixels)
        states = invert(self.model, latents, reference.prompt, plan, on_pass=self._count)
        if not torch.isfinite(states[-1]).all():
            raise InversionFailed(
                "the reference image cannot be inverted: its noise is not finite; take more "
                "steps or another image"
            )
        return states[-1]

    def _psnr(self, trajectory: Trajectory, pixels: Pixels) -> float:
        """Of the reconstruction, dB; pictures are in [-1, 1]."""
        latents = trajectory.latents[-1:].to(self.model.device)
        error = (self.model.decode(latents).cpu() - pixels).square().mean()
        psnr_db = float(10 * torch.log10(4 / error.clamp(min=1e-12)))
        if not np.isfinite(psnr_db):
            raise InversionFailed(
                "the reference image cannot be inverted: its reconstruction is not finite; take "
                "more steps or another image"
            )
        return psnr_db


def guided_or_last(
    spans: Sequence[tuple[float, float]], num_steps: int, first_step: int = 0
) -> set[int]:
    """Steps at which some control acts, and the last, at which distances are taken."""
    steps = {num_steps - 1}
    for span in spans:
        start, end = (round(fraction * num_steps) for fraction in span)
        steps.update(range(max(start, first_step), end))
    return steps


def _reader(head: LoadedHead) -> Reader:
    manifest = head.manifest
    return Reader(
        manifest.sha256, head.network, manifest.feature_taps, manifest.timestep_convention
    )


def _asked(reference: SampledReference | InvertedReference) -> dict[str, Any]:
    """What a request says of a reference, with the picture's hash in its place."""
    asked = reference.model_dump(mode="json", exclude={"origin", "image"})
    if isinstance(reference, InvertedReference):
        asked["image"] = reference.image.sha256
    return asked
