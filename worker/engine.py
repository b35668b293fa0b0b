"""The torch side of the seam to run.py: executes requests, names what went wrong, warms up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import diffusers
import structlog
import torch
import transformers
from PIL import Image

from heads_registry.adapters import AdapterLoadError, AdapterMismatch
from heads_registry.base_model import ModelLoadError
from heads_registry.catalogue import (
    BUILTIN_DIR,
    Catalogue,
    IncompatibleAdapter,
    IncompatibleHead,
    UnknownAdapter,
    UnknownHead,
    UnknownModel,
)
from heads_registry.device import resolve_device, resolve_dtype
from heads_registry.loading import HeadMismatch, WeightsError
from heads_registry.manifest import RegistryError
from jobs.record import Failure, FailureCode
from jobs.request import GenerationRequest, OutputOptions
from jobs.store import ObjectStore
from worker.animation import UnsupportedFormat
from worker.controls import InvalidControl, LoadImage
from worker.execute import Execution, Thrift, execute, execute_together
from worker.faces import FaceDetector, NoFaceDetector, NoFaceFound, load_detector
from worker.failures import BatchTooLarge, DeviceLost, OutOfMemory
from worker.images import encode_image
from worker.init_image import InvalidMask
from worker.models import ModelCache
from worker.reference_cache import ReferenceCache, SharedReferences
from worker.references import InversionFailed
from worker.sampler import Diverged, OnStep
from worker.settings import WorkerSettings
from worker.watch import Audience

_CODES: tuple[tuple[type[Exception], FailureCode, str], ...] = (
    (UnknownModel, FailureCode.UNKNOWN_MODEL, "{error}"),
    (UnknownHead, FailureCode.UNKNOWN_HEAD, "{error}"),
    (IncompatibleHead, FailureCode.INCOMPATIBLE_HEAD, "{error}"),
    (HeadMismatch, FailureCode.INCOMPATIBLE_HEAD, "{error}"),
    (UnknownAdapter, FailureCode.UNKNOWN_ADAPTER, "{error}"),
    (IncompatibleAdapter, FailureCode.INCOMPATIBLE_ADAPTER, "{error}"),
    (AdapterMismatch, FailureCode.INCOMPATIBLE_ADAPTER, "{error}"),
    (AdapterLoadError, FailureCode.INTERNAL, "an adapter cannot be loaded; ask the operator"),
    (ModelLoadError, FailureCode.INTERNAL, "the model cannot be loaded; ask the operator"),
    (WeightsError, FailureCode.INTERNAL, "a head's weights cannot be loaded; ask the operator"),
    (RegistryError, FailureCode.INTERNAL, "the registry is broken; ask the operator"),
    (
        Diverged,
        FailureCode.DIVERGED,
        "{error}; lower the weights of the controls or the guidance scale",
    ),
    (InvalidControl, FailureCode.INVALID_TARGET, "{error}"),
    (UnsupportedFormat, FailureCode.UNSUPPORTED_FORMAT, "{error}"),
    (InvalidMask, FailureCode.INVALID_TARGET, "{error}"),
    (InversionFailed, FailureCode.INVALID_TARGET, "{error}"),
    (NoFaceFound, FailureCode.NO_FACE_FOUND, "{error}"),
    (NoFaceDetector, FailureCode.NO_FACE_DETECTOR, "{error}; or give boxes"),
    (
        OutOfMemory,
        FailureCode.OUT_OF_MEMORY,
        "one image of this size needs more memory than there is, even with the cheaper plan; ask "
        "for a smaller size or fewer controls",
    ),
)

CHEAPEST = Thrift(batch_images=1, checkpoint=True)
"""The one other try after running out of memory."""
LARGEST_SHARED_BYTES = 2**30
"""Of one reference in object storage; readouts beyond it are left out."""
LEAK_BYTES = 256 * 2**20
"""More than this still allocated after everything was dropped, and the process must end."""

log = structlog.get_logger("worker.engine")


class TorchEngine:
    """Models and heads on one device, and what run.py wants of them."""

    def __init__(self, models: ModelCache) -> None:
        self._models = models
        self.device = str(models.device)
        self.dtype = str(models.dtype or "auto").removeprefix("torch.")

    @classmethod
    def from_settings(cls, settings: WorkerSettings) -> TorchEngine:
        """The engine that the environment asks for.

        Raises:
            ManifestError: the registry is broken.
        """
        for library in (diffusers, transformers):  # the log is JSON lines, without progress bars
            library.utils.logging.disable_progress_bar()
            library.utils.logging.set_verbosity_error()
        if settings.num_threads:
            torch.set_num_threads(settings.num_threads)
        device = resolve_device(settings.device)
        catalogue = Catalogue((BUILTIN_DIR, *settings.registry_dirs))
        dtype = None if settings.dtype == "auto" else resolve_dtype(settings.dtype, device)
        shared = None
        if total := settings.reference_storage_bytes:
            entry_bytes = min(total // 4, LARGEST_SHARED_BYTES)
            shared = SharedReferences(ObjectStore(settings), entry_bytes)
        references = ReferenceCache(
            settings.reference_cache_bytes,
            settings.reference_dir,
            settings.reference_disk_bytes,
            shared,
        )

        def load_faces(own: str) -> FaceDetector:
            return load_detector(own or settings.face_detector or "", settings.face_model)

        return cls(
            ModelCache(catalogue, settings.cache_bytes, device, dtype, references, load_faces)
        )

    def warm_up(self, names: tuple[str, ...] | None) -> None:
        """Load models with all their heads, and run each once, so that the first job is as fast.

        Args:
            names: None is the one that is installed, where there is just one.

        Raises:
            RegistryError: one is not there or cannot be loaded.
        """
        catalogue = self._models.catalogue
        if names is None:
            names = tuple(catalogue.models) if len(catalogue.models) == 1 else ()
        for name in names:
            start = time.perf_counter()
            manifest = catalogue.model(name)
            heads = catalogue.heads_for(manifest)
            for head in heads:
                self._models.head(name, head.id)
            execute(
                _warm_up_request(name, manifest.height, manifest.width),
                self._models,
                _no_image,
                lambda step_index, num_steps: None,
            )
            seconds = round(time.perf_counter() - start, 3)
            log.info("model.warm", model=name, heads=len(heads), seconds=seconds)

    def loaded(self) -> tuple[str, ...]:
        """Names of the models in the cache."""
        return self._models.loaded

    def execute(
        self,
        request: GenerationRequest,
        load_image: LoadImage,
        on_step: OnStep,
        audience: Audience | None = None,
    ) -> Execution:
        """Run a request (worker/execute.py); out of memory, once more by the cheapest plan.

        Raises:
            OutOfMemory: that was not enough either; all models are dropped.
            DeviceLost: the device takes no more work.
        """
        arguments = (request, self._models, load_image, on_step)
        try:
            return execute(*arguments, audience=audience)
        except Exception as error:
            reason = _memory_trouble(error)
        # Here the exception is gone, and with its traceback every tensor of the run.
        log.warning("job.out_of_memory", reason=reason, next="one image at a time, checkpointed")
        self._models.keep_only(request.model)
        try:
            return execute(*arguments, CHEAPEST, audience)
        except Exception as error:
            reason = _memory_trouble(error)
        self._models.clear()
        if self._models.device.type == "cuda":
            left = torch.cuda.memory_allocated(self._models.device)
            if left > LEAK_BYTES:
                raise DeviceLost(f"{left} bytes are still allocated after running out of memory")
        raise OutOfMemory(reason)

    def execute_together(
        self,
        requests: Sequence[GenerationRequest],
        load_image: LoadImage,
        on_step: OnStep,
        audience: Audience | None = None,
    ) -> list[Execution]:
        """Run requests of one group in one batch (worker/execute.py).

        Raises:
            BatchTooLarge: out of memory; what the run held is gone.
            DeviceLost: the device takes no more work.
        """
        try:
            return execute_together(requests, self._models, load_image, on_step, audience=audience)
        except Exception as error:
            reason = _memory_trouble(error)
        self._models.keep_only(requests[0].model)
        raise BatchTooLarge(reason)

    def encode(
        self, image: Image.Image, output: OutputOptions, parameters: dict[str, Any] | None
    ) -> bytes:
        """An image as a file; see worker/images.py."""
        return encode_image(image, output, parameters)

    def failure_of(self, error: Exception) -> Failure | None:
        """An expected failure's code and message; None: `error` is a bug."""
        for kind, code, message in _CODES:
            if isinstance(error, kind):
                return Failure(code=code, message=message.format(error=error))
        return None


def _memory_trouble(error: Exception) -> str:
    """What the allocator said; any other error is raised again.

    Raises:
        DeviceLost: the CUDA context is broken, and stays so in this process.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return text.partition("\n")[0]
    if isinstance(error, RuntimeError) and "CUDA error" in text:
        raise DeviceLost(text.partition("\n")[0]) from error
    raise error


def _no_image(_: object) -> Image.Image:
    raise AssertionError("a warm-up has no controls")


def _warm_up_request(model: str, height: int, width: int) -> GenerationRequest:
    return GenerationRequest(
        task="text_to_image",
        model=model,
        prompt="",
        negative_prompt="",
        num_images=1,
        seed=0,
        height=height,
        width=width,
        num_inference_steps=2,
        guidance_scale=7.5,
        eta=0.0,
        form="two_pass",
        branch="unconditional",
        update_rule="elementwise",
    )
