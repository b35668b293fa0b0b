"""Datasets: both formats round-trip, packed ones resume, and nothing of torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from world import packed
from world.captions import seen_from_behind
from world.dataset import main, open_packed, read_rows, render_packed, write_dataset, write_faces
from world.faces import face_scene, lookalikes
from world.files import seeds_with_backs
from world.labels import as_bytes, depth_image, openpose_image
from world.render import render
from world.scene import sample_scene
from world.videos import video_scenes


def test_folder_round_trip(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", range(3), 32)
    rows = list(read_rows(folder / "metadata.jsonl"))
    assert [row["seed"] for row in rows] == [0, 1, 2]
    for row in rows:
        picture = render(sample_scene(row["seed"]), 32)
        assert np.array_equal(np.asarray(Image.open(folder / row["file_name"])), picture.rgb)
        assert row["caption"] == picture.caption
        assert np.allclose(row["keypoints"], picture.keypoints, atol=0.006)
        pose = np.asarray(Image.open(folder / row["labels"]["pose"]))
        assert np.array_equal(pose, openpose_image(picture.keypoints, 32))
        depth = np.asarray(Image.open(folder / row["labels"]["depth"]))
        assert np.array_equal(depth, as_bytes(depth_image(picture.depth)))


def test_videos_have_tracks(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, [5], 32, labels=["pose"], kind="figure", frames=3)
    rows, (tracks,) = (
        list(read_rows(folder / "metadata.jsonl")),
        list(read_rows(folder / "tracks.jsonl")),
    )
    assert [row["frame"] for row in rows] == [0, 1, 2]
    assert tracks["frames"] == [row["file_name"] for row in rows]
    assert np.asarray(tracks["tracks"]).shape == (len(tracks["segments"]), 3, 3)


def test_a_share_of_the_videos_is_cut(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, [5, 6], 16, labels=(), frames=2, cuts=0.5)
    for seed, cuts in ((5, False), (6, True)):
        last = video_scenes(sample_scene(seed), 2, cuts)[-1]
        saved = Image.open(folder / "images" / f"{seed:09d}_001.png")
        assert np.array_equal(np.asarray(saved), render(last, 16).rgb)


def test_faces_of_a_share_of_the_looks_have_one_skin(tmp_path: Path) -> None:
    folder = write_faces(tmp_path, [3, 4], 16, shots=2, same_skin=0.5)
    rows = list(read_rows(folder / "metadata.jsonl"))
    assert [row["identity"] for row in rows[::2]] == [
        f"{s:09d}_{p}" for s in (3, 4) for p in (0, 1)
    ]
    for seed, same_skin in ((3, False), (4, True)):
        first, second = lookalikes(seed, 2, same_skin)
        assert (first.skin_tone == second.skin_tone) == same_skin
        picture = render(face_scene(seed, second, 1, 0), 16)
        saved = Image.open(folder / "images" / f"{seed:09d}_1_00.png")
        assert np.array_equal(np.asarray(saved), picture.rgb)


def test_packed_round_trip_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "CHUNK", 4)
    whole = open_packed(
        render_packed(tmp_path / "a", range(10), 32, labels=packed.LABELS, workers=1)
    )

    def stop(done: int, count: int, seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_packed(tmp_path / "b", range(10), 32, labels=packed.LABELS, workers=1, progress=stop)
    with pytest.raises(ValueError, match="not complete"):
        open_packed(tmp_path / "b")
    calls: list[int] = []
    resumed = open_packed(
        render_packed(
            tmp_path / "b", range(10), 32, labels=packed.LABELS, workers=1,
            progress=lambda done, count, seconds: calls.append(done),
        )
    )  # fmt: skip
    assert calls == [8, 10]
    assert np.array_equal(whole.images, resumed.images)
    assert np.array_equal(whole.keypoints, resumed.keypoints)
    assert whole.rows == resumed.rows
    for label in packed.LABELS:
        assert np.array_equal(whole.labels[label], resumed.labels[label])
    picture = render(sample_scene(3), 32)
    assert np.array_equal(whole.images[3], picture.rgb)
    assert whole.rows[3]["captions"][0] == picture.caption
    with pytest.raises(ValueError, match="another packed dataset"):
        render_packed(tmp_path / "a", range(11), 32, workers=1)


def test_command_line(tmp_path: Path) -> None:
    assert (
        main(
            [
                "packed",
                str(tmp_path / "p"),
                "--range",
                "test",
                "--count",
                "2",
                "--size",
                "16",
                "--workers",
                "1",
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "p" / "packed.json").read_text())["complete"]
    assert (
        main(["folder", str(tmp_path / "f"), "--count", "1", "--size", "16", "--workers", "1"]) == 0
    )


def test_world_imports_neither_torch_nor_other_rooms() -> None:
    code = (
        "import sys, world.dataset\n"
        "names = {name.split('.')[0] for name in sys.modules}\n"
        "rooms = {'service', 'jobs', 'worker', 'heads_registry', 'evaluation', 'demo_model'}\n"
        "bad = names & (rooms | {'torch', 'diffusers'})\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_backs_are_chosen_evenly() -> None:
    seeds = seeds_with_backs(range(1000), 12, 0.25)
    behind = [seen_from_behind(sample_scene(seed)) for seed in seeds]
    assert behind == [False, False, False, True] * 3
    assert len(set(seeds)) == 12
    assert len(seeds_with_backs(range(3), 12, 0.25)) < 12
