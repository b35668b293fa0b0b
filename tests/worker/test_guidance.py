from __future__ import annotations

import pytest
import torch

from heads_registry.networks import ReadoutHead
from worker.guidance import ReadoutTarget, feature_gradient, group_controls, readout_update
from worker.objectives import spatial_distance


def test_the_objectives_gradient_is_right() -> None:
    torch.manual_seed(0)
    readout = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda value: spatial_distance(value, target), (readout,))
    assert spatial_distance(target, target).tolist() == [0, 0]


@pytest.mark.parametrize("rule", ["elementwise", "rms"])
def test_normalised_rules_do_not_know_the_gradients_scale(rule: str) -> None:
    gradient = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    one, step, alpha = torch.ones(2), torch.full((2,), 0.1), torch.tensor(0.5)
    first = readout_update(gradient, one, step, rule, alpha)
    second = readout_update(gradient, one * 1000, step, rule, alpha)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)
    assert float(first.square().mean().sqrt()) == pytest.approx(0.1, rel=1e-3)


def test_timestep_rescaling_is_classifier_guidances_factor() -> None:
    gradient, one, step = torch.ones(1, 4, 2, 2), torch.ones(1), torch.ones(1)
    alpha = torch.tensor(0.19)
    plain = readout_update(gradient, one, step, "unnormalized", alpha)
    rescaled = readout_update(gradient, one, step, "timestep_rescaled", alpha)
    torch.testing.assert_close(rescaled, plain * 0.9)


def test_the_cut_chain_rule_is_the_chain_rule() -> None:
    """Feature gradients through two 'U-Net' layers equal one backward pass through everything."""
    torch.manual_seed(0)
    first = torch.nn.Conv2d(4, 8, 3, padding=1)
    second = torch.nn.Conv2d(8, 12, 3, padding=1)
    head = ReadoutHead((8, 12), 16, 6, 4, output_channels=3)
    target, embedding = torch.rand(3, 8, 8), torch.randn(1, 6)
    latents = torch.randn(1, 4, 8, 8, requires_grad=True)
    features = [first(latents)]
    features.append(second(features[0]))
    control = ReadoutTarget(
        head, ("a", "b"), "timestep", target, spatial_distance, 0.5, (0.0, 1.0), 0.02
    )
    groups = group_controls([(0, control)], latents.device)
    mixture = feature_gradient(features, ("a", "b"), groups, lambda _: embedding, (8, 8), 1)
    (cut,) = torch.autograd.grad(features, latents, mixture.gradients, retain_graph=True)
    distance = spatial_distance(head(features, embedding, (8, 8)), target[None])
    (whole,) = torch.autograd.grad(distance.sum(), latents)
    torch.testing.assert_close(cut * mixture.magnitude, whole, rtol=1e-4, atol=1e-8)
    assert mixture.step.tolist() == pytest.approx([0.01])


def test_balanced_controls_have_the_share_of_their_weights() -> None:
    """A head whose distances are a thousand times larger does not drown the other."""
    torch.manual_seed(0)
    heads = [ReadoutHead((8,), 16, 6, 4, output_channels=3) for _ in range(2)]
    features = [torch.randn(1, 8, 8, 8)]
    embedding = torch.randn(1, 6)

    def mix(weights: tuple[float, float], loudness: float) -> torch.Tensor:
        controls = [
            ReadoutTarget(
                head,
                ("a",),
                "timestep",
                torch.full((3, 8, 8), 0.3),
                objective,
                weight,
                (0.0, 1.0),
                0.02,
            )
            for head, weight, objective in zip(
                heads,
                weights,
                (spatial_distance, lambda a, b: loudness * spatial_distance(a, b)),
                strict=True,
            )
        ]
        groups = group_controls([(0, control) for control in controls], torch.device("cpu"))
        return feature_gradient(features, ("a",), groups, lambda _: embedding, (8, 8), 1).gradients[
            0
        ]

    torch.testing.assert_close(mix((1, 1), 1.0), mix((1, 1), 1000.0), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(mix((1, 1), 1.0), mix((2, 1), 1.0), rtol=1e-2)
