from __future__ import annotations

import json

import pytest
import torch
from diffusers import DDIMScheduler

from tests.parity.golden import DATA, arrays, assert_parity
from worker.schedule import DDIMSchedule

RECORDED = json.loads((DATA / "units.json").read_text())


def scheduler(steps: int) -> DDIMScheduler:
    """DDIM as both the SD1.5 and the SDXL scheduler files configure it (REFERENCE 2.1)."""
    ddim = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
    )
    ddim.set_timesteps(steps)
    return ddim


@pytest.mark.parametrize("steps", sorted(RECORDED["timesteps"], key=int))
def test_timesteps_are_the_authors(steps: str) -> None:
    schedule = DDIMSchedule(scheduler(int(steps)), eta=0, device=torch.device("cpu"))
    assert schedule.timesteps.tolist() == RECORDED["timesteps"][steps]


def test_alphas_are_the_authors_and_the_last_step_ends_at_the_first_of_them() -> None:
    ddim = scheduler(10)
    recorded = arrays(DATA / "scheduler.npz")["alphas_cumprod"]
    assert_parity(ddim.alphas_cumprod.double(), recorded, "alphas_cumprod")
    schedule = DDIMSchedule(ddim, eta=0, device=torch.device("cpu"))
    expected = torch.tensor(RECORDED["final_alpha_cumprod"])
    assert_parity(schedule.alpha_previous[-1], expected, "alphas_cumprod")


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("step_index", "step"), [(0, "t901_n801"), (9, "t1_n-1")])
def test_a_step_is_the_authors(eta: float, step_index: int, step: str) -> None:
    recorded = arrays(DATA / "scheduler.npz")
    schedule = DDIMSchedule(scheduler(10), eta=eta, device=torch.device("cpu"))
    assert schedule.timesteps[step_index] == int(step[1:].partition("_")[0])
    latents, noise_pred = recorded["xt"], recorded["eps"]
    original = schedule.pred_original_sample(latents, noise_pred, step_index)
    assert_parity(original, recorded[f"x0_eta{eta}_{step}"], "pred_original_sample")
    variance_noise = recorded["z"] if schedule.is_stochastic else None
    stepped = schedule.step(latents, noise_pred, step_index, variance_noise)
    assert_parity(stepped, recorded[f"next_eta{eta}_{step}"], "ddim_step")
