"""Estimates by what was measured, and none before."""

from __future__ import annotations

import pytest
import redis

from jobs.figures import Figures
from jobs.settings import CoreSettings
from tests.jobs.samples import a_request


@pytest.fixture
def figures(client: redis.Redis, core_settings: CoreSettings) -> Figures:
    return Figures(client, core_settings)


def test_nothing_is_guessed_before_anything_was_measured(figures: Figures) -> None:
    found = figures.estimate(a_request())
    assert found.measured_jobs == 0
    assert (found.seconds, found.memory_bytes) == (None, None)


def test_time_is_the_median_of_jobs_alike_by_pictures_and_steps(figures: Figures) -> None:
    for seconds in (1.0, 2.0, 9.0):
        timings = {"load": 50.0, "sample": seconds - 0.5, "store": 0.5}
        figures.keep(a_request(), timings, "a GPU", 3_000)
    found = figures.estimate(a_request(num_inference_steps=20, num_images=3))
    assert found.measured_jobs == 3
    assert found.seconds == pytest.approx(2.0 * 2 * 3)
    assert (found.seconds_low, found.seconds_high) == (6.0, 54.0)
    assert found.memory_bytes is None  # three pictures were never measured
    assert figures.estimate(a_request()).memory_bytes == 3_000


def test_other_sizes_and_controls_are_other_kinds(figures: Figures) -> None:
    figures.keep(a_request(), {"sample": 1.0}, "cpu", None)
    pose = {"head": "tiny/pose", "weight": 0.5, "span": (0, 0.5)}
    pose |= {"pose": {"people": (), "aspect_ratio": 1.0}}
    for other in ({"width": 128}, {"form": "one_pass"}, {"task": "spatial", "controls": (pose,)}):
        assert figures.estimate(a_request(**other)).measured_jobs == 0
    assert figures.estimate(a_request(prompt="another", seed=3)).measured_jobs == 1


def test_an_init_image_makes_another_kind_of_fewer_steps(figures: Figures) -> None:
    image = {"upload_id": "u", "key": "k", "sha256": "s", "width": 8, "height": 8}
    half = a_request(init_image={"image": image, "strength": 0.5})
    figures.keep(half, {"sample": 1.0}, "cpu", None)
    assert figures.estimate(a_request()).measured_jobs == 0
    longer = a_request(num_inference_steps=40, init_image={"image": image, "strength": 0.52})
    assert (half.num_steps, longer.num_steps) == (5, 20)
    assert figures.estimate(longer).seconds == pytest.approx(4.0)


def test_old_figures_make_room(figures: Figures) -> None:
    for number in range(60):
        figures.keep(a_request(), {"sample": 100.0 if number < 10 else 1.0}, "cpu", None)
    found = figures.estimate(a_request())
    assert (found.measured_jobs, found.seconds_high) == (50, 1.0)
