"""Effective controls → the sampler's targets: images drawn, points and boxes put on the grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from heads_registry.base_model import BaseModel
from heads_registry.targets import fit_image, image_target
from jobs.controls import Box, Region
from jobs.request import Adapter as AskedAdapter
from jobs.request import (
    AppearanceControl,
    CorrespondenceControl,
    GenerationRequest,
    IdentityControl,
    Pose,
    SpatialControl,
    StoredImage,
)
from openpose import draw_pose
from worker.adapters import AdapterInput
from worker.guidance import Objective, ReadoutTarget, ReferenceReadouts
from worker.models import LoadedAdapter, LoadedHead
from worker.objectives import Box as GridBox
from worker.objectives import (
    appearance_distance,
    boxed_distance,
    correspondence_distance,
    correspondence_error,
    spatial_distance,
)

LoadImage = Callable[[StoredImage], Image.Image]
Cell = tuple[int, int]
Place = tuple[float, float]
SHORTEST_DRAG = 0.5
"""In cells of the grid: over a shorter way the map hardly differs."""
RelativeControl = CorrespondenceControl | AppearanceControl | IdentityControl


class InvalidControl(Exception):
    """A control that can do nothing at this size; the message says what to change."""


@dataclass(frozen=True)
class Canvas:
    """What controls lie on.

    Attributes:
        model: the base model.
        request: its size and its controls.
    """

    model: BaseModel
    request: GenerationRequest

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the latents, which relative heads' readouts have too."""
        _, h, w = self.model.latent_shape(self.request.height, self.request.width)
        return h, w

    def spatial(
        self, head: LoadedHead, control: SpatialControl, load_image: LoadImage
    ) -> ReadoutTarget:
        """The target of a spatially aligned control."""
        manifest = head.manifest
        h, w = self.grid
        image = control_image(control, self.request.width, self.request.height, load_image)
        size = (h * manifest.output_scale, w * manifest.output_scale)
        target = image_target(image, size, manifest.value_range, manifest.target_resampling)
        low, high = manifest.value_range
        return ReadoutTarget(
            head=head.network,
            taps=manifest.feature_taps,
            timestep_convention=manifest.timestep_convention,
            target=target.to(self.model.device),
            objective=spatial_distance,
            weight=control.weight,
            span=control.span,
            update_scale=self._update_scale(head),
            latent_range=high - low,
        )

    def relative(
        self,
        head: LoadedHead,
        control: RelativeControl,
        readouts: ReferenceReadouts,
        way: float = 1.0,
    ) -> ReadoutTarget:
        """The target of a control that compares with a reference.

        Args:
            head: the control's.
            control: what is asked for.
            readouts: the reference's.
            way: how far the points of a drag have moved, 0 to 1; before that is `SHORTEST_DRAG`
                there is nothing to ask for, and the weight is 0.

        Raises:
            InvalidControl: it can do nothing on this grid.
        """
        weight = control.weight
        if isinstance(control, CorrespondenceControl):
            pairs = self._pairs(control, way)
            moved = [pair for pair in pairs if math.dist(*pair) >= SHORTEST_DRAG]
            objective, measure = self._drag(moved or pairs)
            weight = weight if moved else 0.0
        else:
            objective = measure = self._objective(control)
        return ReadoutTarget(
            head=head.network,
            taps=head.manifest.feature_taps,
            timestep_convention=head.manifest.timestep_convention,
            target=readouts,
            objective=objective,
            weight=weight,
            span=control.span,
            update_scale=self._update_scale(head),
            measure=measure,
            latent_range=None if isinstance(control, CorrespondenceControl) else 1.0,
        )

    def adapter(
        self, adapter: LoadedAdapter, asked: AskedAdapter, load_image: LoadImage
    ) -> AdapterInput:
        """What an adapter is shown: the image at the picture's size, in [0, 1]."""
        size = (self.request.height, self.request.width)
        image = control_image(asked, self.request.width, self.request.height, load_image)
        image = image.convert("L") if adapter.image_channels == 1 else image
        shown = image_target(image, size, (0.0, 1.0), adapter.manifest.resampling)
        return AdapterInput(adapter, shown[: adapter.image_channels], asked.scale, asked.span)

    def _objective(self, control: AppearanceControl | IdentityControl) -> Objective:
        """What is minimised and reported."""
        if isinstance(control, IdentityControl):
            boxes = [(self._box(pair.reference), self._box(pair.picture)) for pair in control.boxes]
            return partial(boxed_distance, boxes=boxes)
        if control.region is not None:
            return partial(appearance_distance, region=self._mask(control.region))
        return partial(appearance_distance)

    def _drag(self, pairs: Sequence[tuple[Place, Place]]) -> tuple[Objective, Objective]:
        """What is minimised and what is reported."""
        source, destination = torch.tensor(pairs, device=self.model.device).unbind(1)
        points = {"source": source, "destination": destination}
        return partial(correspondence_distance, **points), partial(correspondence_error, **points)

    def _pairs(self, control: CorrespondenceControl, way: float) -> list[tuple[Place, Place]]:
        """Places of the points on the grid, from and to, (y, x); cells' centres are whole numbers.

        Raises:
            InvalidControl: all the way of a pair is shorter than `SHORTEST_DRAG`.
        """
        pairs = []
        for index, drag in enumerate(control.points):
            start, end = drag.source, drag.destination
            x, y = start.x + way * (end.x - start.x), start.y + way * (end.y - start.y)
            pair = self._place(start.x, start.y), self._place(x, y)
            if way == 1 and math.dist(*pair) < SHORTEST_DRAG:
                cell = self.request.width // self.grid[1]
                raise InvalidControl(
                    f"pair {index} of the points moves by less than half a cell of the model's "
                    f"grid, which is {cell} px wide: nothing would move; drag farther"
                )
            pairs.append(pair)
        return pairs

    def _place(self, x: float, y: float) -> Place:
        """A point on the grid, (y, x)."""
        h, w = self.grid
        return y * h - 0.5, x * w - 0.5

    def _box(self, box: Box) -> GridBox:
        """Cells that a box touches: at least one, whatever rounding says of a thin one."""
        h, w = self.grid
        top, left = cell_of(box.x0, box.y0, self.grid)
        right, bottom = math.ceil(box.x1 * w), math.ceil(box.y1 * h)
        return left, top, max(right, left + 1), max(bottom, top + 1)

    def _mask(self, region: Region) -> Bool[Tensor, "h w"]:
        mask = torch.zeros(self.grid, dtype=torch.bool)
        for box in region.boxes:
            left, top, right, bottom = self._box(box)
            mask[top:bottom, left:right] = True
        mask = ~mask if region.outside else mask
        if not mask.any():
            raise InvalidControl("the boxes of a region leave nothing outside them; shrink them")
        return mask.to(self.model.device)

    def _update_scale(self, head: LoadedHead) -> float:
        assert self.model.manifest is not None
        return head.manifest.update_scale or self.model.manifest.update_scale


