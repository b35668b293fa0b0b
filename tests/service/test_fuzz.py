"""Random requests made from openapi.yaml, against a real gateway on real servers: never a 5xx."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from schemathesis import checks

OPENAPI = Path(__file__).parents[2] / "openapi.yaml"
EXAMPLES = int(os.environ.get("READOUT_FUZZ_EXAMPLES", "10"))
"""Per operation, and both for right and for wrong requests."""


def unsecured() -> dict[str, Any]:
    """The description of a gateway that asks for no keys; test_auth.py is about those."""
    document: dict[str, Any] = yaml.safe_load(OPENAPI.read_text())
    del document["components"]["securitySchemes"]
    del document["paths"]["/v1/batches/jsonl"]  # schemathesis writes no JSON lines: test_batches
    for item in document["paths"].values():
        for operation in item.values():
            del operation["security"]
            for parameter in operation.get("parameters", ()):
                if parameter["name"].lower() == "prefer":
                    parameter["schema"] = {}  # RFC 7240: what is not understood is ignored
    return document


schema = schemathesis.openapi.from_dict(unsecured())


@schema.parametrize()
@hypothesis_settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)
def test_every_answer_is_as_described(case: schemathesis.Case, client: httpx.Client) -> None:
    response = case.call(base_url=str(client.base_url))
    case.validate_response(
        response,
        checks=[
            checks.not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_headers_conformance,
            checks.response_schema_conformance,
            checks.negative_data_rejection,
        ],
    )
