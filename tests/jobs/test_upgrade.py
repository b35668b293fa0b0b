from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.request import GenerationRequest

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("path", sorted(DATA.glob("request-*.json")), ids=lambda path: path.stem)
def test_requests_of_earlier_versions_are_read_as_they_were_meant(path: Path) -> None:
    """A field that a version adds has a default that changes nothing: workers go first."""
    written = json.loads(path.read_text())
    read = GenerationRequest.model_validate(written).model_dump(mode="json")
    assert {name: read[name] for name in written} == written
