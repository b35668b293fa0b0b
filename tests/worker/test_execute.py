from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from heads_registry.device import resolve_device, resolve_dtype
from jobs.request import GenerationRequest, Keypoint, OutputOptions, Pose, SpatialControl
from tests.tiny import FAMILY
from worker.controls import control_image
from worker.execute import execute, execute_together
from worker.images import PARAMETERS_KEY, encode_image, to_images
from worker.models import ModelCache


def request(**changes: object) -> GenerationRequest:
    values: dict = {
        "task": "spatial",
        "model": FAMILY,
        "prompt": "a person",
        "negative_prompt": "",
        "num_images": 2,
        "seed": 3,
        "height": 32,
        "width": 64,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "eta": 1.0,
        "form": "one_pass",
        "branch": "unconditional",
        "update_rule": "elementwise",
        "controls": (control(),),
        "output": OutputOptions(evolution_steps=(0, 2)),
    }
    return GenerationRequest(**(values | changes))


def control(aspect_ratio: float = 1.0, fit: str = "cover") -> SpatialControl:
    points = tuple(Keypoint(x=0.5, y=0.05 + index / 20) for index in range(18))
    pose = Pose(people=(points,), aspect_ratio=aspect_ratio)
    return SpatialControl(head="tiny/pose", pose=pose, weight=1.0, span=(0.0, 1.0), fit=fit)


def no_image(_: object) -> Image.Image:
    raise AssertionError


@pytest.fixture(scope="module")
def models(tiny_registry: Path) -> ModelCache:
    return ModelCache(Catalogue([tiny_registry]), 10**9)


def test_a_request_becomes_pictures_readouts_and_measures(models: ModelCache) -> None:
    execution = execute(request(), models, no_image, lambda step, steps: None)
    assert [image.size for image in execution.images] == [(64, 32)] * 2
    assert execution.seeds == [3, 4]
    assert all(row[0] > 0 for row in execution.distances)
    assert execution.readouts[0][0].size == (16, 8)
    assert [[frame.step for frame in frames] for frames in execution.evolution] == [[0, 2]] * 2
    assert set(execution.timings) == {"load", "prepare", "sample", "decode"}


def test_one_image_of_many_is_the_image_of_its_own_seed(models: ModelCache) -> None:
    options: dict = {"update_rule": "rms", "output": OutputOptions()}
    together = execute(request(**options), models, no_image, lambda step, steps: None)
    alone = execute(
        request(**options, seed=4, num_images=1), models, no_image, lambda step, steps: None
    )
    difference = np.array(together.images[1], int) - np.array(alone.images[0], int)
    assert abs(difference).mean() < 2


@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
@pytest.mark.parametrize("aspect_ratio", [0.5, 1.0, 3.0])
def test_key_points_move_as_the_pixels_they_lie_on(fit: str, aspect_ratio: float) -> None:
    """A pose drawn at the canvas' own size and then fitted looks as one that is fitted first."""
    from heads_registry.targets import fit_image, image_target
    from openpose import draw_pose

    asked = control(aspect_ratio, fit)
    assert asked.pose is not None
    height = 256
    width = round(height * aspect_ratio)
    points = [(point.x * width, point.y * height) for point in asked.pose.people[0] if point]
    canvas = fit_image(draw_pose([points], width, height), 64, 64, fit)
    first = image_target(canvas, (8, 8), (0.0, 1.0)).amax(dim=0)
    second = image_target(control_image(asked, 64, 64, no_image), (8, 8), (0.0, 1.0)).amax(dim=0)
    where = [maps.sum(dim=0).argmax().item() for maps in (first, second)]
    rows = [(maps.sum(dim=1) > 0.02).nonzero().flatten().tolist() for maps in (first, second)]
    assert where[0] == pytest.approx(where[1], abs=1)
    assert rows[0][0] == pytest.approx(rows[1][0], abs=1)
    assert rows[0][-1] == pytest.approx(rows[1][-1], abs=1)


