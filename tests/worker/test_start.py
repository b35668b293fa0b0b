"""Image to image and inpainting: the loop against that of diffusers, and laws; tiny models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image
from torch import Tensor

from heads_registry.base_model import BaseModel
from jobs.controls import first_step
from tests.parity.cases import load_model, one_thread
from tests.worker.test_sampler import Tiny, exact, tiny  # noqa: F401 (fixtures)
from worker.plan import SampleItem, SamplingPlan
from worker.sampler import Run, sample

STEPS = 7
SHAPE = (4, 8, 8)
PROMPT = {"prompt": "a person", "negative_prompt": "b"}


def latents(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def square(size: int = 8) -> Tensor:
    """The middle of the picture."""
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[:, size // 4 : size // 2, size // 4 : 3 * size // 4] = True
    return mask


@pytest.fixture(scope="module", params=["tiny-sd15", "tiny-sdxl"])
def model(request: pytest.FixtureRequest) -> BaseModel:
    return load_model(request.param)


def plan(model: BaseModel, strength: float, eta: float = 0.0) -> SamplingPlan:
    size = 8 * model.vae_scale_factor
    first = first_step(strength, STEPS)
    return SamplingPlan(size, size, STEPS, guidance_scale=3.0, eta=eta, first_step=first)


def parts(model: BaseModel) -> dict[str, Any]:
    """The model's own, with DDIM that does not clip latents."""
    config = model.pipeline.scheduler.config
    return model.pipeline.components | {
        "scheduler": DDIMScheduler.from_config(config, clip_sample=False)
    }


