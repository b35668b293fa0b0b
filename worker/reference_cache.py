"""Reference trajectories that were computed before: in memory, on disk, in object storage.

    memory          least recently used goes first, by bytes; what goes is spilled to
    disk            a directory that workers of one machine may share, by bytes too
    object storage  what was computed is put there at once, so that any worker finds it

Entries lie under a hash of all that decides their numbers (`worker.references`): whoever can name
one has the picture or the prompt already, and gets what it would have computed. A trajectory that
is too large for a budget keeps its latents and as many readouts as fit: what lacks is read again
from the latents (`worker.reference.complete`). An entry that is damaged is a miss.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import structlog

from jobs.errors import ObjectNotFound, StorageError
from jobs.references import reference_object
from jobs.store import ObjectStore
from worker.reference import Trajectory
from worker.trajectory_files import Damaged, decode_trajectory, encode_trajectory

Source = Literal["memory", "disk", "storage"]

ABANDONED_S = 3600.0
"""A file that is still being written after this long is not."""
PAUSE_S = 30.0
"""Object storage that failed is left alone for so long."""
_WAITING = 4

log = structlog.get_logger("worker.references")


def reference_key(facts: Mapping[str, Any]) -> str:
    """The key of everything that decides a trajectory's numbers: a hash of its canonical JSON."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Found(NamedTuple):
    """A trajectory, and where it was."""

    trajectory: Trajectory
    source: Source


