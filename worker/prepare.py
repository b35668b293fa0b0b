"""A request's items for the sampler: targets, what adapters see, and the references behind some."""

from __future__ import annotations

from dataclasses import replace

import torch

from heads_registry.base_model import BaseModel
from jobs.request import (
    AppearanceControl,
    CorrespondenceControl,
    GenerationRequest,
    SampledReference,
    SpatialControl,
)
from worker.animation import check_format
from worker.controls import Canvas, LoadImage, RelativeControl
from worker.guidance import ReadoutTarget
from worker.init_image import Beginning, beginning
from worker.models import LoadedAdapter, LoadedHead
from worker.reference import Trajectory, TrajectoryReadouts
from worker.references import POOR_PSNR_DB, References, guided_or_last
from worker.sampler import SampleItem


class Prepared:
    """What one request brings into a batch.

    Attributes:
        request: the effective one.
        heads: of its controls.
        references: what provided its trajectories.
        reference: the trajectory of its reference.
        beginning: its init image.
        items: one a picture.
    """

    def __init__(
        self,
        request: GenerationRequest,
        model: BaseModel,
        heads: list[LoadedHead],
        adapters: list[LoadedAdapter],
        references: References,
        load_image: LoadImage,
    ) -> None:
        self.request, self.heads, self.references = request, heads, references
        self.reference: Trajectory | None = None
        if request.output.animation is not None:
            check_format(request.output.animation)
        pairs = list(zip(request.controls, heads, strict=True))
        self.canvas = canvas = Canvas(model, request)
        # before the reference, which costs time: a control that can do nothing is told at once
        unread = TrajectoryReadouts(Trajectory(torch.empty(0)), "")
        self.targets = [
            canvas.spatial(head, control, load_image)
            if isinstance(control, SpatialControl)
            else canvas.relative(head, control, unread)
            for control, head in pairs
        ]
        self.beginning: Beginning | None = beginning(request, model, load_image)
        self.adapters = tuple(
            canvas.adapter(adapter, asked, load_image)
            for adapter, asked in zip(adapters, request.adapters, strict=True)
        )
        if request.reference is not None:
            compared = [(c, h) for c, h in pairs if _compares_with(c, "reference")]
            self.reference = references.provide(
                request.reference,
                [head for _, head in compared],
                self._steps([control for control, _ in compared]),
            )
        self.items = self._items()

    @property
    def counted(self) -> dict[str, float]:
        """U-Net passes for references; 0 where all was in the cache, absent where there is none."""
        if all(isinstance(control, SpatialControl) for control in self.request.controls):
            return {}
        return {"reference_forwards": float(self.references.forwards)}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the client should know of the reference."""
        psnr_db = self.reference.psnr_db if self.reference is not None else None
        if psnr_db is None or psnr_db >= POOR_PSNR_DB:
            return ()
        return (
            f"the reference image is reconstructed at only {psnr_db:.1f} dB PSNR, so edits start "
            "from another picture; take more steps, or a prompt that describes it",
        )

    def _items(self) -> list[SampleItem]:
        request, sweep = self.request, self.request.weight_sweep
        start = None
        if request.start == "reference" and self.reference is not None:
            start = self.reference.latents[0]
        animation = request.output.animation
        items = []
        for index, seed in enumerate(request.seeds):
            factor = sweep[index] if sweep else 1.0
            way = animation.way(index) if animation else 1.0
            targets = tuple(self._targets(seed, factor, way))
            twin = self.reference.latents if self.reference is not None else None
            items.append(
                SampleItem(
                    request.prompt,
                    request.negative_prompt,
                    seed,
                    targets,
                    self.adapters,
                    start=start,
                    init=self.beginning.latents if self.beginning else None,
                    repaint=self.beginning.repaint if self.beginning else None,
                    twin=twin,
                )
            )
        return items

    def _targets(self, seed: int, factor: float, way: float) -> list[ReadoutTarget]:
        """The controls of one picture; objectives are shared, so that pictures share a batch.

        The frames of an animation have their own points, and so their own objectives.
        """
        original: Trajectory | None = None
        targets = []
        for control, head, target in zip(
            self.request.controls, self.heads, self.targets, strict=True
        ):
            if isinstance(control, SpatialControl):
                targets.append(target)
                continue
            trajectory = self.reference
            if _compares_with(control, "original"):
                original = original or self._original(seed)
                trajectory = original
            assert trajectory is not None
            readouts = TrajectoryReadouts(trajectory, head.manifest.sha256)
            if way != 1 and isinstance(control, CorrespondenceControl):
                target = self.canvas.relative(head, control, readouts, way)
            targets.append(replace(target, target=readouts, weight=target.weight * factor))
        return targets

    def _original(self, seed: int) -> Trajectory:
        """The picture's own trajectory without guidance, section 9.1, from the same start."""
        request = self.request
        reference = SampledReference(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=seed,
            guidance_scale=request.guidance_scale,
            eta=request.eta,
        )
        pairs = zip(request.controls, self.heads, strict=True)
        compared = [(c, h) for c, h in pairs if _compares_with(c, "original")]
        steps = self._steps([control for control, _ in compared])
        heads = [head for _, head in compared]
        return self.references.provide(reference, heads, steps, self.beginning)

    def _steps(self, controls: list[RelativeControl | SpatialControl]) -> set[int]:
        spans = [control.span for control in controls]
        request = self.request
        return guided_or_last(spans, request.num_inference_steps, request.first_step)


def _compares_with(control: RelativeControl | SpatialControl, which: str) -> bool:
    """Whether a control compares with the request's reference, or with the picture's original."""
    if isinstance(control, SpatialControl):
        return False
    towards = control.towards if isinstance(control, AppearanceControl) else "reference"
    return towards == which
