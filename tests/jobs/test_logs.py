from __future__ import annotations

import json

import pytest
import structlog

from jobs.logs import configure_logging


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_bugs_log_line_names_it_without_what_was_in_its_variables(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(log_format)
    secret = "hunter" + "2"
    try:
        raise RuntimeError("it broke")
    except RuntimeError:
        structlog.get_logger().exception("job.bug")
    printed = capsys.readouterr().out
    assert "it broke" in printed
    assert secret not in printed
    if log_format == "json":
        assert json.loads(printed)["event"] == "job.bug"
    structlog.reset_defaults()
