from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo_model.parallel import FlatGradients, Group, run_in_group

# The processes import this file again: it stays free of diffusers, which takes seconds to import.
pytestmark = pytest.mark.torch


def test_gradients_stay_views_of_one_buffer() -> None:
    layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    gradients = FlatGradients(layer.parameters())
    for _ in range(2):
        layer(torch.ones(1, 3, 5, 5)).square().sum().backward()
    assert layer.weight.grad is not None
    expected = torch.cat([layer.weight.grad.flatten(), layer.bias.grad.flatten()]).norm()  # type: ignore[union-attr]
    assert torch.isclose(gradients.flat.norm(), expected)
    gradients.clip(1.0)
    assert torch.isclose(gradients.flat.norm(), torch.tensor(1.0))
    gradients.zero()
    assert not layer.weight.grad.any()


def _averaged(group: Group, folder: Path) -> None:
    value = torch.full((3,), float(group.rank))
    group.average(value)
    torch.save((value, group.agree(group.rank + 5.0)), folder / f"{group.rank}.pt")


@pytest.mark.slow
def test_processes_average_and_agree(tmp_path: Path) -> None:
    run_in_group(2, _averaged, tmp_path)
    for rank in range(2):
        value, agreed = torch.load(tmp_path / f"{rank}.pt")
        assert value.tolist() == [0.5, 0.5, 0.5]
        assert agreed == [5.0]
