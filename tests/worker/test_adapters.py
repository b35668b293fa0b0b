"""ControlNet and T2I-Adapter in the sampler: diffusers' own pipelines, and the laws of a batch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import (
    DDIMScheduler,
    MultiAdapter,
    MultiControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image
from torch import Tensor

from heads_registry.adapters import AdapterLoadError, AdapterMismatch
from heads_registry.catalogue import Catalogue, IncompatibleAdapter, UnknownAdapter
from heads_registry.loading import load_head
from jobs.record import FailureCode
from jobs.request import Adapter, Keypoint, Pose, StoredImage
from tests.tiny import add_adapters, save_tiny_adapter
from tests.worker.test_execute import request
from worker.adapters import AdapterInput
from worker.engine import TorchEngine
from worker.execute import Thrift, execute
from worker.guidance import ReadoutTarget
from worker.models import ModelCache
from worker.objectives import spatial_distance
from worker.passes import Passes
from worker.plan import AdapterGradient, initial_noise
from worker.publish import embedded_parameters
from worker.sampler import Run, SampleItem, SamplingPlan, sample

pytestmark = pytest.mark.torch

PLAN = SamplingPlan(height=64, width=64, num_inference_steps=4, guidance_scale=3.0)
SDXL = Path(__file__).parent.parent / "parity/data/pipelines/tiny-sdxl"


@pytest.fixture(scope="module")
def registry(tiny_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny registry with adapters, and an SDXL model with its own."""
    directory = tmp_path_factory.mktemp("adapters") / "registry"
    shutil.copytree(tiny_registry, directory)
    add_adapters(directory)
    manifest = {
        "name": "tiny-xl",
        "title": "Tiny SDXL",
        "family": "tiny-xl",
        "pipeline": "stable-diffusion-xl",
        "source": str(SDXL),
        "licence": "Apache-2.0",
    }
    (directory / "models" / "tiny-xl.yaml").write_text(yaml.safe_dump(manifest))
    unet = ModelCache(Catalogue([directory]), 2**30).model("tiny-xl").unet
    for name, kind in (("net", "controlnet"), ("t2i", "t2i_adapter")):
        save_tiny_adapter(directory, unet, name, kind, base_model="tiny-xl")
    return directory


@pytest.fixture(scope="module")
def models(registry: Path) -> ModelCache:
    """In float64, where rounding cannot hide a mistake."""
    return ModelCache(Catalogue([registry]), 2**30, dtype=torch.float64)


def image(seed: int, size: int = 64) -> Tensor:
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))


def given(models: ModelCache, name: str, seed: int = 0, **changes: Any) -> AdapterInput:
    values: dict[str, Any] = {"image": image(seed), "scale": 0.8, "span": (0.0, 1.0)}
    model = changes.pop("model", "tiny")
    return AdapterInput(models.adapter(model, name), **(values | changes))


def run(models: ModelCache, *items: SampleItem, model: str = "tiny", **changes: Any) -> Tensor:
    return sample(models.model(model), items, replace(PLAN, **changes)).latents


def pose(models: ModelCache, weight: float = 1.0) -> ReadoutTarget:
    manifest = models.catalogue.head(models.catalogue.model("tiny"), "pose")
    return ReadoutTarget(
        head=load_head(manifest, dtype=torch.float64),
        taps=manifest.feature_taps,
        timestep_convention="timestep",
        target=torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(9)) - 0.5,
        objective=spatial_distance,
        weight=weight,
        span=(0.0, 1.0),
        update_scale=0.05,
    )


def by_diffusers(
    models: ModelCache,
    kind: type,
    adapters: Sequence[AdapterInput],
    model: str = "tiny",
    **options: Any,
) -> Tensor:
    """What diffusers' own pipeline makes of the same latents."""
    base = models.model(model)
    networks = [one.adapter.network for one in adapters]
    many: Any = MultiControlNetModel if "ControlNet" in kind.__name__ else MultiAdapter
    part = "controlnet" if "ControlNet" in kind.__name__ else "adapter"
    parts = dict(base.pipeline.components)
    scheduler = base.ddim_scheduler(PLAN.num_inference_steps)
    # Latents are not pixels: nothing to clip at ±1.
    parts |= {"scheduler": DDIMScheduler.from_config(scheduler.config, clip_sample=False)}
    parts |= {part: networks[0] if len(networks) == 1 else many(networks)}
    if "XL" in kind.__name__:
        options = {"add_watermarker": False} | options if part == "controlnet" else options
    else:
        parts |= {"requires_safety_checker": False}
    if part == "adapter" and "XL" not in kind.__name__:
        parts.pop("image_encoder", None)
    pipeline = kind(**parts)
    pipeline.set_progress_bar_config(disable=True)
    size = adapters[0].image.shape[-1]
    latents, _ = initial_noise([5], base.latent_shape(size, size), PLAN.num_inference_steps, False)
    images = [one.image[None].double() for one in adapters]
    scales = [one.scale for one in adapters]
    strength = f"{'controlnet' if part == 'controlnet' else 'adapter'}_conditioning_scale"
    options = {strength: scales[0] if len(adapters) == 1 else scales} | options
    return pipeline(
        prompt="a person",
        negative_prompt="",
        image=images[0] if len(adapters) == 1 else images,
        height=size,
        width=size,
        num_inference_steps=PLAN.num_inference_steps,
        guidance_scale=PLAN.guidance_scale,
        latents=latents.double(),
        output_type="latent",
        **options,
    ).images