def cell_of(x: float, y: float, grid: tuple[int, int]) -> Cell:
    """The cell (y, x) of a point on a grid (h, w); what rounding puts at 1 lies in the last."""
    h, w = grid
    return min(int(y * h), h - 1), min(int(x * w), w - 1)


def control_image(
    control: SpatialControl | AskedAdapter, width: int, height: int, load_image: LoadImage
) -> Image.Image:
    """The control as a picture of the output's aspect: fitted, or drawn from its key points."""
    if control.image is not None:
        return fit_image(load_image(control.image), width, height, control.fit)
    assert control.pose is not None
    return _draw(control.pose, width, height, control.fit)


def _draw(pose: Pose, width: int, height: int, fit: str) -> Image.Image:
    """Key points moved as `fit` would move the pixels they lie on, then drawn at full size."""
    aspect = pose.aspect_ratio * height / width
    scale_x, scale_y = 1.0, 1.0
    if fit != "stretch":
        widen = (aspect > 1) == (fit == "cover")
        scale_x, scale_y = (aspect, 1.0) if widen else (1.0, 1 / aspect)
    people = [
        [
            None
            if point is None
            else (
                ((point.x - 0.5) * scale_x + 0.5) * width,
                ((point.y - 0.5) * scale_y + 0.5) * height,
            )
            for point in person
        ]
        for person in pose.people
    ]
    return draw_pose(people, width, height)
