"""Heads that are compared by amount of data: what they are trained on and what measures them."""

from __future__ import annotations

import pytest

from evaluation import learning


@pytest.mark.parametrize("examples", [10, 30])
def test_a_head_is_trained_on_so_many_examples_and_measured_on_those_held_out(
    tmp_path, monkeypatch, examples
):
    monkeypatch.setattr(learning, "RUNS", tmp_path)
    monkeypatch.setattr(learning, "TRIAL_EXAMPLES", 60)
    _, metrics = learning._trained(examples, steps=1, trial=True)
    assert metrics["training"]["examples"] == examples
    assert metrics["training"]["validation_examples"] == 12