@pytest.mark.parametrize("names", [("net",), ("net", "second-net")])
def test_controlnets_agree_with_diffusers(models: ModelCache, names: tuple[str, ...]) -> None:
    adapters = [given(models, name, seed) for seed, name in enumerate(names)]
    ours = run(models, SampleItem("a person", seed=5, adapters=tuple(adapters)))
    theirs = by_diffusers(models, StableDiffusionControlNetPipeline, adapters)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert (ours - run(models, SampleItem("a person", seed=5))).abs().max() > 1e-2


@pytest.mark.parametrize("names", [("t2i",), ("t2i", "second-t2i")])
def test_t2i_adapters_agree_with_diffusers(models: ModelCache, names: tuple[str, ...]) -> None:
    adapters = [given(models, name, seed) for seed, name in enumerate(names)]
    ours = run(models, SampleItem("a person", seed=5, adapters=tuple(adapters)))
    theirs = by_diffusers(models, StableDiffusionAdapterPipeline, adapters)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert (ours - run(models, SampleItem("a person", seed=5))).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "name"),
    [(StableDiffusionXLControlNetPipeline, "net"), (StableDiffusionXLAdapterPipeline, "t2i")],
)
def test_sdxl_agrees_with_diffusers(models: ModelCache, kind: type, name: str) -> None:
    adapter = given(models, name, model="tiny-xl", image=image(0, 128))
    item = SampleItem("a person", seed=5, adapters=(adapter,))
    ours = run(models, item, model="tiny-xl", height=128, width=128)
    theirs = by_diffusers(models, kind, [adapter], "tiny-xl")
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_spans_agree_with_diffusers(models: ModelCache) -> None:
    adapters = [given(models, "net", span=(0.25, 0.75))]
    ours = run(models, SampleItem("a person", seed=5, adapters=tuple(adapters)))
    theirs = by_diffusers(
        models,
        StableDiffusionControlNetPipeline,
        adapters,
        control_guidance_start=0.25,
        control_guidance_end=0.75,
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("branch", ["unconditional", "conditional", "both"])
@pytest.mark.parametrize("form", ["one_pass", "two_pass"])
def test_a_result_does_not_depend_on_its_neighbours(
    models: ModelCache, form: str, branch: str
) -> None:
    net, t2i = given(models, "net", 1), given(models, "t2i", 2, span=(0.0, 0.5))
    items = [
        SampleItem("a", seed=5, targets=(pose(models),), adapters=(net, t2i)),
        SampleItem("b", seed=6, targets=(pose(models),)),
        SampleItem("c", seed=7, adapters=(given(models, "second-net", 3), net, net)),
        SampleItem("d", seed=8, targets=(pose(models),), adapters=(given(models, "second-t2i"),)),
    ]
    options: dict[str, Any] = {"form": form, "branch": branch, "num_inference_steps": 2}
    together = run(models, *items, **options)
    for row, item in enumerate(items):
        alone = run(models, item, **options)
        torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=0)


def test_scale_zero_is_no_adapter_bit_for_bit(models: ModelCache) -> None:
    targets = (pose(models),)
    plain = run(models, SampleItem("a", seed=3, targets=targets))
    off = tuple(given(models, name, scale=0.0) for name in ("net", "t2i"))
    assert torch.equal(plain, run(models, SampleItem("a", seed=3, targets=targets, adapters=off)))


def test_t2i_adapters_do_not_see_the_latents(models: ModelCache) -> None:
    item = SampleItem("a", seed=3, targets=(pose(models),), adapters=(given(models, "t2i"),))
    same = [
        run(models, item, adapter_gradient=gradient, num_inference_steps=1)
        for gradient in ("constant", "full")
    ]
    assert torch.equal(*same)


def test_the_full_gradient_is_the_distance_s(models: ModelCache) -> None:
    """By central differences; what the constant leaves out is far more than their error."""
    item = SampleItem("a", seed=3, targets=(pose(models),), adapters=(given(models, "net"),))
    base = models.model("tiny")

    def distance(latents: Tensor | None, gradient: AdapterGradient) -> tuple[float, Tensor, Tensor]:
        plan = replace(PLAN, adapter_gradient=gradient, update_rule="unnormalized")
        loop = Run(base, [item], plan)
        loop.latents = loop.latents if latents is None else latents
        _, slope, mixture = loop.readout_gradient(0, loop.controls_at(0), Passes())
        slope = slope * mixture.magnitude[:, None, None, None]
        return float(mixture.losses), slope, loop.latents

    with torch.no_grad():
        _, full, start = distance(None, "full")
        _, constant, _ = distance(None, "constant")
        step = 0.01 * full / full.norm()
        change = distance(start + step, "full")[0] - distance(start - step, "full")[0]
    assert change == pytest.approx(2 * float((full * step).sum()), rel=5e-3)
    assert change != pytest.approx(2 * float((constant * step).sum()), rel=2e-2)


