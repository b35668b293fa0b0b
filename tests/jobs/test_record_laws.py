"""Whatever is asked in whatever order, the record does what its small model says."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.connection import connect
from jobs.record import (
    Failure,
    FailureCode,
    JobState,
    Progress,
    RecordStore,
    StaleAttempt,
    StateConflict,
)
from jobs.settings import CoreSettings
from stack.servers import Server
from tests.jobs.samples import a_request, a_result, let_lease_expire
from tests.servers import S3, settings_for

FAILURE = Failure(code=FailureCode.INTERNAL, message="x")
ACTIONS = (
    "start",
    "heartbeat",
    "progress",
    "succeed",
    "fail",
    "release",
    "cancel",
    "die",
    "expire",
)
steps = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(1, 3)), max_size=14)


class Model:
    """The state machine in plain Python."""

    def __init__(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self.state, self.attempt, self.alive = JobState.QUEUED, 0, False
        self.released = 0

    def apply(self, action: str, token: int) -> bool:
        """Whether it is allowed, and what then holds."""
        owner = self.state is JobState.RUNNING and token == self.attempt
        match action:
            case "start":
                free = self.state is JobState.QUEUED or (
                    self.state is JobState.RUNNING and not self.alive
                )
                if not free or self.attempt - self.released >= self.max_attempts:
                    return False
                self.state, self.attempt, self.alive = JobState.RUNNING, self.attempt + 1, True
            case "heartbeat":
                self.alive = self.alive or owner
                return owner
            case "progress":
                return owner
            case "succeed" | "fail":
                final = JobState.SUCCEEDED if action == "succeed" else JobState.FAILED
                if not owner and not (self.state is final and token == self.attempt):
                    return False
                self.state = final
            case "release":
                if not owner:
                    return False
                self.state, self.released = JobState.QUEUED, self.released + 1
            case "cancel":
                if self.state.terminal:
                    return False
                self.state = JobState.CANCELED
            case "die":
                self.alive = False
            case "expire":
                if self.state is JobState.RUNNING and not self.alive:
                    used_up = self.attempt - self.released >= self.max_attempts
                    self.state = JobState.FAILED if used_up else JobState.QUEUED
        return True


@pytest.fixture(scope="module")
def small_settings(valkey: Server, s3: S3) -> CoreSettings:
    return settings_for(valkey.url, s3.url, max_attempts=3)


@given(steps=steps)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_record_follows_its_model(
    small_settings: CoreSettings, steps: list[tuple[str, int]]
) -> None:
    client = connect(small_settings)
    records = RecordStore(client, small_settings)
    job = records.create(a_request()).id
    model = Model(small_settings.max_attempts)
    transitions = {
        "start": lambda token: records.start(job, "w"),
        "heartbeat": lambda token: records.heartbeat(job, token),
        "progress": lambda token: records.progress(job, token, Progress(step=1, total_steps=2)),
        "succeed": lambda token: records.succeed(job, token, a_result(job, token)),
        "fail": lambda token: records.fail(job, token, FAILURE),
        "release": lambda token: records.release(job, token),
        "cancel": lambda token: records.request_cancel(job),
        "expire": lambda token: records.expire_lease(job, FAILURE),
    }
    try:
        for action, token in steps:
            if action == "die":
                if model.state is JobState.RUNNING:
                    let_lease_expire(client, small_settings, job)
                    model.apply(action, token)
                continue
            try:
                transitions[action](token)
                allowed = True
            except (StaleAttempt, StateConflict):
                allowed = False
            assert allowed == model.apply(action, token), (action, token)
            record = records.get(job)
            assert (record.state, record.attempt) == (model.state, model.attempt)
            assert (record.result is not None) == (record.state is JobState.SUCCEEDED)
            assert (record.finished_at is not None) == record.state.terminal
        held = [state for state in JobState if job in records.active(state)]
        assert held == [records.get(job).state]
    finally:
        client.close()
