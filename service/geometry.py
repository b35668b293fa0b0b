"""Points and boxes of a request → fractions of the picture, checked; and back, for the echo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs import controls as effective
from service import controls as public
from service.errors import InvalidRequest


@dataclass(frozen=True)
class Picture:
    """The canvas that coordinates lie on.

    Attributes:
        width: px.
        height: px.
        in_pixels: whether the request's unit is ``px``.
    """

    width: int
    height: int
    in_pixels: bool

    def drags(self, asked: Sequence[public.Drag], pointer: str) -> tuple[effective.Drag, ...]:
        """Pairs of points.

        Raises:
            InvalidRequest: a point lies outside the picture, or a pair moves nothing.
        """
        found = []
        for index, drag in enumerate(asked):
            where = f"{pointer}/{index}"
            if drag.source == drag.destination:
                raise InvalidRequest.at(where, "from and to are the same point; nothing moves")
            found.append(
                effective.Drag(
                    source=self._point(drag.source, f"{where}/from"),
                    destination=self._point(drag.destination, f"{where}/to"),
                )
            )
        return tuple(found)

    def box(self, asked: public.Box, pointer: str) -> effective.Box:
        """A box.

        Raises:
            InvalidRequest: it reaches outside the picture or has no area.
        """
        across, down = self._extent()
        if min(asked.x0, asked.y0) < 0 or asked.x1 > across or asked.y1 > down:
            raise InvalidRequest.at(pointer, f"reaches outside the picture; {self._range()}")
        x0, x1 = asked.x0 / across, asked.x1 / across
        y0, y1 = asked.y0 / down, asked.y1 / down
        if not (x0 < x1 and y0 < y1):
            raise InvalidRequest.at(pointer, "a box needs x0 < x1 and y0 < y1")
        return effective.Box(x0=x0, y0=y0, x1=x1, y1=y1)

    def region(self, asked: public.Region, pointer: str) -> effective.Region:
        """A region; the errors are `box`'s."""
        if asked.boxes is None:
            return effective.Region(boxes=None, outside=asked.outside)
        boxes = [self.box(box, f"{pointer}/boxes/{index}") for index, box in enumerate(asked.boxes)]
        return effective.Region(boxes=tuple(boxes), outside=asked.outside)

    def pairs(self, asked: Sequence[public.BoxPair], pointer: str) -> tuple[effective.BoxPair, ...]:
        """Pairs of boxes; the errors are `box`'s."""
        found = []
        for index, pair in enumerate(asked):
            where = f"{pointer}/{index}"
            reference = self.box(pair.reference, f"{where}/reference")
            picture = self.box(pair.picture, f"{where}/picture") if pair.picture else reference
            found.append(effective.BoxPair(reference=reference, picture=picture))
        return tuple(found)

    def _point(self, asked: public.Point, pointer: str) -> effective.Point:
        across, down = self._extent()
        if not (0 <= asked.x < across and 0 <= asked.y < down):
            raise InvalidRequest.at(
                pointer, f"({asked.x:g}, {asked.y:g}) lies outside the picture; {self._range()}"
            )
        return effective.Point(x=asked.x / across, y=asked.y / down)

    def _extent(self) -> tuple[float, float]:
        return (self.width, self.height) if self.in_pixels else (1.0, 1.0)

    def _range(self) -> str:
        if self.in_pixels:
            return f"it is {self.width} by {self.height} px"
        return 'x and y are fractions from 0 to 1, unless unit is "px"'


def echo_drags(drags: Sequence[effective.Drag]) -> tuple[public.Drag, ...]:
    """In fractions."""
    return tuple(
        public.Drag(
            source=public.Point(**drag.source.model_dump()),
            destination=public.Point(**drag.destination.model_dump()),
        )
        for drag in drags
    )


def echo_region(region: effective.Region) -> public.Region:
    """In fractions."""
    if region.boxes is None:
        return public.Region(outside=region.outside)
    boxes = tuple(public.Box(**box.model_dump()) for box in region.boxes)
    return public.Region(boxes=boxes, outside=region.outside)


def echo_pairs(pairs: Sequence[effective.BoxPair]) -> tuple[public.BoxPair, ...]:
    """In fractions."""
    return tuple(
        public.BoxPair(
            reference=public.Box(**pair.reference.model_dump()),
            picture=public.Box(**pair.picture.model_dump()),
        )
        for pair in pairs
    )
