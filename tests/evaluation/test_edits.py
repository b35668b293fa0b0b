from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.edits import EditStudio, RawFeatures, plain
from tests.tiny import add_relative_heads
from worker.execute import execute

POINTS = [{"from": {"x": 0.2, "y": 0.2}, "to": {"x": 0.6, "y": 0.6}}]
DRAG = {"task": "drag", "prompt": "a cat", "points": POINTS}
SAMPLED = DRAG | {"reference": {"prompt": "a dog", "seed": 3}}


@pytest.fixture
def studio(tiny_registry_copy: Path, tmp_path: Path) -> EditStudio:
    add_relative_heads(tiny_registry_copy)
    return EditStudio(tmp_path / "cache", tiny_registry_copy, "tiny", num_inference_steps=2)


def test_pictures_are_the_workers_and_come_from_disk_again(
    studio: EditStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [SAMPLED, plain("a cat", 5), plain("a dog", 5)]
    made = studio.pictures(asked)
    alone = execute(
        studio.resolved(SAMPLED), studio.models, studio.load_image, lambda *_: None
    ).images[0]
    difference = made.pictures[0].permute(1, 2, 0).numpy() * 255 - np.array(alone)
    assert np.abs(difference).max() <= 1
    assert np.isnan(made.psnr_db).all()
    monkeypatch.setattr("evaluation.edits.execute_together", None)
    again = studio.pictures(asked[::-1])
    torch.testing.assert_close(again.pictures.flip(0), made.pictures)


def test_an_uploaded_picture_is_inverted(studio: EditStudio) -> None:
    picture = torch.rand(3, 64, 64)
    asked = DRAG | {"reference": {"upload_id": studio.upload(picture)}}
    assert studio.upload(picture) == studio.upload(picture.clone())
    assert np.isfinite(studio.pictures([asked]).psnr_db).all()


def test_raw_features_stand_in_for_every_head(studio: EditStudio) -> None:
    request = studio.resolved(SAMPLED, raw_tap=4)
    assert [control.head for control in request.controls] == [
        "raw/4/appearance",
        "raw/4/correspondence",
    ]
    head = studio.models.head("tiny", "raw/4/correspondence")
    own = studio.models.head("tiny", "correspondence").manifest
    assert head.manifest.feature_taps == (own.feature_taps[4],)
    feature = torch.rand(1, 5, 8, 8)
    torch.testing.assert_close(RawFeatures()([feature], None, (8, 8)), feature)
    raw, heads = (studio.pictures([SAMPLED], raw_tap=tap).pictures for tap in (4, None))
    assert not torch.equal(raw, heads)
