"""Laws of reference trajectories, on a tiny random model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from heads_registry.base_model import BaseModel
from heads_registry.catalogue import Catalogue
from heads_registry.loading import load_head
from tests.worker.test_sampler import GaussianModel
from worker.guidance import ReadoutTarget
from worker.objectives import appearance_distance
from worker.passes import BOTH
from worker.plan import SampleItem, SamplingPlan
from worker.reference import Reader, Trajectory, TrajectoryReadouts, complete, invert, record
from worker.sampler import sample
from worker.schedule import DDIMSchedule

PLAN = SamplingPlan(height=32, width=32, num_inference_steps=4, guidance_scale=3.0)
ITEM = SampleItem("a person", "b", seed=3)


@pytest.fixture(scope="module")
def model(tiny_registry: Path) -> BaseModel:
    return BaseModel.load(Catalogue([tiny_registry]).model("tiny"))


@pytest.fixture(scope="module")
def readers(tiny_registry: Path) -> list[Reader]:
    catalogue = Catalogue([tiny_registry])
    heads = [catalogue.head(catalogue.model("tiny"), name) for name in ("pose", "depth")]
    return [Reader(head.sha256, load_head(head), head.feature_taps, "timestep") for head in heads]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_trajectory_is_the_unguided_picture(
    model: BaseModel, readers: list[Reader], eta: float
) -> None:
    plan = replace(PLAN, eta=eta)
    trajectory = record(model, ITEM, plan, readers, (0, 3), ("unconditional",))
    assert trajectory.latents.shape == (5, 4, 8, 8)
    assert torch.equal(trajectory.latents[-1], sample(model, [ITEM], plan).latents[0])
    assert set(trajectory.readouts) == {
        (reader.key, "unconditional", step) for reader in readers for step in (0, 3)
    }
    assert all(readout.dtype is torch.float16 for readout in trajectory.readouts.values())


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_what_was_dropped_comes_back_bit_by_bit(
    model: BaseModel, readers: list[Reader], guidance_scale: float
) -> None:
    plan = replace(PLAN, guidance_scale=guidance_scale)
    options: tuple = (ITEM, plan, readers, range(4), BOTH)
    whole = record(model, *options)
    trimmed = whole.trimmed(whole.nbytes // 2)
    assert trimmed.nbytes <= whole.nbytes // 2
    assert 0 < len(trimmed.readouts) < len(whole.readouts)
    assert whole.trimmed(0).readouts == {}
    passes = complete(model, trimmed, *options)
    assert 0 < passes <= 4
    assert complete(model, trimmed, *options) == 0
    assert all(torch.equal(trimmed.readouts[key], whole.readouts[key]) for key in whole.readouts)


def test_a_picture_is_drawn_to_its_reference(model: BaseModel, readers: list[Reader]) -> None:
    reference = record(model, ITEM, PLAN, readers, range(4), BOTH)
    reader = readers[0]
    target = ReadoutTarget(
        reader.head,
        reader.taps,
        "timestep",
        TrajectoryReadouts(reference, reader.key),
        appearance_distance,
        weight=1.0,
        span=(0.0, 1.0),
        update_scale=0.05,
        measure=appearance_distance,
    )
    other = replace(ITEM, seed=8)
    for branch in ("unconditional", "conditional", "both"):
        plan = replace(PLAN, branch=branch)
        unguided = replace(other, targets=(replace(target, weight=0.0),))
        plain = sample(model, [unguided], plan)
        guided = sample(model, [replace(other, targets=(target,))], plan)
        assert guided.distances[0][0] < plain.distances[0][0]
    again = sample(model, [replace(ITEM, targets=(replace(target, weight=0.0),))], PLAN)
    assert again.distances[0][0] == pytest.approx(0, abs=1e-3)


def test_the_first_noise_of_a_reference_is_a_picture_s_too(model: BaseModel) -> None:
    reference = record(model, ITEM, PLAN, (), (), ())
    item = replace(ITEM, seed=99, start=reference.latents[0])
    assert torch.equal(sample(model, [item], PLAN).latents[0], reference.latents[-1])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_an_inverse_step_undoes_a_step(prediction_type: str) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction_type, steps_offset=1)
    scheduler.set_timesteps(10)
    schedule = DDIMSchedule(scheduler, 0.0, torch.device("cpu"))
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for step_index in (0, 5, 9):
        here, there = schedule.alpha_previous[step_index], schedule.alpha[step_index]
        less_noisy = here.sqrt() * clean + (1 - here).sqrt() * noise
        more_noisy = there.sqrt() * clean + (1 - there).sqrt() * noise
        output = noise
        if prediction_type == "v_prediction":
            output = here.sqrt() * noise - (1 - here).sqrt() * clean
        undone = schedule.inverse_step(less_noisy, output, step_index)
        torch.testing.assert_close(undone, more_noisy, atol=1e-5, rtol=1e-5)


def test_inversion_and_sampling_meet_with_more_steps() -> None:
    """With the exact denoiser of a Gaussian, whose flow is smooth."""
    model: Any = GaussianModel(mean=0.7, std=0.3)
    clean = 0.7 + 0.3 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def distance(num_steps: int) -> float:
        plan = SamplingPlan(8, 8, num_inference_steps=num_steps, guidance_scale=1.0)
        states = invert(model, clean, "", plan)
        assert states.shape == (num_steps + 1, 4, 8, 8)
        assert torch.equal(states[:1], clean)
        back = record(model, replace(ITEM, start=states[-1]), plan, (), (), ())
        return float((back.latents[-1] - clean[0]).abs().max())

    coarse, fine = distance(50), distance(200)
    assert fine < coarse / 2
    assert fine < 0.05


def test_stopping_a_reference(model: BaseModel) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    for call in (
        lambda: record(model, ITEM, PLAN, (), (), (), on_pass=stop),
        lambda: invert(model, torch.zeros(1, 4, 8, 8), "", PLAN, on_pass=stop),
    ):
        with pytest.raises(Stop):
            call()
    assert complete(model, Trajectory(torch.zeros(5, 4, 8, 8)), ITEM, PLAN, (), (0,), BOTH) == 0
