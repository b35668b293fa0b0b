"""`readout doctor`: asks every peer and looks at every file; says what is wrong and how to mend it.

It may use any room, and only the command uses it. Nothing is changed but one object in storage,
put there and deleted again. A check is a generator of findings, and its bugs are findings too.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import redis

from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from heads_registry.manifest import AdapterManifest, HeadManifest, ModelManifest, RegistryError
from jobs.connection import connect, redis_errors
from jobs.keys import reconciler_key
from jobs.references import REFERENCES
from jobs.settings import CoreSettings
from jobs.store import ObjectStore
from jobs.workers import WorkerBoard

State = Literal["ok", "weak", "wrong"]
OLDEST_REDIS = (6, 2)
"""BLMOVE, which moves a job to a worker without losing it, came with 6.2."""
CLOCK_WEAK_S, CLOCK_WRONG_S = 5.0, 300.0
"""Presigned URLs and signed requests are refused at 15 minutes; logs mislead long before."""
MEMORY_WEAK = 0.9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: weak: works, and may lose or mislead; wrong: does not work, or loses jobs.
        about: what was looked at.
        says: how it is.
        mend: what to do about it.
    """

    state: State
    about: str
    says: str
    mend: str = ""


Findings = Iterator[Finding]


def examine(settings: CoreSettings) -> Findings:
    """Every finding, as it is made."""
    store = ObjectStore(settings)
    client = connect(settings)
    checks: tuple[tuple[str, Callable[[], Findings]], ...] = (
        ("redis", lambda: _redis(client)),
        ("redis clock", lambda: _redis_clock(client)),
        ("storage", lambda: _storage(store)),
        ("references", lambda: _references(store, settings)),
        ("registry", lambda: _registry(settings)),
        ("device", _device),
        ("workers", lambda: _processes(client, settings)),
    )
    for about, check in checks:
        try:
            yield from check()
        except Exception as error:
            yield Finding("wrong", about, f"{type(error).__name__}: {error}", _mend_of(about))
    client.close()
    store.close()


def _mend_of(about: str) -> str:
    if about in ("redis", "redis clock", "workers"):
        return "start Redis or Valkey, or correct READOUT_REDIS_URL"
    if about == "storage":
        return "start the object storage, or correct the READOUT_S3_… settings"
    return "see the message"


def _redis(client: redis.Redis) -> Findings:
    with redis_errors():
        found = cast("dict[str, Any]", client.info())
    name = "Valkey" if "valkey_version" in found else "Redis"
    version = str(found.get("valkey_version", found["redis_version"]))
    old = tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS
    needed = ".".join(map(str, OLDEST_REDIS))
    yield Finding(
        "wrong" if old else "ok",
        "redis version",
        f"{name} {version}",
        f"{needed} or newer is needed" if old else "",
    )
    yield from _persistence(client, found)
    yield _eviction(client, found)
    limit, used = int(found.get("maxmemory", 0)), int(found["used_memory"])
    if limit and used > MEMORY_WEAK * limit:
        says = f"{used:,} of {limit:,} bytes are used"
        yield Finding("weak", "redis memory", says, "raise maxmemory or lower READOUT_MAX_QUEUED")


def _persistence(client: redis.Redis, found: dict[str, Any]) -> Findings:
    about = "redis persistence"
    if not int(found.get("aof_enabled", 0)):
        says = "no append-only file: a restart loses jobs that were answered 202"
        yield Finding("wrong", about, says, "set appendonly yes and appendfsync always")
        return
    if found.get("aof_last_write_status", "ok") != "ok":
        says = "the append-only file cannot be written; its disk may be full"
        yield Finding("wrong", about, says, "make room on the disk of Redis")
        return
    fsync = _setting(client, "appendfsync")
    if fsync == "always":
        yield Finding("ok", about, "append-only file, fsync always")
        return
    lost = {"everysec": "up to a second", "no": "what the kernel had not written"}
    says = f"appendfsync {fsync or 'cannot be read'}: a crash may lose {lost.get(fsync, 'jobs')}"
    yield Finding("weak", about, says, "set appendfsync always")


