from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from heads_registry.training import annotate
from heads_registry.training.annotate import AnnotationError, annotate_images, annotate_tracks
from heads_registry.training.data import DataError, load_labelled_images
from heads_registry.training.groups import load_videos
from heads_registry.training.progress import MissingExtra, TensorBoardLog

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_pictures_alone_become_a_data_folder_with_canny_edges(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    shutil.copytree(EXAMPLES / "images" / "images", tmp_path / "images")
    assert annotate_images(tmp_path, "canny") == 10
    assert annotate_images(tmp_path, "canny") == 0, "nothing is labelled twice"
    assert annotate_images(tmp_path, "canny", again=True) == 10
    labels = load_labelled_images(tmp_path, ["canny"], 64, 64).labels["canny"]
    assert set(labels.unique().tolist()) == {0, 255}
    assert 0.02 < float((labels > 0).float().mean()) < 0.5


def test_edges_of_a_square_are_its_outline() -> None:
    pytest.importorskip("cv2")
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:24, 8:24] = 255
    edges = np.asarray(annotate.canny()(Image.fromarray(pixels)))
    assert edges[16, 6:10].any()
    assert not edges[12:20, 12:20].any()
    assert not edges[:6].any()


def test_other_labels_stay_and_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    folder = Path(shutil.copytree(EXAMPLES / "images", tmp_path / "images"))
    annotate_images(folder, "canny")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert set(rows[0]["labels"]) == {"pose", "depth", "edge", "canny"}
    assert "caption" in rows[0]
    with pytest.raises(DataError, match="nor pictures"):
        annotate_images(tmp_path / "nothing", "canny")


@pytest.mark.parametrize("signal", annotate.DETECTORS)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(
    signal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "controlnet_aux", None)
    shutil.copytree(EXAMPLES / "images" / "images", tmp_path / "images")
    with pytest.raises(MissingExtra, match=r"controlnet_aux: pip install .*\[annotate\]"):
        annotate_images(tmp_path, signal)


def test_a_signal_that_nobody_can_label_lists_those_that_can(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "images" / "images", tmp_path / "images")
    with pytest.raises(AnnotationError, match="canny, pose, depth, edge"):
        annotate_images(tmp_path, "smell")


class Still(torch.nn.Module):
    """Says that four points stay where they are, as CoTracker would say it."""

    def forward(self, video: torch.Tensor, grid_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.tensor([[5.0, 6.0], [20.0, 6.0], [20.0, 30.0], [40.0, 9.0], [9.0, 50.0]])
        frames = video.shape[1]
        return places.expand(1, frames, 5, 2), torch.ones(1, frames, 5, dtype=torch.bool)


def test_tracks_have_the_form_that_training_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "videos", tmp_path / "videos"))
    (folder / "tracks.jsonl").unlink()
    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: Still())
    assert annotate_tracks(folder) == 5
    videos = load_videos(folder, 64, 64)
    assert len(videos) == 5
    torch.testing.assert_close(videos.tracks[0][0, 0], torch.tensor([5 / 64, 6 / 64, 1.0]))


def test_weights_that_cannot_be_fetched_are_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "videos", tmp_path / "videos"))

    def offline(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable\nmore")

    monkeypatch.setattr(torch.hub, "load", offline)
    with pytest.raises(AnnotationError, match=r"^cannot fetch .*unreachable; .*TORCH_HOME.*$"):
        annotate_tracks(folder)


def test_without_tensorboard_its_log_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match=r"\[train\]"):
        TensorBoardLog(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_losses_and_metrics_are_in_the_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(tmp_path)
    log.losses(1, {"pose": 0.5})
    log.metrics(2, {"pose": {"rmse_t0.1": 0.25}})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Scalars("loss/pose")[0].value == 0.5
    assert events.Scalars("pose/rmse_t0.1")[0].step == 2