def test_t2i_features_are_computed_once_and_controlnets_once_a_pass(models: ModelCache) -> None:
    t2i, net = given(models, "t2i"), given(models, "net")
    calls = {"t2i": 0, "net": 0, "unet": 0}

    def count(name: str) -> Any:
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    handles = [
        t2i.adapter.network.register_forward_hook(count("t2i")),
        net.adapter.network.register_forward_hook(count("net")),
        models.model("tiny").unet.register_forward_hook(count("unet")),
    ]
    items = [SampleItem("a", seed=s, targets=(pose(models),), adapters=(t2i, net)) for s in (1, 2)]
    run(models, *items, form="two_pass")
    for handle in handles:
        handle.remove()
    assert calls["t2i"] == 1
    assert calls["net"] == calls["unet"] == 2 * PLAN.num_inference_steps


def test_what_does_not_fit_is_refused(registry: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(registry, tmp_path / "registry"))
    unet = ModelCache(Catalogue([directory]), 2**30).model("tiny-xl").unet
    for name, kind in (("net", "controlnet"), ("t2i", "t2i_adapter")):
        save_tiny_adapter(directory, unet, f"wrong-{name}", kind)  # says that it is the family's
    models = ModelCache(Catalogue([directory]), 2**30)
    for name in ("wrong-net", "wrong-t2i"):
        with pytest.raises(AdapterMismatch, match=name):
            models.adapter("tiny", name)
    with pytest.raises(UnknownAdapter, match="adapters that fit: net, second-net"):
        models.adapter("tiny", "depth")
    with pytest.raises(IncompatibleAdapter, match="tiny-xl"):
        models.adapter("tiny", "tiny-xl/net")
    weights = directory / "adapters/tiny-t2i/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(AdapterLoadError, match="not the file of the manifest"):
        models.adapter("tiny", "t2i")
    shutil.rmtree(directory / "adapters/tiny-net")
    with pytest.raises(AdapterLoadError, match="missing"):
        models.adapter("tiny", "net")


def test_features_of_another_size_are_refused(models: ModelCache) -> None:
    wrong = given(models, "t2i", image=image(0, 32))
    good = SampleItem("a", seed=3, adapters=(given(models, "t2i", image=image(0, 32)),))
    run(models, good, height=32, width=32)
    with pytest.raises(AdapterMismatch, match="downscaling"):
        run(models, SampleItem("a", seed=3, adapters=(wrong,)))


def test_a_request_brings_its_adapters(registry: Path) -> None:
    """From key points and from an image, through the engine's own preparation."""
    models = ModelCache(Catalogue([registry]), 2**30)
    points = tuple(Keypoint(x=0.5, y=0.05 + index / 20) for index in range(18))
    stored = StoredImage(upload_id="u", key="k", sha256="0" * 64, width=40, height=30)
    drawn = Adapter(
        type="controlnet",
        model="tiny/net",
        pose=Pose(people=(points,), aspect_ratio=1.0),
        scale=1.0,
        span=(0.0, 1.0),
    )
    shown = Adapter(type="t2i_adapter", model="tiny/t2i", image=stored, scale=1.0, span=(0, 0.5))
    asked = request(num_images=1, controls=(), adapters=(drawn, shown))

    def load_image(_: object) -> Image.Image:
        return Image.new("RGB", (40, 30), (255, 0, 0))

    with_both, without = (
        execute(one, models, load_image, lambda step, steps: None)
        for one in (asked, request(num_images=1, controls=()))
    )
    assert with_both.images[0].tobytes() != without.images[0].tobytes()
    guided = request(num_images=2, adapters=(drawn, shown), adapter_gradient="full")
    generous, thrifty = (
        execute(guided, models, load_image, lambda step, steps: None, thrift)
        for thrift in (Thrift(), Thrift(batch_images=1, checkpoint=True))
    )
    assert thrifty.distances == [pytest.approx(row, rel=1e-3) for row in generous.distances]
    parameters = embedded_parameters(asked, 3, {})
    assert parameters["adapters"][1]["image_sha256"] == "0" * 64
    assert "key" not in str(parameters["adapters"][1])
    failure = TorchEngine(models).failure_of(AdapterMismatch("too wide"))
    assert failure is not None
    assert (failure.code, failure.message) == (FailureCode.INCOMPATIBLE_ADAPTER, "too wide")


def test_the_cache_drops_what_was_used_longest_ago(registry: Path) -> None:
    models = ModelCache(Catalogue([registry]), 2**30)
    net = models.adapter("tiny", "net")
    t2i = models.adapter("tiny", "t2i")
    assert models.adapter("tiny", "net") is net
    models.budget_bytes = models.nbytes - 1
    models.adapter("tiny", "net")
    assert models.nbytes <= models.budget_bytes
    assert models.adapter("tiny", "t2i") is not t2i
    before = models.nbytes
    models.model("tiny-xl")
    assert models.loaded == ("tiny-xl",)
    assert models.nbytes != before
