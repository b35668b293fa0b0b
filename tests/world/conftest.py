"""Small real renders shared by the tests of the world."""

from __future__ import annotations

import pytest

from world.render import Render, render
from world.scene import sample_scene


@pytest.fixture(scope="session")
def renders() -> list[Render]:
    """Forty renders of the mix at 64 pixels."""
    return [render(sample_scene(seed)) for seed in range(40)]
