"""`python -m evaluation.train_attributes people` (or `faces`): trains a recogniser on clean renders
of the judge's seeds, and says how often it is right on renders it has never seen."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from evaluation.attributes import (
    FACES,
    PEOPLE,
    Attributes,
    Kind,
    Recogniser,
    agreement,
    crop_faces,
    labels_of,
)
from evaluation.train_judge import blur_some
from world.faces import face_of
from world.parts import Scene
from world.render import render_rgb
from world.scene import sample_scene
from world.seeds import JUDGE, VALIDATION

KINDS = {kind.name: kind for kind in (PEOPLE, FACES)}
FIRST = {"people": 7_000_000, "faces": 8_000_000}
"""Of the judge's seeds, where the training scenes begin."""
HELD_OUT = 1000


@dataclass(frozen=True)
class Examples:
    """Renders and their labels.

    Attributes:
        images: (n, size, size, 3) uint8. classes: (n, attributes) int64.
        numbers: (n, numbers) float32.
    """

    images: Tensor
    classes: Tensor
    numbers: Tensor

    @classmethod
    def of(cls, kind: Kind, seeds: Sequence[int]) -> Examples:
        """Render the scenes of these seeds."""
        images, classes, numbers = [], [], []
        for seed in tqdm(seeds, desc="renders", mininterval=5):
            scene = _scene(kind, seed)
            images.append(torch.from_numpy(render_rgb(scene, kind.size, 2)[0]))
            indices, values = labels_of(scene.people[0], kind)
            classes.append(indices)
            numbers.append(values)
        return cls(torch.stack(images), torch.tensor(classes), torch.tensor(numbers))

    def pictures(self, rows: Tensor) -> Tensor:
        """(rows, 3, size, size) in [0, 1]."""
        return self.images[rows].permute(0, 3, 1, 2).float() / 255


def _scene(kind: Kind, seed: int) -> Scene:
    if kind is PEOPLE:
        return sample_scene(seed, kind="figure")
    return face_of(seed)


def jitter(pictures: Tensor, kind: Kind, generator: torch.Generator) -> Tensor:
    """Pictures in a mirror, blurred, and, of faces, cut out less exactly than they were seen."""
    if torch.rand((), generator=generator) < 0.5:
        pictures = pictures.flip(-1)
    if kind is FACES:
        moved = 0.04 * torch.randn(len(pictures), 2, generator=generator)
        side = 1 + 0.08 * torch.randn(len(pictures), 1, generator=generator)
        pictures = crop_faces(pictures, torch.cat([0.5 + moved, side], dim=1), kind.size)
    return blur_some(pictures, generator)


def loss_of(said: Attributes, classes: Tensor, numbers: Tensor) -> Tensor:
    """Cross-entropy of each attribute, and squared errors of numbers over their variance."""
    total = 12 * F.mse_loss(said.numbers, numbers) * numbers.shape[1]
    for column, logits in enumerate(said.logits.values()):
        total = total + F.cross_entropy(logits, classes[:, column])
    return total


def train(kind: Kind, examples: Examples, minutes: float, batch_size: int = 32) -> Recogniser:
    """Train for a planned time on the processor; the learning rate anneals to its end."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = Recogniser(kind).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    start, progress, steps = time.process_time(), 0.0, 0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, progress / 0.05 + 0.02) * (1 - progress)
        rows = torch.randint(len(examples.images), (batch_size,), generator=generator)
        pictures = jitter(examples.pictures(rows), kind, generator)
        loss = loss_of(network(pictures), examples.classes[rows], examples.numbers[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        progress = (time.process_time() - start) / (60 * minutes)
        steps += 1
        if steps % 200 == 0:
            print(f"{100 * progress:.0f} % step {steps} loss {float(loss):.3f}", flush=True)
    return network.eval()


@torch.no_grad()
def report(network: Recogniser, examples: Examples) -> dict[str, float]:
    """Per cent right of each attribute, and R² of each number, on renders never seen."""
    kind = network.kind
    said = network(examples.pictures(torch.arange(len(examples.images))))
    truth = {name: examples.classes[:, column].numpy() for column, name in enumerate(kind.classes)}
    right = agreement(said.named(), truth | {"skin": examples.numbers[:, -1].numpy()})
    error = (said.numbers - examples.numbers).square().mean(dim=0) / examples.numbers.var(dim=0)
    result = {name: 100 * float(np.mean(right[name])) for name in kind.attributes}
    result |= {f"r2_{index}": 1 - float(value) for index, value in enumerate(error)}
    return {name: round(value, 3) for name, value in result.items()}


def main() -> None:
    """Train, report and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=24_000, help="renders to train on")
    parser.add_argument("--minutes", type=float, default=7.0, help="of one core")
    options = parser.parse_args()
    kind = KINDS[options.kind]
    first = JUDGE.start + FIRST[kind.name]
    network = train(kind, Examples.of(kind, range(first, first + options.count)), options.minutes)
    held_out = VALIDATION[600_000 : 600_000 + HELD_OUT]
    state = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, kind.weights)
    found = report(network, Examples.of(kind, held_out))
    kind.accuracy.write_text(json.dumps(found, indent=1) + "\n")
    print(found)


if __name__ == "__main__":
    main()
