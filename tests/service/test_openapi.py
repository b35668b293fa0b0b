"""openapi.yaml is the app's, valid, whole, and holds against random requests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from openapi_spec_validator import OpenAPIV31SpecValidator

from service.app import create_app
from service.openapi import to_yaml
from service.schemas import GenerationParameters
from service.settings import GatewaySettings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """What the app says of itself."""
    app = create_app(GatewaySettings())
    found: dict[str, Any] = app.openapi()
    app.state.services.close()
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every operation with its path."""
    return [(path, op) for path, item in document["paths"].items() for op in item.values()]


def test_the_committed_file_is_the_apps(document: dict[str, Any]) -> None:
    committed = (ROOT / "openapi.yaml").read_text()
    assert yaml.safe_load(committed) == document, "run `make openapi` and commit openapi.yaml"
    assert committed == to_yaml(document)


def test_it_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))


def test_the_api_wants_a_key_and_says_so(document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    for path, operation in operations(document):
        guarded = path.startswith("/v1/")
        assert operation["security"] == ([{"apiKey": []}] if guarded else []), path
        assert ("401" in operation["responses"]) == guarded, path


def test_every_error_is_a_problem(document: dict[str, Any]) -> None:
    for path, operation in operations(document):
        errors = {s: r for s, r in operation["responses"].items() if s[0] in "45"}
        assert "500" in errors, path
        for answer in errors.values():
            assert list(answer["content"]) == ["application/problem+json"]
            schema = answer["content"]["application/problem+json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_examples_are_requests(document: dict[str, Any]) -> None:
    examples = document["components"]["schemas"]["GenerationParameters"]["examples"]
    assert len(examples) >= 2
    for example in examples:
        GenerationParameters.model_validate(example)


def test_the_gateway_never_imports_torch() -> None:
    program = (
        "import sys, service.app, service.openapi; "
        "assert not {'torch', 'diffusers', 'transformers', 'numba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env=dict(os.environ))
