"""A sampling loop without any service: loads, warms up, says ready, and samples when told to."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from worker.models import ModelCache
from worker.sampler import SampleItem, SamplingPlan, sample


def main() -> None:
    """`python -m bench.chaos.bare MODEL STEPS RUNS REGISTRY_DIRS`."""
    name, steps, runs, registry = sys.argv[1:5]
    torch.set_num_threads(1)
    directories = [Path(part) for part in registry.split(":") if part]
    cache = ModelCache(Catalogue((BUILTIN_DIR, *directories)), 2**34)
    model = cache.model(name)
    assert model.manifest is not None
    plan = SamplingPlan(model.manifest.height, model.manifest.width, int(steps))
    items = [SampleItem("a person", seed=0)]
    model.decode(sample(model, items, plan).latents)
    print("ready", flush=True)
    sys.stdin.readline()
    for seed in range(int(runs)):
        model.decode(sample(model, [SampleItem("a person", seed=seed)], plan).latents)


if __name__ == "__main__":
    main()
