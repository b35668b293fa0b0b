"""Effective controls → the sampler's targets: images drawn, points and boxes put on the grid."""

from __future__ import annotations

import math
from collections.abc import Callable
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
        self, head: LoadedHead, control: RelativeControl, readouts: ReferenceReadouts
    ) -> ReadoutTarget:
        """The target of a control that compares with a reference.

        Raises:
            InvalidControl: it can do nothing on this grid.
        """
        objective, measure = self._objectives(control)
        return ReadoutTarget(
            head=head.network,
            taps=head.manifest.feature_taps,
            timestep_convention=head.manifest.timestep_convention,
            target=readouts,
            objective=objective,
            weight=control.weight,
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

    def _objectives(self, control: RelativeControl) -> tuple[Objective, Objective]:
        """What is minimised and what is reported."""
        if isinstance(control, CorrespondenceControl):
            points = self._points(control)
            return partial(correspondence_distance, **points), partial(
                correspondence_error, **points
            )
        objective: Objective
        if isinstance(control, IdentityControl):
            boxes = [(self._box(pair.reference), self._box(pair.picture)) for pair in control.boxes]
            objective = partial(boxed_distance, boxes=boxes)
        elif control.region is not None:
            objective = partial(appearance_distance, region=self._mask(control.region))
        else:
            objective = partial(appearance_distance)
        return objective, objective

    def _points(self, control: CorrespondenceControl) -> dict[str, Tensor]:
        """Pixels of the grid that the points lie in, (y, x)."""
        h, w = self.grid
        pairs = [
            [(int(point.y * h), int(point.x * w)) for point in (drag.source, drag.destination)]
            for drag in control.points
        ]
        for index, (source, destination) in enumerate(pairs):
            if source == destination:
                cell = self.request.width // w
                raise InvalidControl(
                    f"pair {index} of the points moves within one cell of the model's grid, which "
                    f"is {cell} px wide: nothing would move; drag farther"
                )
        source, destination = torch.tensor(pairs, device=self.model.device).unbind(1)
        return {"source": source, "destination": destination}

    def _box(self, box: Box) -> GridBox:
        """Cells that a box touches: at least one."""
        h, w = self.grid
        return (
            math.floor(box.x0 * w),
            math.floor(box.y0 * h),
            math.ceil(box.x1 * w),
            math.ceil(box.y1 * h),
        )

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