class ReferenceCache:
    """Trajectories by key."""

    def __init__(
        self,
        budget_bytes: int,
        directory: Path | None = None,
        disk_bytes: int = 0,
        shared: SharedReferences | None = None,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.disk = Disk(directory, disk_bytes) if directory is not None else None
        self.shared = shared
        self._kept: OrderedDict[str, Trajectory] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(trajectory.nbytes for trajectory in self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: str) -> Found | None:
        """The trajectory, from the nearest place that has it; it may lack readouts."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return Found(self._kept[key], "memory")
        found = None
        if self.disk is not None and (trajectory := self.disk.get(key)) is not None:
            found = Found(trajectory, "disk")
        elif self.shared is not None and (trajectory := self.shared.get(key)) is not None:
            found = Found(trajectory, "storage")
        if found is not None and found.trajectory.nbytes <= self.budget_bytes:
            self._keep(key, found.trajectory)
        return found

    def put(self, key: str, trajectory: Trajectory) -> None:
        """Keep what has just been computed, and share it.

        What is dropped from memory for it goes to disk; a trajectory that alone is over the budget
        goes there whole, or is trimmed.
        """
        if self.shared is not None:
            self.shared.offer(key, trajectory)
        self._keep(key, trajectory)

    def _keep(self, key: str, trajectory: Trajectory) -> None:
        if trajectory.nbytes > self.budget_bytes and self._spill(key, trajectory):
            self._kept.pop(key, None)
            return
        self._kept[key] = trajectory.trimmed(self.budget_bytes)
        self._kept.move_to_end(key)
        while self._kept and self.nbytes > self.budget_bytes:
            oldest, dropped = self._kept.popitem(last=False)
            self._spill(oldest, dropped)

    def _spill(self, key: str, trajectory: Trajectory) -> bool:
        return self.disk is not None and self.disk.put(key, trajectory)

    def clear(self) -> None:
        """Forget what is in memory, as after running out of it."""
        self._kept.clear()


class Disk:
    """Trajectories as files; the longest unused go first."""

    def __init__(self, directory: Path, budget_bytes: int) -> None:
        self.directory = directory
        self.budget_bytes = budget_bytes

    def put(self, key: str, trajectory: Trajectory) -> bool:
        """Write what fits of a trajectory, whole or not at all; whether there was room for it."""
        trajectory = trajectory.trimmed(self.budget_bytes)
        if trajectory.nbytes > self.budget_bytes:
            return False
        path = self._path(key)
        staged = path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}.part")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            staged.write_bytes(encode_trajectory(key, trajectory))
            staged.replace(path)
            self._sweep()
        except OSError as error:  # a full disk costs the cache and not the job
            log.warning("reference.not_spilled", key=key, reason=str(error))
            with suppress(OSError):
                staged.unlink()
            return False
        return True

    def get(self, key: str) -> Trajectory | None:
        """The trajectory; None: there is none, or it was damaged and is gone now."""
        path = self._path(key)
        try:
            trajectory = decode_trajectory(key, path.read_bytes())
        except FileNotFoundError:  # never there, or swept by another worker
            return None
        except (Damaged, OSError) as error:
            log.warning("reference.damaged", place="disk", key=key, reason=str(error))
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):  # swept meanwhile
            os.utime(path)
        return trajectory

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.safetensors"

    def _sweep(self) -> None:
        """Delete what was longest unused until the directory is within its budget."""
        found = []
        for path in [*self.directory.glob("*.safetensors"), *self.directory.glob("*.part")]:
            try:
                status = path.stat()
            except FileNotFoundError:  # another worker's sweep
                continue
            if path.suffix != ".part":
                found.append((status.st_mtime_ns, status.st_size, path))
            elif time.time() - status.st_mtime > ABANDONED_S:
                path.unlink(missing_ok=True)
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found, key=lambda entry: entry[0]):
            if total <= self.budget_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


class SharedReferences:
    """Trajectories in object storage, for all workers; the reconciler sees that they go again.

    A thread puts them there, so that no job waits. Storage that fails costs the cache and not the
    job: it is left alone for a while.
    """

    def __init__(self, store: ObjectStore, entry_bytes: int) -> None:
        """Nothing is asked of storage yet.

        Args:
            store: object storage.
            entry_bytes: of one trajectory; readouts over it are left out.
        """
        self._store = store
        self._entry_bytes = entry_bytes
        self._quiet_until = 0.0
        self._waiting: queue.Queue[tuple[str, Trajectory]] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None

    def get(self, key: str) -> Trajectory | None:
        """The trajectory; None: there is none, it is damaged, or storage does not answer."""
        if time.monotonic() < self._quiet_until:
            return None
        try:
            return decode_trajectory(key, self._store.get_bytes(reference_object(key)))
        except ObjectNotFound:
            return None
        except Damaged as error:
            log.warning("reference.damaged", place="storage", key=key, reason=str(error))
            self._try(lambda: self._store.delete(reference_object(key)), key)
        except StorageError as error:
            self._pause(key, error)
        return None

    def offer(self, key: str, trajectory: Trajectory) -> None:
        """Store a trajectory soon; where too many wait already, not at all."""
        trajectory = trajectory.trimmed(self._entry_bytes)
        if trajectory.nbytes > self._entry_bytes:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="references", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((key, trajectory))
        except queue.Full:
            log.info("reference.not_shared", key=key, reason="too many wait")

    def flush(self) -> None:
        """Wait until nothing waits."""
        self._waiting.join()

    def _work(self) -> None:
        while True:
            key, trajectory = self._waiting.get()
            try:
                if time.monotonic() >= self._quiet_until:
                    self._store_now(key, encode_trajectory(key, trajectory))
            except Exception:
                log.exception("reference.not_shared", key=key)
            finally:
                self._waiting.task_done()

    def _store_now(self, key: str, data: bytes) -> None:
        name, media_type = reference_object(key), "application/octet-stream"
        self._try(lambda: self._store.put_bytes(name, data, media_type), key)

    def _try(self, call: Callable[[], None], key: str) -> None:
        try:
            call()
        except StorageError as error:
            self._pause(key, error)

    def _pause(self, key: str, error: StorageError) -> None:
        self._quiet_until = time.monotonic() + PAUSE_S
        log.warning("reference.storage_fails", key=key, reason=str(error))
