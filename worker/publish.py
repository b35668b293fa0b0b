"""An execution's pictures into object storage, and the summary and manifest that name them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from jobs.request import (
    Adapter,
    Control,
    GenerationRequest,
    InitImage,
    OutputOptions,
    Reference,
)
from jobs.result import (
    ControlDistance,
    ResultManifest,
    ResultSummary,
    StoredAnimation,
    StoredFrame,
    StoredReadout,
    StoredResult,
    attempt_prefix,
    distance_unit,
)
from worker.ranking import ranking, score

if TYPE_CHECKING:
    from worker.execute import Execution
    from worker.watch import EvolutionFrame

Encode = Callable[[Image.Image, OutputOptions, dict[str, Any] | None], bytes]
Put = Callable[[str, bytes, str], None]

MEDIA_TYPES = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "mp4": "video/mp4",
}
PLAIN_PNG = OutputOptions(format="png", embed_parameters=False)


@dataclass(frozen=True)
class Publication:
    """What is to be stored, and for which attempt.

    Attributes:
        frames: of the evolution that are in storage already, by picture and step.
        sha256: of the objects that are, by file name.
    """

    job_id: str
    attempt: int
    request: GenerationRequest
    execution: Execution
    frames: Mapping[tuple[int, int], StoredFrame] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)


def publish(publication: Publication, encode: Encode, put: Put) -> ResultSummary:
    """Store every picture, then the manifest; nothing of it counts until the record says so.

    Args:
        publication: pictures and request.
        encode: makes files of images.
        put: stores bytes under a key with a media type.

    Returns:
        The summary for the record.
    """
    shelf = _Shelf(publication, encode, put)
    images = tuple(shelf.store(index) for index in range(len(publication.execution.images)))
    animation = shelf.store_animation()
    execution = publication.execution
    manifest = ResultManifest(
        job_id=publication.job_id,
        attempt=publication.attempt,
        request=publication.request,
        images=images,
        sha256=shelf.sha256,
        timings=execution.timings,
        reference_psnr_db=execution.reference_psnr_db,
        warnings=execution.warnings,
        animation=animation,
        versions=dict(execution.versions),
        device=execution.device,
        dtype=execution.dtype,
    )
    text = manifest.model_dump_json(indent=1).encode()
    manifest_key = shelf.put("manifest.json", text, "application/json")
    return ResultSummary(
        attempt=publication.attempt,
        manifest_key=manifest_key,
        images=images,
        timings=execution.timings,
        reference_psnr_db=execution.reference_psnr_db,
        warnings=execution.warnings,
        animation=animation,
    )


def embedded_parameters(
    request: GenerationRequest, seed: int, versions: dict[str, str]
) -> dict[str, Any]:
    """What a PNG says of its own making: no object keys, no URLs, nothing of who asked."""
    parameters = request.model_dump(
        mode="json",
        exclude={
            *("num_images", "num_candidates", "keep", "controls", "output", "reference"),
            *("adapters", "init_image", "mask"),
        },
    )
    controls = [_without_keys(control) for control in request.controls]
    if request.adapters:
        parameters["adapters"] = [_without_keys(adapter) for adapter in request.adapters]
    if request.reference is not None:
        parameters["reference"] = _without_keys(request.reference)
    if request.init_image is not None:
        parameters["init_image"] = _without_keys(request.init_image)
    if request.mask is not None:
        parameters["mask_sha256"] = request.mask.sha256
    return parameters | {"seed": seed, "controls": controls, "versions": versions}


def _without_keys(part: Control | Adapter | Reference | InitImage) -> dict[str, Any]:
    """A part of a request with the hashes of its images in the place of where they are stored."""
    fields = part.model_dump(mode="json", exclude={"image", "origin"}, exclude_none=True)
    image = getattr(part, "image", None)
    return fields if image is None else fields | {"image_sha256": image.sha256}


def readout_names(controls: Sequence[Control]) -> list[str]:
    """A file-name part per control: its head's name, numbered where a head is used twice."""
    names = [control.head.rpartition("/")[2] for control in controls]
    count = Counter(names)
    return [
        f"{name}-{position}" if count[name] > 1 else name for position, name in enumerate(names)
    ]