def _eviction(client: redis.Redis, found: dict[str, Any]) -> Finding:
    about = "redis eviction"
    policy = found.get("maxmemory_policy") or _setting(client, "maxmemory-policy") or "unknown"
    if policy == "noeviction":
        return Finding("ok", about, "noeviction")
    limited = int(found.get("maxmemory", 0)) > 0
    says = f"{policy}: " + ("jobs are evicted when memory is short" if limited else "no limit yet")
    return Finding("wrong" if limited else "weak", about, says, "set maxmemory-policy noeviction")


def _setting(client: redis.Redis, name: str) -> str:
    """Empty where the server does not tell, as many hosted ones do not."""
    try:
        return str(cast("dict[str, str]", client.config_get(name)).get(name, ""))
    except redis.ResponseError:
        return ""


def _redis_clock(client: redis.Redis) -> Findings:
    before = time.time()
    with redis_errors():
        seconds, microseconds = cast("tuple[int, int]", client.time())
    yield _clock("redis", seconds + microseconds / 1e6 - (before + time.time()) / 2)


def _clock(whose: str, ahead_s: float) -> Finding:
    away_s = abs(ahead_s)
    state: State = "ok"
    if away_s > CLOCK_WEAK_S:
        state = "wrong" if away_s > CLOCK_WRONG_S else "weak"
    says = f"{away_s:.1f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's"
    mend = "run an NTP client on both machines" if state != "ok" else ""
    return Finding(state, f"{whose} clock", says, mend)


def _storage(store: ObjectStore) -> Findings:
    store.ensure_bucket()
    key, data = f"doctor/{secrets.token_hex(8)}", secrets.token_bytes(4096)
    start = time.perf_counter()
    store.put_bytes(key, data, "application/octet-stream")
    same = store.get_bytes(key) == data
    store.delete(key)
    gone = not store.list_keys(key)
    elapsed_ms = (time.perf_counter() - start) * 1000
    if not same:
        yield Finding("wrong", "storage", "an object came back changed", "do not use this server")
    elif not gone:
        mend = "allow DeleteObject, and look for object lock or versioning on the bucket"
        yield Finding("weak", "storage", "a deleted object is still listed", mend)
    else:
        yield Finding("ok", "storage", f"put, get and delete in {elapsed_ms:.0f} ms")
    if date := store.server_date():
        yield _clock("storage", parsedate_to_datetime(date).timestamp() + 0.5 - time.time())


def _references(store: ObjectStore, settings: CoreSettings) -> Findings:
    """Where references are kept beside memory; nothing where that is nowhere."""
    from worker.settings import WorkerSettings

    worker = WorkerSettings()
    if (directory := worker.reference_dir) is not None:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        about, free = "reference directory", shutil.disk_usage(existing).free
        if not os.access(existing, os.W_OK):
            mend = "let the worker write there, or correct READOUT_REFERENCE_DIR"
            yield Finding("weak", about, f"{directory} cannot be written", mend)
        elif free < worker.reference_disk_bytes:
            says = f"{free:,} bytes are free, {worker.reference_disk_bytes:,} may be used"
            yield Finding("weak", about, says, "lower READOUT_REFERENCE_DISK_BYTES")
        else:
            yield Finding("ok", about, f"{directory}, {free:,} bytes are free")
    if budget := settings.reference_storage_bytes:
        held = sum(entry.size_bytes for entry in store.list_objects(REFERENCES))
        says = f"{held:,} of {budget:,} bytes in object storage"
        over = held > 2 * budget
        mend = "start `readout reconciler` with the same settings" if over else ""
        yield Finding("weak" if over else "ok", "shared references", says, mend)


def _registry(settings: CoreSettings) -> Findings:
    try:
        catalogue = Catalogue((BUILTIN_DIR, *settings.registry_dirs))
    except RegistryError as error:
        mend = "correct the manifest, or READOUT_REGISTRY_DIRS"
        yield Finding("wrong", "registry", str(error), mend)
        return
    for model in catalogue.models.values():
        yield _model(model)
    families = {model.family for model in catalogue.models.values()}
    for head in catalogue.heads:
        yield _head(head, families)
    for adapter in catalogue.adapters:
        yield _adapter(adapter, families)


