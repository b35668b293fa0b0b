"""The short form of `python -m bench.chaos`: all real but the engine, without torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.chaos import disturb, promises

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_nothing_is_lost_doubled_or_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_STEP_S", "0.05")
    plan = disturb.Plan(
        jobs=30,
        workers=2,
        seeds=5,
        kill_every_s=2.0,
        most_kills=8,
        storage_away_s=2.0,
        settings={"lease_s": 2.0},
        body={"prompt": "a person", "num_inference_steps": 10},
        worker_command=(sys.executable, "-m", "tests.worker.fakes"),
    )
    found = disturb.run(tmp_path, plan)
    assert found["good"], found
    assert found["disturbances"]["workers killed"] >= 1
    for what in ("gateway restarted", "redis restarted", "storage stopped"):
        assert found["disturbances"][what] == 1


def test_a_key_makes_one_job_however_often_the_gateway_is_killed(tmp_path: Path) -> None:
    found = promises.idempotency(tmp_path, {}, {"prompt": "a person"}, pairs=6)
    assert found["good"], found
    assert found["gateway_killed"] == 2


def test_who_hangs_up_and_resumes_sees_each_event_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_STEP_S", "0.02")
    command = (sys.executable, "-m", "tests.worker.fakes")
    found = promises.events(tmp_path, {}, {"prompt": "a person"}, 3, command)
    assert found["good"], found