def store_frame(
    request: GenerationRequest, frame: EvolutionFrame, png: Callable[[str, Image.Image], str]
) -> StoredFrame:
    """Store a frame of an evolution; `png` stores an image under a name and returns its key."""
    stem = f"evolution-{frame.index:03d}-step-{frame.step:03d}"
    names = readout_names(request.controls)
    return StoredFrame(
        step=frame.step,
        key=png(f"{stem}-image", frame.image),
        readouts=tuple(
            StoredReadout(head=control.head, key=png(f"{stem}-{name}", readout))
            for control, name, readout in zip(request.controls, names, frame.readouts, strict=True)
        ),
    )


class _Shelf:
    """Puts an attempt's files under its prefix and remembers their hashes."""

    def __init__(self, publication: Publication, encode: Encode, put: Put) -> None:
        self.sha256: dict[str, str] = dict(publication.sha256)
        self._frames = publication.frames
        self._request = publication.request
        self._execution = publication.execution
        self._prefix = attempt_prefix(publication.job_id, publication.attempt)
        self._names = readout_names(publication.request.controls)
        self._scores = [score(self._request, row) for row in self._execution.distances]
        order = ranking(self._scores)
        self._ranks = {index: rank for rank, index in enumerate(order)}
        self._encode = encode
        self._put = put

    def put(self, name: str, data: bytes, media_type: str) -> str:
        self.sha256[name] = hashlib.sha256(data).hexdigest()
        self._put(self._prefix + name, data, media_type)
        return self._prefix + name

    def store(self, index: int) -> StoredResult:
        """One image with its readouts and evolution."""
        execution, output = self._execution, self._request.output
        image, seed = execution.images[index], execution.seeds[index]
        parameters = embedded_parameters(self._request, seed, execution.versions)
        name = f"image-{index:03d}.{output.format}"
        data = self._encode(image, output, parameters)
        key = self.put(name, data, MEDIA_TYPES[output.format])
        readouts = execution.readouts[index] if output.readouts else []
        boxes = execution.boxes[index] if execution.boxes else {}
        return StoredResult(
            index=index,
            seed=seed,
            key=key,
            sha256=self.sha256[name],
            width=image.width,
            height=image.height,
            distances=self._distances(index),
            boxes={str(place): pairs for place, pairs in boxes.items()},
            readouts=self._readouts(f"readout-{index:03d}", readouts),
            evolution=self._evolution(index),
            score=self._scores[index],
            rank=None if self._scores[index] is None else self._ranks[index],
        )

    def store_animation(self) -> StoredAnimation | None:
        """The animation's file, where there is one."""
        asked, data = self._request.output.animation, self._execution.animation
        if asked is None or data is None:
            return None
        key = self.put(f"animation.{asked.format}", data, MEDIA_TYPES[asked.format])
        return StoredAnimation(key=key, format=asked.format, frames=asked.frames, fps=asked.fps)

    def _distances(self, index: int) -> dict[str, ControlDistance]:
        distances = self._execution.distances[index]
        return {
            str(position): ControlDistance(
                head=control.head,
                distance=distance,
                unit=distance_unit(control),
            )
            for position, (control, distance) in enumerate(
                zip(self._request.controls, distances, strict=True)
            )
        }

    def _readouts(self, stem: str, readouts: Sequence[Image.Image]) -> tuple[StoredReadout, ...]:
        if not readouts:
            return ()
        return tuple(
            StoredReadout(head=control.head, key=self._png(f"{stem}-{name}", readout))
            for control, name, readout in zip(
                self._request.controls, self._names, readouts, strict=True
            )
        )

    def _evolution(self, index: int) -> tuple[StoredFrame, ...]:
        """An image's frames; those that were shown while the job ran are there already."""
        frames = self._execution.evolution
        return tuple(
            self._frames.get((frame.index, frame.step))
            or store_frame(self._request, frame, self._png)
            for frame in (frames[index] if frames else ())
        )

    def _png(self, stem: str, image: Image.Image) -> str:
        return self.put(f"{stem}.png", self._encode(image, PLAIN_PNG, None), "image/png")
