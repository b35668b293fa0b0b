"""Every recorded run of the authors' code, step by step and freely, in reference-compatible mode.

Teacher-forced: each step begins at the recorded latents. Item 0, the unguided twin, is our recorded
reference trajectory; item 1 is guided.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heads_registry.base_model import BaseModel
from tests.parity.cases import (
    CASES,
    Case,
    Observed,
    free_run,
    largest,
    load_model,
    one_thread,
    teacher_forced,
)
from tests.parity.golden import (
    CONTEXT,
    FREE_RUN,
    GRADIENT,
    LATENTS,
    LOSS,
    READOUT,
    RECONSTRUCTION,
)
from worker.passes import BOTH, Passes
from worker.reference import invert, record
from worker.sampler import Run


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, BaseModel]]:
    with one_thread():
        yield {name: load_model(name) for name in ("tiny-sd15", "tiny-sdxl")}


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest,
    models: dict[str, BaseModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    name = request.param
    model = models["tiny-sdxl" if "sdxl" in name else "tiny-sd15"]
    return Case(name, model, tmp_path_factory.mktemp("registry"))


def test_prompts_are_encoded_as_recorded(case: Case) -> None:
    plan = case.plan(1)
    texts = [case.facts["negative_prompt"]] * 2 + case.facts["prompts"]
    encoded = case.model.encode_prompts(texts, plan.height, plan.width)
    assert largest(encoded.prompt_embeds - case.data["context"]) <= CONTEXT
    if "added_text_embeds" in case.data:
        assert encoded.pooled_embeds is not None
        assert largest(encoded.pooled_embeds - case.data["added_text_embeds"]) <= CONTEXT
        assert torch.equal(encoded.time_ids, case.data["added_time_ids"])


def test_every_step_from_the_recorded_latents(case: Case) -> None:
    errors = teacher_forced(case)
    assert errors.gradient <= GRADIENT
    assert errors.loss <= LOSS
    assert errors.compared > 0.99, "nearly all elements must be compared"
    assert max(errors.moved, errors.noise_pred, errors.stepped) <= LATENTS


def test_features_of_the_first_step(case: Case) -> None:
    names = sorted(name for name in case.data if name.startswith("rawfeat_i0_"))
    if not names:
        pytest.skip("recorded for a and f")
    start = case.data["latents"][0]
    taps = case.readers[0].taps
    run = Run(case.model, [case.item(0), case.item(1)], case.plan(1), taps)
    passes = Passes(BOTH)
    run.latents = start
    run.noise_pred(0, passes)
    for position, name in enumerate(names):
        ours = [passes.features(branch, row)[position] for branch in BOTH for row in (0, 1)]
        assert largest(torch.cat(ours) - case.data[name]) <= READOUT


def test_readouts_of_guided_steps(case: Case) -> None:
    """Of the whole maps that are recorded: of wider heads, those of the first guided step."""
    reference = case.reference()
    for index, reader in enumerate(case.readers):
        if (maps := case.data.get(f"readout_e{index}_ref")) is not None:
            for position, step_index in enumerate(case.guided):
                for branch, recorded in zip(BOTH, maps[position, 0], strict=True):
                    ours = reference.readouts[reader.key, branch, step_index].permute(1, 2, 0)
                    assert largest(ours - recorded) <= READOUT
        else:
            recorded = case.data[f"readout_e{index}_ref_first_cond"]
            ours = reference.readouts[reader.key, "conditional", case.guided[0]]
            assert largest(ours.permute(1, 2, 0) - recorded) <= READOUT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_running_freely(case: Case, dtype: torch.dtype) -> None:
    """The reference first, alone; then the picture, from nothing but its first noise."""
    if dtype is torch.float32 and case.name == "e_appearance":
        pytest.skip(
            "a rectifier at its kink: one element goes by rounding (its float64 run counts)"
        )
    reference, picture = free_run(case, dtype)
    assert reference <= LATENTS
    assert picture <= FREE_RUN


def test_inversion(models: dict[str, BaseModel], tmp_path: Path) -> None:
    case = Case("d_drag_real_inversion", models["tiny-sd15"], tmp_path)
    states = case.data["inv_latents"][:, 0]
    inverted = invert(
        case.model,
        case.data["inv_vae_latents"],
        case.facts["prompts"][0],
        case.plan(0),
        first_timestep=-1,
    )
    assert largest(inverted - states) <= LATENTS
    assert largest(states[-1] - case.data["latents"][0, 0]) == 0


def test_our_own_inversion_comes_back_closer_to_the_image(
    models: dict[str, BaseModel], tmp_path: Path
) -> None:
    """Timestep 0 in place of -1; both are sampled again with the conditional branch alone."""
    case = Case("d_drag_real_inversion", models["tiny-sd15"], tmp_path)
    clean, plan = case.data["inv_vae_latents"], case.plan(0)

    def distance(first_timestep: int) -> float:
        prompt = case.facts["prompts"][0]
        states = invert(case.model, clean, prompt, plan, first_timestep=first_timestep)
        back = record(case.model, case.item(0, start=states[-1]), plan, (), (), ())
        return float((back.latents[-1] - clean[0]).square().mean().sqrt())

    assert distance(0) <= RECONSTRUCTION
    assert distance(-1) <= RECONSTRUCTION


def test_several_updates_at_a_timestep_are_those_of_torchs_adamw(
    models: dict[str, BaseModel], tmp_path: Path
) -> None:
    """num_recurrent_steps, which no recorded case has: against the optimiser itself."""
    case = Case("e_appearance", models["tiny-sd15"], tmp_path)
    step_index = case.guided[0]
    start = case.data["latents"][step_index, 1:2]
    targets = case.targets(case.reference())
    plan = replace(case.plan(1), recurrent_steps=3)
    ours = Run(case.model, [case.item(1, targets=targets)], plan)
    ours.latents = start.clone()
    ours.guide(step_index, Passes())

    theirs = Observed(case.model, [case.item(1, targets=targets)], case.plan(1))
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([parameter], lr=plan.rate, weight_decay=0, eps=1e-8)
    controls = theirs.controls_at(step_index)
    for _ in range(3):
        theirs.latents = parameter.detach()
        theirs.readout_gradient(step_index, controls, Passes())
        parameter.grad = theirs.gradient[None].clone()
        optimizer.step()
    assert largest(ours.latents - parameter.detach()) <= LATENTS
