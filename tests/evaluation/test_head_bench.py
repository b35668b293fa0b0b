from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from evaluation.head_bench import HeadBench, faces_of, videos_of
from heads_registry.training.measures import pair_pck
from world.seeds import TEST


def test_held_out_videos_and_faces_are_what_training_reads() -> None:
    videos = videos_of(TEST[:2], 32)
    assert videos.images.shape == (8, 3, 32, 32)
    assert all(float(tracks[..., :2].max()) < 1 for tracks in videos.tracks)
    faces = faces_of(TEST[:2], 32, same_skin=True)
    assert len(faces.groups) == 4
    assert faces.looks == [str(TEST[0])] * 2 + [str(TEST[1])] * 2


def test_all_readers_of_a_pass_see_the_same_features(tiny_registry: Path, tmp_path: Path) -> None:
    bench = HeadBench("tiny", tmp_path, tiny_registry)
    task, examples = bench.pairs(TEST[:2], 2)
    readers = [bench.tap(11), bench.tap(11), bench.tap(0)]
    shares = []
    for part, (first, again, other) in bench.readouts(task, examples, 0.1, readers):
        torch.testing.assert_close(first, again)
        assert first.shape[:2] == (len(part), 2)
        assert first.shape[-2:] == other.shape[-2:] == (16, 16)
        assert part.points is not None
        assert part.valid is not None
        shares.append(pair_pck(first[:, 0], first[:, 1], part.points, part.valid).numpy())
    assert len(np.concatenate(shares)) == 4
