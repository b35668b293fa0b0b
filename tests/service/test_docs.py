"""docs/api.md names every code and every endpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from service.errors import InvalidRequest, ServiceError, Unavailable

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text()
OVERVIEW = PAGE.partition("## The request")[0].replace("`, `", " ")


def kinds(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    """The error and all below it."""
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def test_every_code_is_in_the_table_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.+?) \|", PAGE, re.MULTILINE)
    listed = {
        (int(status), code) for status, codes in rows for code in re.findall("`(.+?)`", codes)
    }
    ours = {(kind.status, kind.code) for kind in kinds(ServiceError) if kind is not Unavailable}
    assert listed == ours


def test_codes_are_unique_and_subclasses_keep_the_status() -> None:
    found = list(kinds(ServiceError))
    assert len({kind.code for kind in found}) == len(found)
    assert {kind.status for kind in kinds(InvalidRequest)} == {422}
    assert {kind.status for kind in kinds(Unavailable)} == {503}


def test_every_path_is_named() -> None:
    document = yaml.safe_load((ROOT / "openapi.yaml").read_text())
    for path in document["paths"]:
        short = path.replace("{generation_id}", "{id}").replace("{batch_id}", "{id}")
        assert short in OVERVIEW, path
