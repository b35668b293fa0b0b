"""Independent recognisers of attributes: small networks trained on clean renders, and on nothing
of the diffusion model's.

`PEOPLE` sees a picture of 64×64 with one whole person, `FACES` a tight crop of a face of 32×32;
larger ones are reduced first.
`python -m evaluation.train_attributes` trains them; their weights ship with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from evaluation.judge import Block, load_judge, reduced
from evaluation.measures import Pictures
from world.faces import parameters
from world.palette import COLOUR_NAMES, GLASSES_KINDS, HAIR_COLOURS, HAT_KINDS, IRIS_COLOURS
from world.parts import Person, Scene
from world.render import render_rgb
from world.scene import sample_scene
from world.seeds import JUDGE

FOLDER = Path(__file__).parent / "weights"
SAME_SKIN = 0.125
"""Two skin tones, 0 to 1, agree within it: the palette has five."""
HEAD_POINTS = (0, 1, 2, 5, 14, 15, 16, 17)
"""Nose, neck, shoulders, eyes and ears: where a face is, follows from them."""
FACE_SCENES = range(JUDGE.start + 6_000_000, JUDGE.start + 6_000_400)
"""Clean portraits on which it is learned."""
FACE_SIZE = 32


@dataclass(frozen=True)
class Kind:
    """What a recogniser looks at and what it says.

    Attributes:
        name: of its weights. size: of its pictures, px.
        classes: attribute → its names. numbers: how many numbers 0 to 1; the last is the skin's.
    """

    name: str
    size: int
    classes: dict[str, tuple[str, ...]]
    numbers: int

    @property
    def weights(self) -> Path:
        """Where its weights are."""
        return FOLDER / f"{self.name}-{self.size}.safetensors"

    @property
    def accuracy(self) -> Path:
        """What it reached on renders it had never seen."""
        return self.weights.with_suffix(".json")

    @property
    def attributes(self) -> tuple[str, ...]:
        """What two pictures can agree in."""
        return (*self.classes, "skin")


HAIR = ("bald", *HAIR_COLOURS)
PEOPLE = Kind(
    "people",
    64,
    {"shirt": COLOUR_NAMES, "trousers": COLOUR_NAMES, "hair": HAIR, "hat": HAT_KINDS},
    1,
)
FACES = Kind(
    "faces",
    FACE_SIZE,
    {"hair": HAIR, "hat": HAT_KINDS, "glasses": GLASSES_KINDS, "iris": tuple(IRIS_COLOURS)},
    9,
)


@dataclass(frozen=True)
class Attributes:
    """What a recogniser says of a batch.

    Attributes:
        logits: attribute → (batch, names). numbers: (batch, numbers), 0 to 1.
    """

    logits: dict[str, Tensor]
    numbers: Float[Tensor, "batch numbers"]

    def named(self) -> dict[str, np.ndarray]:
        """attribute → (batch,) the index of its name; `skin` is a number."""
        named = {name: logits.argmax(dim=1).numpy() for name, logits in self.logits.items()}
        return named | {"skin": self.numbers[:, -1].detach().numpy()}


class Recogniser(nn.Module):
    """Four residual stages down to 4×4, and one linear layer for all attributes."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 5, kind.size // 32, 2), nn.SiLU())
        self.stages = nn.Sequential(
            Block(32, 32), Block(32, 64, 2), Block(64, 96, 2), Block(96, 128, 2)
        )
        outputs = sum(len(names) for names in kind.classes.values()) + kind.numbers
        self.output = nn.Linear(128 * 16, outputs)

    def forward(self, pictures: Pictures) -> Attributes:
        """Pictures in [0, 1] → their attributes."""
        pictures = reduced(pictures, self.kind.size)
        said = self.output(self.stages(self.stem(pictures * 2 - 1)).flatten(1))
        widths = [len(names) for names in self.kind.classes.values()]
        *logits, numbers = said.split([*widths, self.kind.numbers], dim=1)
        return Attributes(dict(zip(self.kind.classes, logits, strict=True)), numbers.sigmoid())


