"""Reference trajectories that were computed before: least recently used goes first, by bytes.

What leaves memory is spilled to a directory, if there is one, as safetensors under its key; workers
may share it. A trajectory too large for the budget keeps its latents and as many readouts as fit:
what lacks is read again from the latents (`worker.reference.complete`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from worker.passes import Branch
from worker.reference import Trajectory


def reference_key(facts: Mapping[str, Any]) -> str:
    """The key of everything that decides a trajectory's numbers: a hash of its canonical JSON."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class ReferenceCache:
    """Trajectories by key, in memory and on disk."""

    def __init__(
        self, budget_bytes: int, directory: Path | None = None, disk_bytes: int = 0
    ) -> None:
        self.budget_bytes = budget_bytes
        self.directory = directory
        self.disk_bytes = disk_bytes
        self._kept: OrderedDict[str, Trajectory] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(trajectory.nbytes for trajectory in self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Trajectory | None:
        """The trajectory, from memory or from disk; it may lack readouts."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        trajectory = self._load(key)
        if trajectory is not None and trajectory.nbytes <= self.budget_bytes:
            self.put(key, trajectory)
        return trajectory

    def put(self, key: str, trajectory: Trajectory) -> None:
        """Keep what fits into the budget; what is dropped for it goes to disk.

        A trajectory that alone is over the budget goes there whole, or is trimmed.
        """
        if trajectory.nbytes > self.budget_bytes and self._spill(key, trajectory):
            self._kept.pop(key, None)
            return
        self._kept[key] = trajectory.trimmed(self.budget_bytes)
        self._kept.move_to_end(key)
        while self._kept and self.nbytes > self.budget_bytes:
            oldest, dropped = self._kept.popitem(last=False)
            self._spill(oldest, dropped)

    def clear(self) -> None:
        """Forget what is in memory, as after running out of it."""
        self._kept.clear()

    def _path(self, key: str) -> Path | None:
        return None if self.directory is None else self.directory / f"{key}.safetensors"

    def _spill(self, key: str, trajectory: Trajectory) -> bool:
        """Write a trajectory; whether there was room for any of it."""
        path = self._path(key)
        if path is None or self.directory is None:
            return False
        trajectory = trajectory.trimmed(self.disk_bytes)
        if trajectory.nbytes > self.disk_bytes:
            return False
        tensors = {"latents": trajectory.latents.contiguous()}
        for (reader, branch, step_index), readout in trajectory.readouts.items():
            tensors[f"{reader}/{branch}/{step_index}"] = readout.contiguous()
        metadata = {"psnr_db": json.dumps(trajectory.psnr_db)}
        self.directory.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(f".{os.getpid()}.part")
        save_file(tensors, staged, metadata=metadata)
        staged.replace(path)
        self._sweep()
        return True

    def _load(self, key: str) -> Trajectory | None:
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as stored:
                psnr_db = json.loads((stored.metadata() or {}).get("psnr_db", "null"))
                trajectory = Trajectory(stored.get_tensor("latents"), psnr_db=psnr_db)
                for name in stored.keys():  # noqa: SIM118 - a safetensors file, not a dict
                    if name != "latents":
                        reader, branch, step_index = name.rsplit("/", 2)
                        place = (reader, cast("Branch", branch), int(step_index))
                        trajectory.readouts[place] = stored.get_tensor(name)
            os.utime(path)
        except (OSError, SafetensorError, ValueError):  # damaged, or swept by another worker
            path.unlink(missing_ok=True)
            return None
        return trajectory

    def _sweep(self) -> None:
        """Delete what was longest unused until the directory is within its budget."""
        assert self.directory is not None
        found = []
        for path in self.directory.glob("*.safetensors"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another worker's sweep
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found, key=lambda entry: entry[0]):
            if total <= self.disk_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