def _model(model: ModelManifest) -> Finding:
    return _pretrained(model, f"model {model.name}", "pipeline", "model_index.json")


def _adapter(adapter: AdapterManifest, families: set[str]) -> Finding:
    about = f"adapter {adapter.id}"
    if adapter.base_model not in families:
        says = f"no model of family {adapter.base_model} is installed"
        return Finding("weak", about, says, "install one, or remove the adapter")
    return _pretrained(adapter, about, adapter.type, "config.json")


def _pretrained(
    manifest: ModelManifest | AdapterManifest, about: str, what: str, needed: str
) -> Finding:
    """Whether what `from_pretrained` loads is there, and is what the manifest names."""
    location = Path(manifest.location)
    if not location.is_absolute():
        return Finding("ok", about, f"from the hub: {manifest.location}, at its first use")
    if not (location / needed).is_file():
        mend = f"put a diffusers {what} there, or correct `source` in {manifest.name}.yaml"
        return Finding("wrong", about, f"no {what} at {location}", mend)
    for name, expected in manifest.sha256.items():
        path = location / name
        if not path.is_file():
            return Finding("wrong", about, f"{name} is missing", "install it again")
        if _sha256(path) != expected:
            says = f"{name} is not the file that the manifest names"
            return Finding("wrong", about, says, "install it again")
    hashes = f", {len(manifest.sha256)} hashes" if manifest.sha256 else ""
    return Finding("ok", about, f"files are there{hashes}")


def _head(head: HeadManifest, families: set[str]) -> Finding:
    about = f"head {head.id}"
    if not head.weights_path.is_file():
        says = f"no weights at {head.weights_path}"
        return Finding("wrong", about, says, "put the file there, or remove the manifest")
    if _sha256(head.weights_path) != head.sha256:
        says = f"{head.weights_path.name} is not the file that the manifest names"
        return Finding("wrong", about, says, "fetch the file again, or correct the manifest")
    if head.base_model not in families:
        says = f"no model of family {head.base_model} is installed"
        return Finding("weak", about, says, "install one, or remove the head")
    return Finding("ok", about, "file and hash")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _device() -> Findings:
    if find_spec("torch") is None:
        yield Finding("ok", "device", "torch is not installed here: no worker can run here")
        return
    import torch

    from heads_registry.device import resolve_device, resolve_dtype
    from worker.settings import WorkerSettings

    settings = WorkerSettings()
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    try:
        square = torch.ones(64, 64, device=device, dtype=dtype)
        good = bool(((square @ square) == 64).all())
    except RuntimeError as error:
        yield Finding(
            "wrong",
            "device",
            f"{device}: {str(error).partition(chr(10))[0]}",
            "look at the driver, or set READOUT_DEVICE",
        )
        return
    memory = ""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        memory = f", {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    says = f"{device}, {str(dtype).removeprefix('torch.')}{memory}"
    yield Finding("ok" if good else "wrong", "device", says, "" if good else "it computes wrongly")


def _processes(client: redis.Redis, settings: CoreSettings) -> Findings:
    alive = WorkerBoard(client, settings).alive()
    if alive:
        yield Finding("ok", "workers", f"{len(alive)} alive")
    else:
        yield Finding("weak", "workers", "none is alive: jobs wait", "start `readout worker`")
    with redis_errors():
        reconciler = bool(client.exists(reconciler_key(settings)))
    if reconciler:
        yield Finding("ok", "reconciler", "alive")
    else:
        says = "none is alive: jobs of dead workers wait"
        yield Finding("weak", "reconciler", says, "start `readout reconciler`")


def main(settings: CoreSettings, write: Callable[[str], None]) -> int:
    """Examine and print.

    Returns:
        The exit status: 1 where something is wrong, else 0.
    """
    worst: State = "ok"
    for finding in examine(settings):
        marks = {"ok": "ok   ", "weak": "WEAK ", "wrong": "WRONG"}
        mend = f"\n      → {finding.mend}" if finding.mend else ""
        write(f"{marks[finding.state]} {finding.about}: {finding.says}{mend}")
        worst = max(worst, finding.state, key=("ok", "weak", "wrong").index)
    return 1 if worst == "wrong" else 0