def test_models_are_loaded_once_and_the_oldest_goes_first(tiny_registry_copy: Path) -> None:
    manifest = tiny_registry_copy / "models" / "tiny.yaml"
    for name in ("second", "third"):
        text = manifest.read_text().replace("name: tiny", f"name: {name}")
        manifest.with_name(f"{name}.yaml").write_text(text)
    cache = ModelCache(Catalogue([tiny_registry_copy]), 10**9)
    first = cache.model("tiny")
    cache.head("tiny", "pose")
    assert cache.model("tiny") is first
    assert cache.head("tiny", "pose") is cache.head("tiny", "tiny/pose")
    cache.budget_bytes = int(2.5 * first.nbytes)
    cache.model("second")
    cache.model("tiny")
    cache.model("third")
    assert cache.loaded == ("tiny", "third")
    cache.clear()
    assert cache.nbytes == 0


def test_auto_chooses_what_the_machine_does_fast() -> None:
    device = resolve_device("auto")
    assert device.type in ("cpu", "cuda")
    assert resolve_dtype("float32", device) is torch.float32
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    assert resolve_dtype("auto", cpu, "bfloat16") is torch.bfloat16
    assert resolve_dtype("float16", cpu, "bfloat16") is torch.float16


def test_a_model_s_manifest_says_what_auto_means_on_a_cpu() -> None:
    catalogue = Catalogue([BUILTIN_DIR])
    assert catalogue.model("mannequin-64").cpu_dtype == "float32"
    assert ModelCache(catalogue, 2**34, dtype=None).model("mannequin-64").dtype is torch.float32
    asked = ModelCache(catalogue, 2**34, dtype=torch.bfloat16)
    assert asked.model("mannequin-64").dtype is torch.bfloat16
    assert asked.head("mannequin-64", "pose").network.mixing_weights.dtype is torch.float32


def test_parameters_travel_inside_the_png_unless_they_are_not_wanted() -> None:
    image = to_images(torch.zeros(1, 3, 4, 4))[0]
    assert image.getpixel((0, 0)) == (128, 128, 128)
    parameters = {"seed": 3, "prompt": "ein Mädchen"}
    with Image.open(io.BytesIO(encode_image(image, OutputOptions(), parameters))) as stored:
        assert json.loads(stored.text[PARAMETERS_KEY]) == parameters
    plain = encode_image(image, OutputOptions(embed_parameters=False), parameters)
    with Image.open(io.BytesIO(plain)) as stored:
        assert not stored.text


@pytest.mark.parametrize("media", ["png", "webp", "jpeg"])
def test_every_format_opens_again(media: str) -> None:
    image = Image.new("RGB", (8, 8), (200, 30, 40))
    data = encode_image(image, OutputOptions(format=media), {"seed": 1})
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.format == media.upper()
        assert stored.convert("RGB").getpixel((4, 4))[0] > 150


def psnr(one: Image.Image, other: Image.Image) -> float:
    error = (np.asarray(one, float) - np.asarray(other, float)) ** 2
    return float(10 * np.log10(255**2 / max(error.mean(), 1e-9)))


def test_requests_run_together_make_the_pictures_that_they_make_alone(models: ModelCache) -> None:
    options: dict = {"update_rule": "rms", "num_images": 1}
    unguided: dict = {"task": "text_to_image", "controls": ()}
    requests = [
        request(**options, seed=11),
        request(**(options | {"num_images": 2}), seed=20, prompt="a dog"),
        request(**options, seed=31, controls=(control(2.0),), negative_prompt="grass"),
        request(**options, seed=40, **unguided),
    ]
    together = execute_together(requests, models, no_image, lambda step, steps: None)
    for asked, got in zip(requests, together, strict=True):
        alone = execute(asked, models, no_image, lambda step, steps: None)
        assert got.seeds == alone.seeds
        assert len(got.images) == asked.num_images
        assert all(psnr(*pair) >= 40 for pair in zip(got.images, alone.images, strict=True))
        for row, other in zip(got.distances, alone.distances, strict=True):
            assert row == pytest.approx(other, rel=1e-3)
        assert [len(frames) for frames in got.evolution] == [2] * asked.num_images
