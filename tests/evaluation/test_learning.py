"""Heads that are compared by amount of data: what they are trained on and what measures them."""

from __future__ import annotations

import pytest

from evaluation import learning


@pytest.mark.parametrize("examples", [10, 30])
def test_heads_of_any_amount_of_data_are_measured_on_the_same_images(
    tmp_path, monkeypatch, examples
):
    monkeypatch.setattr(learning, "RUNS", tmp_path)
    monkeypatch.setattr(learning, "TRIAL_EXAMPLES", 60)
    _, metrics = learning._trained(examples, steps=1, trial=True)
    assert metrics["training"]["examples"] == examples
    assert metrics["training"]["validation_examples"] == 12
