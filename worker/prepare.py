"""A request's items for the sampler: targets, what adapters see, and the references behind some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from heads_registry.base_model import BaseModel
from jobs.controls import Box, BoxPair
from jobs.request import (
    AppearanceControl,
    CorrespondenceControl,
    GenerationRequest,
    IdentityControl,
    InvertedReference,
    SampledReference,
    SpatialControl,
)
from worker.animation import check_format
from worker.controls import Canvas, LoadImage, RelativeControl
from worker.faces import FaceDetector, largest_face
from worker.guidance import ReadoutTarget
from worker.init_image import Beginning, init_image, mask_of
from worker.models import LoadedAdapter, LoadedHead
from worker.reference import Trajectory, TrajectoryReadouts
from worker.references import POOR_PSNR_DB, Noise, References, guided_or_last
from worker.sampler import SampleItem


class Prepared:
    """What one request brings into a batch.

    Attributes:
        request: the effective one.
        heads: of its controls.
        faces: finds those that are not given; asked for where it is needed.
        boxes: of each picture, the faces that its identity controls compare, by position.
        references: what provided its trajectories.
        reference: the trajectory of its reference.
        beginning: its init image, or the reference that its mask lies on.
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
        faces: Callable[[], FaceDetector],
    ) -> None:
        self.request, self.heads, self.references = request, heads, references
        self.reference: Trajectory | None = None
        if request.output.animation is not None:
            check_format(request.output.animation)
        self.faces = faces
        self.boxes: list[dict[int, tuple[BoxPair, ...]]] = []
        self._face: Box | None = None
        self._originals: dict[int, Trajectory] = {}
        pairs = list(zip(request.controls, heads, strict=True))
        canvas = self.canvas = Canvas(model, request)
        # before the reference, which costs time: a control that can do nothing is told at once
        unread = TrajectoryReadouts(Trajectory(torch.empty(0)), "")
        self.targets = [
            canvas.spatial(head, control, load_image)
            if isinstance(control, SpatialControl)
            else canvas.relative(head, _drafted(control), unread)
            for control, head in pairs
        ]
        mask = mask_of(request, model, load_image)
        self.beginning: Beginning | None = init_image(request, mask, model, load_image)
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
            if mask is not None and self.beginning is None:
                self.beginning = references.kept(request.reference, self.reference, mask)
        self.items = self._items()

    @property
    def counted(self) -> dict[str, float]:
        """U-Net passes for references, and how many references were known from where.

        The passes are 0 where all was in the cache; nothing is said where there is no reference.
        """
        request = self.request
        if request.reference is None and all(
            isinstance(control, SpatialControl) for control in request.controls
        ):
            return {}
        found = {f"reference_from_{place}": float(n) for place, n in self.references.found.items()}
        return {"reference_forwards": float(self.references.forwards)} | found

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
        noise = self._noise()
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
                    start=noise.latents if noise else None,
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
        controls = self._with_faces(seed)
        for position, (control, head) in enumerate(zip(controls, self.heads, strict=True)):
            target = self.targets[position]
            if isinstance(control, SpatialControl):
                targets.append(target)
                continue
            trajectory = self.reference
            if _compares_with(control, "original"):
                original = original or self._original(seed)
                trajectory = original
            assert trajectory is not None
            readouts = TrajectoryReadouts(trajectory, head.manifest.sha256)
            is_its_own = control is not self.request.controls[position]  # by the boxes of its face
            if is_its_own or (way != 1 and isinstance(control, CorrespondenceControl)):
                target = self.canvas.relative(head, control, readouts, way)
            targets.append(replace(target, target=readouts, weight=target.weight * factor))
        return targets

    def _with_faces(self, seed: int) -> list[RelativeControl | SpatialControl]:
        """The controls of one picture, with the boxes of faces that were left to be found."""
        controls = list(self.request.controls)
        if any(isinstance(one, IdentityControl) and one.boxes is None for one in controls):
            found = (self._pair(seed),)
            controls = [
                one.model_copy(update={"boxes": found})
                if isinstance(one, IdentityControl) and one.boxes is None
                else one
                for one in controls
            ]
        boxes = {
            position: one.boxes
            for position, one in enumerate(controls)
            if isinstance(one, IdentityControl) and one.boxes is not None
        }
        self.boxes.append(boxes)
        faces = tuple(pair.picture for pairs in boxes.values() for pair in pairs)
        return [
            one.model_copy(update={"region": one.region.model_copy(update={"boxes": faces})})
            if isinstance(one, AppearanceControl) and one.region and one.region.boxes is None
            else one
            for one in controls
        ]

    def _pair(self, seed: int) -> BoxPair:
        """The largest face of the reference, and of the picture that the seed gives unguided."""
        reference = self.request.reference
        assert reference is not None
        assert self.reference is not None
        if self._face is None:
            shown = self.references.picture(reference, self.reference)
            self._face = largest_face(self.faces(), shown, "the reference")
        original = self._original(seed)
        shown = self.references.picture(self._original_reference(seed), original)
        what = f"the picture that seed {seed} gives without guidance"
        return BoxPair(reference=self._face, picture=largest_face(self.faces(), shown, what))

    def _original(self, seed: int) -> Trajectory:
        """The picture's own trajectory without guidance, section 9.1, from the same start."""
        if (known := self._originals.get(seed)) is not None:
            return known
        pairs = zip(self.request.controls, self.heads, strict=True)
        compared = [(c, h) for c, h in pairs if _compares_with(c, "original")]
        steps = self._steps([control for control, _ in compared])
        reference, heads = self._original_reference(seed), [head for _, head in compared]
        inverted = isinstance(self.request.reference, InvertedReference)
        noise = self._noise() if inverted else None  # a sampled one's is that of the seed
        original = self.references.provide(reference, heads, steps, self.beginning, noise)
        self._originals = {seed: original}
        return original

    def _noise(self) -> Noise | None:
        """The reference's, where pictures begin with it."""
        reference = self.request.reference
        if self.request.start != "reference" or reference is None or self.reference is None:
            return None
        return Noise.of(reference, self.reference)

    def _original_reference(self, seed: int) -> SampledReference:
        request = self.request
        return SampledReference(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=seed,
            guidance_scale=request.guidance_scale,
            eta=request.eta,
        )

    def _steps(self, controls: list[RelativeControl | SpatialControl]) -> set[int]:
        spans = [control.span for control in controls]
        request = self.request
        return guided_or_last(spans, request.num_inference_steps, request.first_step)


def _drafted(control: RelativeControl) -> RelativeControl:
    """A control whose faces are not known yet, with the whole picture in their place."""
    whole = Box(x0=0, y0=0, x1=1, y1=1)
    if isinstance(control, IdentityControl) and control.boxes is None:
        return control.model_copy(update={"boxes": (BoxPair(reference=whole, picture=whole),)})
    if isinstance(control, AppearanceControl) and control.region and control.region.boxes is None:
        return control.model_copy(update={"region": None})
    return control


def _compares_with(control: RelativeControl | SpatialControl, which: str) -> bool:
    """Whether a control compares with the request's reference, or with the picture's original."""
    if isinstance(control, SpatialControl):
        return False
    towards = control.towards if isinstance(control, AppearanceControl) else "reference"
    return towards == which
