"""`python -m evaluation.train_judge`: trains the judge on clean renders of its own seeds."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from evaluation.judge import IMAGE_SIZE, MAP_SIZE, MIRRORED, WEIGHTS, Judge, Verdict
from evaluation.measures import percentage_of_correct_keypoints
from world.packed import Packed, open_packed, render_packed
from world.seeds import JUDGE, RANGES

HEATMAP_SIGMA = 0.8
"""Of a key point's target, in cells of the judge's map."""


class Examples:
    """Renders with exactly one person, as tensors."""

    def __init__(self, packed: Packed) -> None:
        single = np.array([row["people"] == 1 for row in packed.rows])
        self.images = torch.from_numpy(packed.images[single])
        self.keypoints = torch.from_numpy(packed.keypoints[single, 0])
        self.depth = torch.from_numpy(packed.labels["depth"][single])
        self.edges = torch.from_numpy(packed.labels["edge"][single])

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pictures in [0, 1], key points (x, y, visibility) as fractions, depth and edges."""
        pictures = self.images[rows].permute(0, 3, 1, 2).float() / 255
        points = self.keypoints[rows].clone()
        points[..., :2] /= IMAGE_SIZE
        maps = [
            F.avg_pool2d(label[rows].float()[:, None] / 255, IMAGE_SIZE // MAP_SIZE)[:, 0]
            for label in (self.depth, self.edges)
        ]
        return pictures, points, maps[0], maps[1]


def mirror(
    pictures: Tensor, points: Tensor, depth: Tensor, edges: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch seen in a mirror: left hands become right hands."""
    points = points[:, MIRRORED].clone()
    points[..., 0] = 1 - points[..., 0]
    return pictures.flip(-1), points, depth.flip(-1), edges.flip(-1)


def blur_some(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures slightly blurred and noisy, as decoded latents are."""
    weight = torch.rand(len(pictures), 1, 1, 1, generator=generator).clamp(max=0.9)
    weight *= torch.rand(len(pictures), 1, 1, 1, generator=generator) < 0.5
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    noise = 0.03 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    mixed = pictures * (1 - weight) + blurred * weight
    gain = 1 + 0.1 * torch.randn(len(pictures), 3, 1, 1, generator=generator)
    return (mixed * gain + noise * torch.randn(pictures.shape, generator=generator)).clamp(0, 1)


def loss_of(verdict: Verdict, points: Tensor, depth: Tensor, edges: Tensor) -> Float[Tensor, ""]:
    """Cross-entropy to Gaussian heatmaps, position, depth and edges."""
    cells = (torch.arange(MAP_SIZE) + 0.5) / MAP_SIZE
    sigma = HEATMAP_SIGMA / MAP_SIZE
    x = (-((cells - points[..., 0:1]) ** 2) / (2 * sigma**2)).exp()
    y = (-((cells - points[..., 1:2]) ** 2) / (2 * sigma**2)).exp()
    target = (y[..., :, None] * x[..., None, :]).flatten(2)
    target = target / target.sum(dim=2, keepdim=True).clamp(min=1e-6)
    inside = (points[..., 2] > 0).float()
    entropy = -(target * verdict.heatmaps.flatten(2).log_softmax(dim=2)).sum(dim=2)
    position = (verdict.keypoints - points[..., :2]).abs().sum(dim=2)
    keypoint_loss = ((entropy + 5 * position) * inside).sum() / inside.sum().clamp(min=1)
    return (
        keypoint_loss + 10 * F.mse_loss(verdict.depth, depth) + 5 * F.mse_loss(verdict.edges, edges)
    )


def train(data: Path, minutes: float, batch_size: int = 32, seed: int = 0) -> Judge:
    """Train for a planned wall-clock time; the learning rate anneals to its end."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    examples = Examples(open_packed(data))
    judge = Judge().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-4)
    start, progress = time.monotonic(), 0.0
    bar = tqdm(total=100, desc="judge", mininterval=5)
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, progress / 0.05 + 0.02) * (1 - progress)
        rows = torch.randint(len(examples), (batch_size,), generator=generator)
        batch = examples.batch(rows)
        if torch.rand((), generator=generator) < 0.5:
            batch = mirror(*batch)
        pictures, points, depth, edges = batch
        loss = loss_of(judge(blur_some(pictures, generator)), points, depth, edges)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        progress = (time.monotonic() - start) / (60 * minutes)
        bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
        bar.update(min(100.0, 100 * progress) - bar.n)
    return judge.eval()


@torch.no_grad()
def report(judge: Judge, folder: Path, count: int = 1000) -> dict[str, float]:
    """The judge's own error on renders it has never seen: an upper bound for what it measures."""
    seeds = RANGES["validation"][500_000 : 500_000 + count]
    render_packed(folder, seeds, IMAGE_SIZE, labels=("depth", "edge"), workers=1)
    examples = Examples(open_packed(folder))
    rows = torch.arange(len(examples))
    pictures, points, depth, edges = examples.batch(rows)
    verdict = judge(pictures)
    result = {
        f"pck@{alpha}": float(
            100
            * percentage_of_correct_keypoints(
                verdict.keypoints, points[..., :2], points[..., 2] > 0, alpha
            ).mean()
        )
        for alpha in (0.05, 0.1, 0.2)
    }
    result["depth_rmse"] = float((verdict.depth - depth).square().mean().sqrt())
    result["edge_rmse"] = float((verdict.edges - edges).square().mean().sqrt())
    return {name: round(value, 4) for name, value in result.items()}


def main() -> None:
    """Train, report and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/packed/judge64"))
    parser.add_argument("--count", type=int, default=24_000, help="renders to train on")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    render_packed(options.data, JUDGE[: options.count], IMAGE_SIZE, labels=("depth", "edge"))
    judge = train(options.data, options.minutes)
    print(report(judge, options.data.with_name("judge-validation")))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()},
        options.output,
    )


if __name__ == "__main__":
    main()
