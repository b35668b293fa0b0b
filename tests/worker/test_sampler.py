"""Laws of the sampler, on tiny random models and on a denoiser whose answer is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from heads_registry.base_model import BaseModel, Conditioning
from heads_registry.catalogue import Catalogue
from heads_registry.loading import load_head
from heads_registry.manifest import HeadManifest
from heads_registry.networks import ReadoutHead
from worker.guidance import ReadoutTarget
from worker.monitor import Measured
from worker.objectives import spatial_distance
from worker.plan import Snapshot
from worker.sampler import Diverged, SampleItem, Samples, SamplingPlan, sample

PLAN = SamplingPlan(height=32, width=32, num_inference_steps=6, guidance_scale=3.0)


@dataclass
class Tiny:
    model: BaseModel
    manifest: HeadManifest
    head: ReadoutHead

    def target(self, seed: int = 0, weight: float = 1.0, **changes: object) -> ReadoutTarget:
        generator = torch.Generator().manual_seed(seed)
        values: dict = {
            "head": self.head,
            "taps": self.manifest.feature_taps,
            "timestep_convention": "timestep",
            "target": torch.rand(3, 8, 8, generator=generator) - 0.5,
            "objective": spatial_distance,
            "weight": weight,
            "span": (0.0, 0.5),
            "update_scale": 0.05,
        }
        return ReadoutTarget(**(values | changes))


@pytest.fixture(scope="module")
def exact(tiny_registry: Path) -> Tiny:
    """The same in float64, where rounding cannot hide a mistake."""
    catalogue = Catalogue([tiny_registry])
    manifest = catalogue.head(catalogue.model("tiny"), "pose")
    model = BaseModel.load(catalogue.model("tiny"), dtype=torch.float64)
    return Tiny(model, manifest, load_head(manifest, dtype=torch.float64))


@pytest.fixture(scope="module")
def tiny(tiny_registry: Path) -> Tiny:
    catalogue = Catalogue([tiny_registry])
    manifest = catalogue.head(catalogue.model("tiny"), "pose")
    model = BaseModel.load(catalogue.model("tiny"))
    return Tiny(model, manifest, load_head(manifest))


def run(tiny: Tiny, *items: SampleItem, **changes: object) -> Samples:
    return sample(tiny.model, items, replace(PLAN, **changes))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("form", ["one_pass", "two_pass"])
def test_weight_zero_is_unguided_bit_for_bit(tiny: Tiny, form: str, eta: float) -> None:
    plain = run(tiny, SampleItem("a person", seed=3), eta=eta)
    zero = run(
        tiny, SampleItem("a person", seed=3, targets=(tiny.target(weight=0),)), form=form, eta=eta
    )
    assert torch.equal(plain.latents, zero.latents)


@pytest.mark.parametrize("branch", ["unconditional", "conditional", "both"])
@pytest.mark.parametrize("form", ["one_pass", "two_pass"])
def test_a_result_does_not_depend_on_its_neighbours(exact: Tiny, form: str, branch: str) -> None:
    item = SampleItem("a", seed=5, targets=(exact.target(1), exact.target(2, span=(0.2, 0.4))))
    neighbours = (
        SampleItem("bb", seed=6),
        SampleItem("c", seed=7, targets=(exact.target(3, weight=2.0, span=(0.3, 1.0)),)),
    )
    options: dict = {"form": form, "branch": branch, "eta": 1.0}
    alone = run(exact, item, **options)
    together = run(exact, neighbours[0], item, neighbours[1], **options)
    torch.testing.assert_close(alone.latents[0], together.latents[1], atol=1e-6, rtol=0)
    assert alone.distances[0] == pytest.approx(together.distances[1], abs=1e-6)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(tiny: Tiny) -> None:
    first, again, other = (
        run(tiny, SampleItem("a", seed=seed, targets=(tiny.target(),)), eta=1.0)
        for seed in (11, 11, 12)
    )
    assert torch.equal(first.latents, again.latents)
    assert not torch.equal(first.latents, other.latents)


@pytest.mark.parametrize("rule", ["elementwise", "rms"])
@pytest.mark.parametrize("form", ["one_pass", "two_pass"])
def test_guidance_brings_the_readout_closer(tiny: Tiny, form: str, rule: str) -> None:
    target = tiny.target(span=(0.0, 1.0))
    options: dict = {"form": form, "update_rule": rule}
    plain = run(tiny, SampleItem("a", targets=(replace(target, weight=0),)), **options)
    guided = run(tiny, SampleItem("a", targets=(target,)), **options)
    assert guided.distances[0][0] < plain.distances[0][0]


def test_one_control_of_weight_w_moves_the_latents_by_w_times_scale(tiny: Tiny) -> None:
    """With one step, one_pass subtracts exactly the update from the unguided result."""
    for weight in (0.5, 1.0, 2.0):
        target = tiny.target(weight=weight, span=(0.0, 1.0))
        plain = run(tiny, SampleItem("a"), num_inference_steps=1)
        guided = run(
            tiny, SampleItem("a", targets=(target,)), num_inference_steps=1, form="one_pass"
        )
        change = (guided.latents - plain.latents).abs()
        assert change.median() == pytest.approx(weight * 0.05, rel=1e-3)


def test_doubling_both_weights_doubles_the_step_of_a_mixture(tiny: Tiny) -> None:
    def change(first: float, second: float) -> float:
        targets = tuple(
            tiny.target(seed, weight, span=(0.0, 1.0)) for seed, weight in ((1, first), (2, second))
        )
        plain = run(tiny, SampleItem("a"), num_inference_steps=1)
        guided = run(tiny, SampleItem("a", targets=targets), num_inference_steps=1, form="one_pass")
        return float((guided.latents - plain.latents).abs().median())

    assert change(1, 1) == pytest.approx(2**0.5 * change(1, 0), rel=1e-3)
    assert change(2, 2) == pytest.approx(2 * change(1, 1), rel=1e-3)


def test_a_heads_readouts_come_from_passes_that_are_made_anyway(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    denoise = tiny.model.denoise

    def counting(latents: Tensor, *rest: Any) -> Tensor:
        rows.append(len(latents))
        return denoise(latents, *rest)

    monkeypatch.setattr(tiny.model, "denoise", counting)
    item = SampleItem("a", targets=(tiny.target(),))
    for form, guided_rows in (("one_pass", 2), ("two_pass", 3)):
        rows.clear()
        samples = run(tiny, item, form=form, evolution_steps=(0, 4))
        assert sum(rows) == 3 * guided_rows + 3 * 2
        assert [snapshot.step_index for snapshot in samples.evolution] == [0, 4]
        assert samples.readouts[0][0].shape == (3, 8, 8)


class Onlooker:
    def __init__(self) -> None:
        self.distances: list[list[list[Measured | None]]] = []
        self.snapshots: list[Snapshot] = []

    def on_distances(self, distances: list[list[Measured | None]]) -> None:
        self.distances.append(distances)

    def on_snapshot(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)


@pytest.mark.parametrize("branch", ["unconditional", "conditional", "both"])
def test_distances_on_the_way_are_those_of_the_readouts(tiny: Tiny, branch: str) -> None:
    on, off = tiny.target(span=(0.4, 0.6)), tiny.target(weight=0.0)
    items = [SampleItem("a", seed=1), SampleItem("a", seed=2, targets=(off, on))]
    plan = replace(PLAN, form="one_pass", branch=branch, evolution_steps=(2, 3), eta=0.0)
    watch = Onlooker()
    samples = sample(tiny.model, items, plan, watch=watch)
    assert [shot.step_index for shot in watch.snapshots] == [2, 3]
    assert len(watch.distances) == len(plan)
    assert watch.distances[2] == [[], [None, None]]
    for step_index, snapshot in zip((2, 3), watch.snapshots, strict=True):
        [nothing, [never, measured]] = watch.distances[step_index + 1]
        assert (nothing, never) == ([], None)
        assert measured is not None
        assert measured.step_index == step_index
        expected = on.measured(
            snapshot.readouts[1][1][None], on.target_at(step_index, branch)[None]
        )
        assert measured.distance == pytest.approx(float(expected), rel=1e-4)
    assert watch.distances[4][1][1] == watch.distances[-1][1][1]
    silent = sample(tiny.model, items, plan)
    assert torch.equal(samples.latents, silent.latents)


def test_spans_are_rounded_and_end_open(tiny: Tiny) -> None:
    steps = [step for step in range(100) if tiny.target(span=(0.29, 0.57)).guides(step, 100)]
    assert (steps[0], steps[-1]) == (29, 56)


def test_stopping_from_on_step(tiny: Tiny) -> None:
    class Stop(Exception):
        pass

    def on_step(step_index: int, num_steps: int) -> None:
        if step_index == 2:
            raise Stop

    with pytest.raises(Stop):
        sample(tiny.model, [SampleItem("a")], PLAN, on_step=on_step)


def test_divergence_names_the_image_and_the_step(tiny: Tiny) -> None:
    bad = replace(tiny.target(), target=torch.full((3, 8, 8), torch.nan), span=(0.5, 1.0))
    with pytest.raises(Diverged, match="image 1 diverged at step 3"):
        run(tiny, SampleItem("a"), SampleItem("a", targets=(bad,)), form="one_pass")


def test_grad_mode_is_left_as_it_was(tiny: Tiny) -> None:
    with torch.no_grad():
        run(tiny, SampleItem("a", targets=(tiny.target(),)))
        assert not torch.is_grad_enabled()
    with torch.enable_grad():
        run(tiny, SampleItem("a", targets=(tiny.target(),)))
        assert torch.is_grad_enabled()


class GaussianModel:
    """The exact denoiser of data N(mean, std²), behind the parts of BaseModel that the loop uses.

    E[x₀ | x_t] is linear in x_t, so the probability flow has a closed form: DDIM's latents tend to
    mean + std · √(1/(ᾱ std² + 1-ᾱ)) · (x_T - √ᾱ mean) with more steps.
    """

    device = torch.device("cpu")
    latent_dtype = torch.float32

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std
        self.scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            set_alpha_to_one=False,
        )

    def ddim_scheduler(self, steps: int) -> DDIMScheduler:
        self.scheduler.set_timesteps(steps)
        return self.scheduler

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return (4, height, width)

    def encode_prompts(self, prompts: list[str], height: int, width: int) -> Conditioning:
        return Conditioning(torch.zeros(len(prompts), 1, 1))

    @contextmanager
    def capture_features(self, taps: object) -> Iterator[list[Tensor]]:
        yield []

    def denoise(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        residuals: None = None,
    ) -> Tensor:
        alpha = self.scheduler.alphas_cumprod[int(timestep)]
        variance = alpha * self.std**2 + 1 - alpha
        return (1 - alpha).sqrt() * (latents - alpha.sqrt() * self.mean) / variance


def test_the_loop_converges_to_a_gaussians_flow() -> None:
    model = GaussianModel(mean=0.7, std=0.3)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    alphas = model.scheduler.alphas_cumprod

    def error(num_steps: int) -> float:
        plan = SamplingPlan(8, 8, num_inference_steps=num_steps, guidance_scale=1.0)
        latents = sample(model, [SampleItem("", seed=1)], plan).latents  # type: ignore[arg-type]
        first = int(model.scheduler.timesteps[0])
        std, goal = ((alphas[step] * model.std**2 + 1 - alphas[step]).sqrt() for step in (first, 0))
        centred = start - alphas[first].sqrt() * model.mean
        exact = alphas[0].sqrt() * model.mean + centred / std * goal
        return float((latents - exact).abs().max())

    coarse, fine = error(100), error(400)
    assert fine < 0.02
    assert fine < coarse / 3


def test_stochastic_sampling_has_the_gaussians_moments() -> None:
    model = GaussianModel(mean=0.7, std=0.3)
    plan = SamplingPlan(height=32, width=32, num_inference_steps=200, guidance_scale=1.0, eta=1.0)
    items = [SampleItem("", seed=seed) for seed in range(4)]
    latents = sample(model, items, plan).latents  # type: ignore[arg-type]
    assert float(latents.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(latents.std()) == pytest.approx(0.3, abs=0.02)
