"""`python -m evaluation.train_faces`: trains and measures the demo world's face detector.

The detector (worker/face_network.py) serves `identity` requests without boxes on the demo model.
It is trained on clean renders, and measured on held-out ones against exact labels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from jobs.controls import Box
from worker.face_network import CELL_PX, WEIGHTS, FaceNetwork
from worker.faces import MannequinFaces, box_within
from world.packed import open_packed, render_packed
from world.render import render_rgb, render_segments
from world.scene import sample_scene
from world.seeds import TEST, TRAIN
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
SIZE, FINE = 64, 128
SMALLEST_PX = 10
"""Visible pixels of 64 px pictures of a face that counts."""
MAP = SIZE // CELL_PX


def face_boxes(seed: int) -> list[Box]:
    """Every person's visible face, hair and hat left out; exact to half a pixel."""
    scene = sample_scene(seed)
    segments, instances = render_segments(scene, FINE)
    found = []
    for person in range(1, len(scene.people) + 1):
        rows, columns = np.nonzero((instances == person) & np.isin(segments, FACE))
        if len(rows) >= SMALLEST_PX * (FINE // SIZE) ** 2:
            edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            box = box_within(*(float(edge) for edge in edges), FINE, FINE)
            assert box is not None
            found.append(box)
    return found


def targets(boxes: list[Box]) -> tuple[Tensor, Tensor]:
    """(16, 16) likelihood of a centre, (4, 16, 16) distances to the edges; -1: not looked at."""
    heat, edges = torch.zeros(MAP, MAP), torch.full((4, MAP, MAP), -1.0)
    cells = torch.arange(MAP) + 0.5
    for box in boxes:
        left, top, right, bottom = (edge * MAP for edge in (box.x0, box.y0, box.x1, box.y1))
        across, down = cells - (left + right) / 2, cells - (top + bottom) / 2
        far = across[None].square() + down[:, None].square()
        heat = torch.maximum(heat, (-far / (2 * 0.6**2)).exp())
        near = far <= min(1.2, float(far.min()) + 1.0)
        own = torch.stack(
            torch.broadcast_tensors(
                (cells - left)[None], (cells - top)[:, None],
                (right - cells)[None], (bottom - cells)[:, None],
            )
        )  # fmt: skip
        edges = torch.where(near & (own > 0).all(dim=0), own, edges)
    return heat, edges


def train(pictures: np.ndarray, labels: list[list[Box]], steps: int, batch: int) -> FaceNetwork:
    """Adam on the centres' cross entropy and the edges' logarithms; noise, light and mirror."""
    torch.manual_seed(0)
    network = FaceNetwork()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    made = [targets(boxes) for boxes in labels]
    heats, edges = torch.stack([one for one, _ in made]), torch.stack([one for _, one in made])
    for step in range(steps):
        rows = torch.randint(len(pictures), (batch,))
        seen = torch.from_numpy(pictures[rows.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        seen = seen * (0.8 + 0.4 * torch.rand(batch, 3, 1, 1)) + 0.2 * torch.randn(batch, 3, 1, 1)
        seen = seen + 0.05 * torch.rand(batch, 1, 1, 1) * torch.randn(seen.shape)
        heat, edge = heats[rows], edges[rows]
        if step % 2:
            seen, heat = seen.flip(3), heat.flip(2)
            edge = edge.flip(3)[:, [2, 1, 0, 3]]
        found = network(seen.clamp(-1, 1))
        centres = F.binary_cross_entropy_with_logits(found[:, 0], heat, reduction="sum")
        known = edge >= 0
        sizes = (
            found[:, 1:][known].clamp(min=0.05).log() - edge[known].clamp(min=0.05).log()
        ).abs()
        loss = centres / batch + 2 * sizes.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            said = centres.item() / batch, sizes.mean().item()
            print("step {}: centres {:.3f}, edges {:.3f}".format(step, *said))
    return network


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    down = min(one.y1, other.y1) - max(one.y0, other.y0)
    both = max(across, 0.0) * max(down, 0.0)
    areas = [(box.x1 - box.x0) * (box.y1 - box.y0) for box in (one, other)]
    return both / (sum(areas) - both)


def measure(detector: MannequinFaces, pictures: np.ndarray, labels: list[list[Box]]) -> dict:
    """Faces found (IoU ≥ 0.5), mean IoU of all faces (0 where none was found), false ones."""
    ious, extra = [], 0
    for picture, boxes in zip(pictures, labels, strict=True):
        found = detector.find(Image.fromarray(picture))
        ious += [max((overlap(box, one) for one in found), default=0.0) for box in boxes]
        extra += sum(all(overlap(box, one) < 0.3 for box in boxes) for one in found)
    return {
        "pictures": len(pictures),
        "faces": len(ious),
        "mean_iou": round(float(np.mean(ious)), 3),
        "found_at_iou_0.5": round(float(np.mean(np.array(ious) >= 0.5)), 3),
        "false_faces": extra,
    }


def main() -> None:
    """Render what is missing, train, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packed", type=Path, default=Path("data/packed/faces64"))
    parser.add_argument("--count", type=int, default=6000, help="training pictures")
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--measure-only", action="store_true")
    options = parser.parse_args()
    if not options.measure_only:
        if not (options.packed / "packed.json").exists():
            render_packed(options.packed, TRAIN[: options.count], SIZE)
        packed = open_packed(options.packed)
        seeds = [row["seed"] for row in packed.rows[: options.count]]
        pictures = np.array(packed.images[: options.count])
        network = train(pictures, [face_boxes(s) for s in seeds], options.steps, options.batch)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        half = {name: value.half().contiguous() for name, value in network.state_dict().items()}
        save_file(half, options.out)
    held_out = TEST[-options.held_out :]
    pictures = np.stack([render_rgb(sample_scene(seed), SIZE)[0] for seed in held_out])
    labels = [face_boxes(seed) for seed in held_out]
    print(json.dumps(measure(MannequinFaces.load(options.out), pictures, labels)))


if __name__ == "__main__":
    main()
