"""Where references are kept: memory, disk, object storage; damage, budgets and failures."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from heads_registry.catalogue import Catalogue
from jobs.references import REFERENCES, expire_references, reference_object
from jobs.store import ObjectStore
from tests.servers import settings_for
from tests.worker.conftest import Stack
from tests.worker.test_references import INVERTED, SAMPLED, forwards, request, run, same
from worker.models import ModelCache
from worker.reference import Trajectory
from worker.reference_cache import ABANDONED_S, ReferenceCache, SharedReferences
from worker.trajectory_files import Damaged, decode_trajectory, encode_trajectory

KEY = "a" * 64


def trajectory(steps: int = 3, readouts: int = 2) -> Trajectory:
    latents = torch.arange(steps * 256.0).reshape(steps, 4, 8, 8)
    maps = {
        ("a/b", "conditional", step): torch.full((8, 8, 8), step, dtype=torch.float16)
        for step in range(readouts)
    }
    return Trajectory(latents, maps, psnr_db=21.5)


SIZE = trajectory().nbytes


def equal(first: Trajectory, second: Trajectory) -> bool:
    return (
        torch.equal(first.latents, second.latents)
        and first.psnr_db == second.psnr_db
        and first.readouts.keys() == second.readouts.keys()
        and all(torch.equal(first.readouts[key], second.readouts[key]) for key in first.readouts)
    )


def where(cache: ReferenceCache, key: str) -> str | None:
    found = cache.find(key)
    return found.source if found else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_is_the_trajectory_and_nothing_else(dtype: torch.dtype) -> None:
    whole = replace(trajectory(), latents=trajectory().latents.to(dtype))
    data = encode_trajectory(KEY, whole)
    assert equal(decode_trajectory(KEY, data), whole)
    middle = len(data) - 700
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    for wrong in (b"", data[:-10], data[:20], b"\xff" * 100, flipped, b"\0" * len(data)):
        with pytest.raises(Damaged):
            decode_trajectory(KEY, wrong)
    with pytest.raises(Damaged):
        decode_trajectory("b" * 64, data)


def test_the_longest_unused_goes_first_to_disk_and_comes_back(tmp_path: Path) -> None:
    cache = ReferenceCache(2 * SIZE, tmp_path / "spill", disk_bytes=10**6)
    for key in "abc":
        cache.put(key * 64, trajectory())
        assert where(cache, "a" * 64) == "memory"
    assert len(cache) == 2
    assert cache.nbytes == 2 * SIZE
    assert [path.stem[0] for path in (tmp_path / "spill").iterdir()] == ["b"]
    found = cache.find("b" * 64)
    assert found is not None
    assert found.source == "disk"
    assert equal(found.trajectory, trajectory())
    assert where(cache, "b" * 64) == "memory"
    assert where(cache, "d" * 64) is None
    cache.clear()
    assert cache.nbytes == 0


def test_the_disk_has_a_budget_and_damage_is_a_miss(tmp_path: Path) -> None:
    cache = ReferenceCache(0, tmp_path, disk_bytes=4 * SIZE)
    abandoned = tmp_path / "x.1-2.part"
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (0, time.time() - 2 * ABANDONED_S))
    for key in "abcdefghij":
        cache.put(key * 64, trajectory())
    files = list(tmp_path.iterdir())
    assert 2 <= len(files) <= 4
    assert sum(path.stat().st_size for path in files) <= 4 * SIZE
    assert all(path.suffix == ".safetensors" for path in files)
    last = tmp_path / ("j" * 64 + ".safetensors")
    last.write_bytes(last.read_bytes()[:-10])
    with capture_logs() as logs:
        assert where(cache, "j" * 64) is None
    assert logs[0]["event"] == "reference.damaged"
    assert not last.exists()
    small = ReferenceCache(0, tmp_path / "none", disk_bytes=10)
    small.put(KEY, trajectory())
    assert where(small, KEY) is None


def test_a_disk_that_takes_nothing_costs_no_job(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a directory should be")
    cache = ReferenceCache(0, tmp_path / "file" / "spill", disk_bytes=10**6)
    with capture_logs() as logs:
        cache.put(KEY, trajectory())
    assert logs[0]["event"] == "reference.not_spilled"


@pytest.mark.parametrize("reference", [SAMPLED, INVERTED], ids=["sampled", "inverted"])
def test_another_worker_finds_it_in_object_storage_bit_for_bit(
    stack: Stack, relative_registry: Path, reference: object
) -> None:
    def worker(entry_bytes: int = 10**8) -> tuple[ModelCache, SharedReferences]:
        shared = SharedReferences(stack.store, entry_bytes)
        cache = ReferenceCache(10**8, shared=shared)
        catalogue = Catalogue([relative_registry])
        return ModelCache(catalogue, 10**9, references=cache), shared

    (first, shared), asked = worker(), request(reference=reference)
    plain = run(first, asked)
    assert forwards(plain) > 0
    shared.flush()
    second, _ = worker()
    found = run(second, asked)
    assert same(plain, found)
    assert (forwards(found), found.timings["reference_from_storage"]) == (0, 1)
    assert found.reference_psnr_db == plain.reference_psnr_db
    assert run(second, asked).timings["reference_from_memory"] == 1
    [key] = stack.store.list_keys(REFERENCES)
    whole = len(stack.store.get_bytes(key))
    stack.store.put_bytes(key, stack.store.get_bytes(key)[:-5], "application/octet-stream")
    third, shared = worker(whole // 2)
    with capture_logs() as logs:
        again = run(third, asked)
    assert any(event["event"] == "reference.damaged" for event in logs)
    assert same(plain, again)
    assert forwards(again) == forwards(plain)
    shared.flush()
    assert len(stack.store.get_bytes(key)) < whole
    trimmed = run(worker()[0], asked)
    assert same(plain, trimmed)
    assert 0 < forwards(trimmed) < 4
    stack.store.delete_prefix(REFERENCES)


def test_storage_that_is_away_is_left_alone_for_a_while() -> None:
    store = ObjectStore(settings_for("redis://127.0.0.1:1", "http://127.0.0.1:1"))
    shared = SharedReferences(store, 10**8)
    cache = ReferenceCache(10**8, shared=shared)
    with capture_logs() as logs:
        assert where(cache, KEY) is None
        start = time.monotonic()
        assert where(cache, KEY) is None
        cache.put(KEY, trajectory())
        shared.flush()
        assert time.monotonic() - start < 0.5
    assert [event["event"] for event in logs] == ["reference.storage_fails"]
    assert where(cache, KEY) == "memory"
    store.close()


def test_shared_references_do_not_stay_for_ever(stack: Stack) -> None:
    shared = SharedReferences(stack.store, 10**8)
    for key in "abc":
        shared.offer(key * 64, trajectory())
        shared.flush()
        time.sleep(1.1)  # rclone's times have whole seconds
    left = stack.settings.model_copy(update={"reference_storage_bytes": 3 * SIZE})
    assert expire_references(stack.store, left) == 1
    kept = [reference_object(key * 64) for key in "bc"]
    assert list(stack.store.list_keys(REFERENCES)) == kept
    old = stack.settings.model_copy(update={"reference_ttl_s": -1})
    assert expire_references(stack.store, stack.settings) == 0
    assert expire_references(stack.store, old) == 2