def variance_noise(seed: int, asked: SamplingPlan) -> Tensor:
    """What a generator gives after the first noise, at the steps that are run."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(SHAPE, generator=generator) for _ in range(STEPS + 1)][1:]
    return torch.stack([torch.zeros(SHAPE)] * asked.first_step + drawn)[:STEPS]


@pytest.mark.parametrize(("strength", "eta"), [(0.5, 0.0), (0.72, 1.0), (0.29, 0.0), (1.0, 0.0)])
def test_unguided_it_is_diffusers_image_to_image(
    model: BaseModel, strength: float, eta: float
) -> None:
    kind = StableDiffusionXLImg2ImgPipeline if model.is_xl else StableDiffusionImg2ImgPipeline
    theirs = kind(**parts(model), **({} if model.is_xl else {"requires_safety_checker": False}))
    theirs.set_progress_bar_config(disable=True)
    steps: list[int] = []
    with one_thread():
        expected = theirs(
            **PROMPT,
            image=latents(1)[None],
            strength=strength,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            eta=eta,
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
            callback_on_step_end=lambda _, step, timestep, kwargs: steps.append(step) or kwargs,
        ).images
        asked = plan(model, strength, eta)
        item = SampleItem(*PROMPT.values(), seed=3, init=latents(1))
        item = replace(item, variance_noise=variance_noise(3, asked))
        ours = sample(model, [item], asked).latents
    assert len(steps) == len(asked)
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_unguided_it_is_diffusers_inpainting(strength: float) -> None:
    model = load_model("tiny-sd15")
    theirs = StableDiffusionInpaintPipeline(**parts(model), requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    # theirs samples the posterior with the generator of the noise; ours takes its mean
    theirs._encode_vae_image = lambda image, generator: latents(1)[None]
    asked = plan(model, strength)
    mask = square(asked.height)[0].mul(255).byte().numpy()
    with one_thread():
        expected = theirs(
            **PROMPT,
            image=Image.new("RGB", (asked.width, asked.height)),
            mask_image=Image.fromarray(mask),
            strength=strength,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
            height=asked.height,
            width=asked.width,
        ).images
        item = SampleItem(*PROMPT.values(), seed=3, init=latents(1), repaint=square())
        ours = sample(model, [item], asked).latents
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-4)


def inpainting(tiny: Tiny, **changes: Any) -> SampleItem:  # noqa: F811
    targets = (tiny.target(span=(0.0, 1.0)),)
    values: dict[str, Any] = {"seed": 3, "targets": targets, "init": latents(1)}
    return SampleItem("a person", **(values | changes))


@pytest.mark.parametrize("form", ["one_pass", "two_pass"])
def test_guidance_works_inside_the_mask_and_touches_nothing_outside(
    tiny: Tiny,  # noqa: F811
    form: str,
) -> None:
    asked = SamplingPlan(32, 32, 6, guidance_scale=3.0, first_step=2, form=form, eta=1.0)
    guided, plain = (
        sample(tiny.model, [inpainting(tiny, repaint=square(), **changes)], asked)
        for changes in ({}, {"targets": (tiny.target(weight=0.0),)})
    )
    outside = ~square().expand(SHAPE)
    assert torch.equal(guided.latents[0][outside], latents(1)[outside])
    assert not torch.equal(guided.latents, plain.latents)
    assert guided.distances[0][0] < plain.distances[0][0]


@pytest.mark.parametrize("form", ["one_pass", "two_pass"])
def test_outside_a_mask_a_reference_goes_its_own_way(tiny: Tiny, form: str) -> None:  # noqa: F811
    asked = SamplingPlan(32, 32, 4, guidance_scale=3.0, form=form, eta=1.0)
    twin = torch.stack([latents(10 + state) for state in range(5)])
    item = inpainting(tiny, init=None, repaint=square(), twin=twin, seed=4)
    outside = ~square().expand(SHAPE)
    run = Run(tiny.model, [item], asked)
    for state in range(5):
        assert torch.equal(run.latents[0][outside], twin[state][outside])
        assert not torch.isclose(run.latents[0][~outside], twin[state][~outside]).any()
        if state < 4:
            run._step(state, observe=False)


def test_strength_one_is_text_to_image_but_for_what_the_schedule_leaves(
    tiny: Tiny,  # noqa: F811
) -> None:
    """The noisiest timestep has √ᾱ > 0 of the picture; with none of it, it is the same noise."""
    asked = SamplingPlan(32, 32, 6, guidance_scale=3.0)
    text = SampleItem("a person", seed=3)
    plain = sample(tiny.model, [text], asked).latents
    everything = torch.ones(1, 8, 8, dtype=torch.bool)
    masked = replace(text, init=latents(1), repaint=everything)
    assert torch.equal(sample(tiny.model, [masked], asked).latents, plain)
    faint = sample(tiny.model, [replace(text, init=1e-3 * latents(1))], asked).latents
    strong = sample(tiny.model, [replace(text, init=latents(1))], asked).latents
    assert 0 < (faint - plain).norm() < (strong - plain).norm() < 0.5 * plain.norm()


def test_less_strength_keeps_more_and_steps_are_counted_from_the_schedule_s_first(
    tiny: Tiny,  # noqa: F811
) -> None:
    found, told = [], []
    for first in (0, 3, 5):
        asked = SamplingPlan(32, 32, 6, guidance_scale=3.0, first_step=first)
        asked = replace(asked, evolution_steps=(5,))
        told.clear()
        item = SampleItem("a person", seed=3, init=latents(1))
        samples = sample(tiny.model, [item], asked, on_step=lambda *step: told.append(step))
        assert told == [(step, 6 - first) for step in range(6 - first)]
        assert [shot.step_index for shot in samples.evolution] == [5]
        found.append((samples.latents[0] - latents(1)).norm())
    assert found == sorted(found, reverse=True)
    early = inpainting(tiny, targets=(tiny.target(span=(0.0, 0.5)),))
    off = inpainting(tiny, targets=(tiny.target(weight=0.0),))
    asked = SamplingPlan(32, 32, 6, guidance_scale=3.0, first_step=3)
    guided, plain = (sample(tiny.model, [item], asked).latents for item in (early, off))
    assert torch.equal(guided, plain)  # the span is over before the first step that is run


@pytest.mark.parametrize("form", ["one_pass", "two_pass"])
def test_a_start_is_its_item_s_own(exact: Tiny, form: str) -> None:  # noqa: F811
    asked = SamplingPlan(32, 32, 6, guidance_scale=3.0, first_step=2, form=form)
    items = [
        inpainting(exact),
        inpainting(exact, init=latents(2), repaint=square(), seed=4),
        inpainting(exact, init=latents(5), targets=(), seed=5),
        inpainting(exact, init=None, twin=torch.stack([latents(6)] * 7), repaint=square(), seed=6),
    ]
    together = sample(exact.model, items, asked).latents
    for row, item in enumerate(items):
        alone = sample(exact.model, [item], asked).latents[0]
        torch.testing.assert_close(together[row], alone, atol=1e-9, rtol=1e-9)
