"""`python -m evaluation.train_faces`: trains the mannequin face detector on clean renders, measures it.

The detector (worker/face_network.py) serves `identity` requests without boxes on the demo model.
It learns from seeds of its own range and is measured on held-out scenes against exact labels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from worker.face_network import CELL_PX, WEIGHTS, FaceNetwork
from worker.faces import Box, MannequinFaces
from world.render import render
from world.scene import sample_scene
from world.seeds import JUDGE, TEST
from world.segments import Segment

FACE = (
    Segment.HEAD,
    Segment.GLASSES,
    Segment.EYES,
    Segment.BROWS,
    Segment.NOSE,
    Segment.MOUTH,
    Segment.EARS,
)
SIZE = 64
SMALLEST_PX = 16
"""Visible pixels of a face that counts; of fewer nobody can say who it is."""
FIRST_SEED = JUDGE.start + 5_000_000
"""Beyond what the judge is trained on."""


def face_boxes(segments: np.ndarray, instances: np.ndarray, people: int) -> list[list[int]]:
    """(x0, y0, x1, y1) px of every person's visible face, x1 and y1 exclusive."""
    found = []
    for person in range(1, people + 1):
        rows, columns = np.nonzero((instances == person) & np.isin(segments, FACE))
        if len(rows) >= SMALLEST_PX:
            box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            found.append([int(edge) for edge in box])
    return found


def render_faces(seeds: Sequence[int], path: Path) -> None:
    """Render scenes and their boxes (two rows each, zero where there is none) into an .npz."""
    pictures, boxes = [], np.zeros((len(seeds), 2, 4), np.float32)
    for row, seed in enumerate(seeds):
        scene = sample_scene(seed)
        result = render(scene, SIZE)
        pictures.append(result.rgb)
        for place, box in enumerate(
            face_boxes(result.segments, result.instances, len(scene.people))
        ):
            boxes[row, place] = box
    np.savez_compressed(path, pictures=np.stack(pictures), boxes=boxes)
