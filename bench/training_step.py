"""`python -m bench.training_step`: a training step with and without the caches, and its memory.

Without: every step encodes its pictures with the VAE and the empty prompt with the text encoder.
The same loop on the same device. `--full-size` measures Stable Diffusion 1.5's sizes with random
weights, on which time does not depend, and the recipe's P = 384 and batch of 8.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from bench.full_size import sd15
from heads_registry.base_model import BaseModel
from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from heads_registry.device import resolve_device, resolve_dtype
from heads_registry.training.data import LabelledImages
from heads_registry.training.loop import HeadTrainer
from heads_registry.training.recipe import HeadRecipe
from heads_registry.training.tasks import SpatialTask

RECIPES = Path("heads_registry/training/recipes")


class WithoutCaches(HeadTrainer):
    """The same loop, with latents and text computed at every step."""

    def train_step(self) -> dict[str, torch.Tensor]:
        """Encode a batch of pictures and the prompt, then the step."""
        rows = torch.arange(self.batch_size)
        pixels = self.task.images[rows].float() / 127.5 - 1
        self.latents[rows] = self.model.encode(pixels).cpu()
        height, width = self.task.images.shape[2:]
        self.frozen.empty_prompt = self.model.encode_prompts([""], height, width)
        return super().train_step()


def seconds_per_step(trainer: HeadTrainer, steps: int) -> float:
    device = trainer.model.device
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        trainer.train_step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = resolve_device(options.device)
    if options.full_size:
        model, size = sd15(device, resolve_dtype("auto", device)), 512
        recipe = HeadRecipe.load(RECIPES / "sd-pose.yaml")
    else:
        manifest = Catalogue([BUILTIN_DIR]).model("mannequin-64")
        model, size = BaseModel.load(manifest, device), manifest.width
        recipe = HeadRecipe.load(RECIPES / "mannequin-pose.yaml")
    count = recipe.batch_size + 2
    pictures = torch.randint(256, (count, 3, size, size), dtype=torch.uint8)
    task = SpatialTask(LabelledImages(pictures, {str(recipe.label): pictures}), 2)
    result = {"device": str(device), "threads": torch.get_num_threads(), "steps": options.steps}
    for name, kind in (("cached", HeadTrainer), ("without caches", WithoutCaches)):
        with TemporaryDirectory() as run:
            trainer = kind(model, [recipe], task, Path(run), mixed_precision=device.type == "cuda")
            result[name + ", s/step"] = round(seconds_per_step(trainer, options.steps), 4)
        peak = (
            torch.cuda.max_memory_allocated(device)
            if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        result[name + ", peak MB so far"] = round(peak / 1e6)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