def labels_of(person: Person, kind: Kind) -> tuple[list[int], list[float]]:
    """The indices of a person's names, and the numbers: face parameters and skin tone."""
    identity = person.identity
    bald = identity.hair_style == "bald"
    values = {
        "shirt": person.outfit.shirt,
        "trousers": person.outfit.trousers,
        "hair": "bald" if bald else identity.hair_colour,
        "hat": identity.hat,
        "glasses": identity.glasses,
        "iris": identity.iris,
    }
    indices = [names.index(values[name]) for name, names in kind.classes.items()]
    return indices, parameters(identity)[-kind.numbers :].tolist()


def load_recogniser(kind: Kind) -> Recogniser:
    """A trained recogniser, frozen."""
    network = Recogniser(kind)
    state = load_file(kind.weights)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return network.requires_grad_(False).eval()


def agreement(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """attribute → (batch,) 1 where two batches agree, else 0; `mean` over all attributes."""
    agreed = {
        name: (np.abs(values - second[name]) <= SAME_SKIN if name == "skin" else
               values == second[name]).astype(np.float64)
        for name, values in first.items()
    }  # fmt: skip
    return agreed | {"mean": np.mean(list(agreed.values()), axis=0)}


Boxes = Float[Tensor, "batch 3"]
"""A square's centre (x, y) and side, as fractions of the picture."""


class FaceFinder:
    """Finds the face of a portrait: linear in the judge's key points, fitted on clean renders."""

    def __init__(self) -> None:
        self.judge = load_judge()

    @cached_property
    def _map(self) -> Tensor:
        scenes = [sample_scene(seed, kind="portrait") for seed in FACE_SCENES]
        seen = [render_rgb(scene, 64) for scene in scenes]
        inputs = self._inputs(stacked([rgb for rgb, _ in seen])).double()
        ridge = inputs.T @ inputs + 1e-3 * torch.eye(inputs.shape[1], dtype=torch.float64)
        faces = [true_face(s, points, 64) for s, (_, points) in zip(scenes, seen, strict=True)]
        truth = torch.tensor(faces, dtype=torch.float64)
        return torch.linalg.solve(ridge, inputs.T @ truth).float()

    @torch.no_grad()
    def _inputs(self, pictures: Pictures) -> Tensor:
        points = self.judge(pictures).keypoints[:, HEAD_POINTS].flatten(1)
        return F.pad(points, (0, 1), value=1.0)

    def __call__(self, pictures: Pictures) -> Boxes:
        """The squares around the faces of portraits, brow to chin as in `world.faces`."""
        boxes = self._inputs(pictures) @ self._map
        return boxes.clamp(torch.tensor([0.1, 0.1, 0.2]), torch.tensor([0.9, 0.9, 1.0]))


def true_face(scene: Scene, keypoints: np.ndarray, size: int) -> tuple[float, float, float]:
    """The square that `world.faces` would show of the first person.

    Args:
        keypoints: (people, 18, 3) of the scene's render of `size` px.
    """
    identity, camera = scene.people[0].identity, scene.current_camera()
    x, y = (float(value) for value in keypoints[0, 16:18, :2].mean(axis=0) / size)
    head = 0.27 * identity.height * identity.head_size / 0.9
    side = head * camera.focal_px(size) / camera.distance / size
    return x, y + 0.05 * side, side


def crop_faces(pictures: Pictures, boxes: Boxes, size: int = FACE_SIZE) -> Pictures:
    """The squares of pictures, bilinearly, at the recogniser's size."""
    theta = torch.zeros(len(pictures), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = boxes[:, 2]
    theta[:, :, 2] = boxes[:, :2] * 2 - 1
    grid = F.affine_grid(theta, [len(pictures), 3, size, size], align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def stacked(pictures: Sequence[np.ndarray]) -> Pictures:
    """(pictures, 3, size, size) in [0, 1], of renders."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
