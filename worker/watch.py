"""From one sampler batch to the jobs in it: distances and finished frames, on the way.

The sampler knows rows; those who look on know jobs, by their position in the batch, and their
pictures. Frames are decoded here, once: the result has the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from heads_registry.base_model import BaseModel
from heads_registry.targets import readout_image
from worker.images import feature_image, to_images
from worker.models import LoadedHead
from worker.monitor import Measured
from worker.plan import Snapshot

Distances = list[list[Measured | None]]
"""By picture and control."""


@dataclass(frozen=True)
class EvolutionFrame:
    """What the model saw at one step: the predicted clean picture and the readouts (figure 15).

    Attributes:
        step: its index.
        image: the predicted clean picture.
        readouts: of its controls.
        index: of the picture, among all that its job computes.
    """

    step: int
    image: Image.Image
    readouts: list[Image.Image]
    index: int = 0


class Audience(Protocol):
    """Who follows the jobs of a batch; must not hold them up."""

    def on_distances(self, job: int, distances: Distances) -> None:
        """Before a step: the newest distances of the job at that position in the batch."""

    def on_frames(self, job: int, frames: Sequence[EvolutionFrame]) -> None:
        """After one of `evolution_steps`: its frames."""


class Frames:
    """Follows the rows of one sampler run, and keeps the frames for the result.

    Attributes:
        by_row: the frames of each row.
    """

    def __init__(
        self,
        model: BaseModel,
        heads: Sequence[list[LoadedHead]],
        owners: Sequence[tuple[int, int]],
        audience: Audience | None,
        lap: Callable[[str], None],
    ) -> None:
        """Nothing has been seen.

        Args:
            model: decodes.
            heads: of each row's controls.
            owners: the job and the picture that each row is.
            audience: is told; None: nobody looks on.
            lap: ends a stage of the clock.
        """
        self.by_row: list[list[EvolutionFrame]] = [[] for _ in owners]
        self._model, self._heads, self._owners = model, heads, owners
        self._audience, self._lap = audience, lap

    def on_distances(self, distances: Distances) -> None:
        """The rows' newest distances, job by job."""
        if self._audience is None:
            return
        for job, rows in self._jobs().items():
            self._audience.on_distances(job, [distances[row] for row in rows])

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Decode, keep and show."""
        self._lap("sample")
        pictures = to_images(self._model.decode(snapshot.pred_original_sample))
        for row, picture in enumerate(pictures):
            readouts = readout_images(snapshot.readouts[row], self._heads[row])
            index = self._owners[row][1]
            frame = EvolutionFrame(snapshot.step_index, picture, readouts, index)
            self.by_row[row].append(frame)
        self._lap("decode")
        if self._audience is not None:
            for job, rows in self._jobs().items():
                self._audience.on_frames(job, [self.by_row[row][-1] for row in rows])

    def _jobs(self) -> dict[int, list[int]]:
        """The rows of each job."""
        rows: dict[int, list[int]] = {}
        for row, (job, _) in enumerate(self._owners):
            rows.setdefault(job, []).append(row)
        return rows


def readout_images(readouts: list, heads: Sequence[LoadedHead]) -> list[Image.Image]:
    """Readouts as pictures: a spatial head's as it is, another's by its principal components."""
    return [
        Image.fromarray(readout_image(readout, head.manifest.value_range))
        if head.manifest.kind == "spatial"
        else feature_image(readout)
        for readout, head in zip(readouts, heads, strict=True)
    ]
