"""What clients see of a job that still runs: its frames and its distances, without holding it up.

A thread stores the frames of `evolution_steps` and tells of them; the result names the same
objects. Where storage fails it gives up, and publishing stores what is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING

import structlog
from PIL import Image

from jobs.errors import JobsError
from jobs.record import RecordStore
from jobs.request import GenerationRequest
from jobs.result import Preview, StoredFrame, attempt_prefix, distance_unit
from jobs.state import CurrentDistance
from worker.lease import Lease
from worker.publish import PLAIN_PNG, Encode, store_frame

if TYPE_CHECKING:
    from worker.watch import Distances, EvolutionFrame

log = structlog.get_logger("worker.previews")


class Previews:
    """One attempt's frames.

    Attributes:
        frames: those in storage, by picture and step.
        sha256: of every object, by file name.
    """

    def __init__(
        self,
        lease: Lease,
        request: GenerationRequest,
        records: RecordStore,
        encode: Encode,
        put: Callable[[str, bytes], None],
        thread: Executor,
    ) -> None:
        """Nothing is stored yet.

        Args:
            lease: the hold on the job; frames of one that is over are not stored.
            request: of the job.
            records: is told.
            encode: makes files of images.
            put: stores bytes under a key.
            thread: does all of it, one thing after the other.
        """
        self.frames: dict[tuple[int, int], StoredFrame] = {}
        self.sha256: dict[str, str] = {}
        self._lease, self._request, self._records = lease, request, records
        self._encode, self._put, self._thread = encode, put, thread
        self._under_way: list[Future[None]] = []
        self._has_ended = False

    def offer(self, frames: Sequence[EvolutionFrame]) -> None:
        """Store frames of one step soon, and tell of them."""
        self._under_way.append(self._thread.submit(self._show, frames))

    def close(self) -> None:
        """Store no more; what is under way is done when this returns."""
        self._has_ended = True
        for one in self._under_way:
            one.result()

    def finish(self) -> None:
        """Wait until everything offered is stored, or given up."""
        for one in self._under_way:
            one.result()

    def _show(self, frames: Sequence[EvolutionFrame]) -> None:
        if self._has_ended or self._lease.is_over:
            return
        try:
            for frame in frames:
                stored = store_frame(self._request, frame, self._png)
                self.frames[frame.index, frame.step] = stored
            shown = {key: _preview(key[0], stored) for key, stored in self.frames.items()}
            fresh = [shown[frame.index, frame.step] for frame in frames]
            so_far = sorted(shown.values(), key=lambda preview: (preview.step, preview.index))
            self._records.preview(self._lease.job_id, self._lease.attempt, fresh, so_far)
        except JobsError as error:
            self._has_ended = True
            log.warning("previews.ended", job_id=self._lease.job_id, reason=str(error))
        except Exception:
            self._has_ended = True
            log.exception("previews.failed", job_id=self._lease.job_id)

    def _png(self, stem: str, image: Image.Image) -> str:
        name, data = f"{stem}.png", self._encode(image, PLAIN_PNG, None)
        key = attempt_prefix(self._lease.job_id, self._lease.attempt) + name
        self._put(key, data)
        self.sha256[name] = hashlib.sha256(data).hexdigest()
        return key


class Onlookers:
    """The jobs of a batch as the engine's audience."""

    def __init__(self, jobs: Sequence[tuple[GenerationRequest, Lease, Previews]]) -> None:
        self._jobs = jobs

    def on_distances(self, job: int, distances: Distances) -> None:
        """Go out with the next progress."""
        request, lease, _ = self._jobs[job]
        lease.distances = current_distances(request, distances)

    def on_frames(self, job: int, frames: Sequence[EvolutionFrame]) -> None:
        """Are stored and told of."""
        self._jobs[job][2].offer(frames)


def current_distances(
    request: GenerationRequest, distances: Distances
) -> tuple[CurrentDistance, ...]:
    """Means over the pictures, of the controls that have been measured."""
    found = []
    for position, control in enumerate(request.controls):
        known = [row[position] for row in distances]
        measured = [one for one in known if one is not None]
        if measured:
            found.append(
                CurrentDistance(
                    control=position,
                    head=control.head,
                    distance=sum(one.distance for one in measured) / len(measured),
                    unit=distance_unit(control),
                    step=max(one.step_index for one in measured),
                )
            )
    return tuple(found)


def _preview(index: int, stored: StoredFrame) -> Preview:
    return Preview(index=index, **stored.model_dump())
