from __future__ import annotations

import json

import pytest
import structlog

from jobs.logs import configure_logging


def connect(password: str) -> None:
    """Fails with the secret among its local variables, as a driver would."""
    url = f"redis://:{password}@localhost"
    try:
        raise RuntimeError(f"it broke after {len(url)} characters")
    except RuntimeError:
        structlog.get_logger().exception("job.bug")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_bugs_log_line_names_it_without_what_was_in_its_variables(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(log_format)
    # Put together at run time: the traceback quotes this file's lines, and they must not have it.
    connect(password="-".join(("hunter", "2")))
    printed = capsys.readouterr().out
    assert "it broke" in printed
    assert "hunter-2" not in printed
    if log_format == "json":
        assert json.loads(printed)["event"] == "job.bug"
    structlog.reset_defaults()
