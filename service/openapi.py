"""The API's description: FastAPI's, with problems for every error; prints openapi.yaml."""

from __future__ import annotations

import sys
from typing import Any

import yaml
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.auth import GUARDED
from service.errors import Problem
from service.idempotency import REPLAYED
from service.problems import PROBLEM_JSON

_DESCRIPTIONS = {
    400: "The body cannot be parsed",
    401: "No API key, or not a valid one",
    404: "No such thing",
    405: "The path exists, the method does not",
    409: "The state does not allow it, or the same request is in flight",
    410: "There was one; its time is over",
    413: "The body is over the limit",
    415: "A content type or image format that is not accepted",
    422: "A field is wrong; `errors` says which",
    500: "An error on our side",
    503: "Full, or a peer is down; see `Retry-After`",
}
_SECONDS = {"schema": {"type": "integer", "minimum": 1}}
_TRUE = {"type": "string", "const": "true"}
_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "an API key, made with `readout keys create`; it sees what its owner made",
}
_REQUEST_ID = {
    "description": "the client's `X-Request-ID` if it sent one, else a new id",
    "schema": {"type": "string"},
}
_PROBLEM = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
EVENT_STREAM: dict[int | str, Any] = {
    200: {
        "description": "Events, until the generation is over",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "It is over, and nothing came after `Last-Event-ID`"},
}
DESCRIPTION = """\
Images that follow poses, depth maps and edge maps, by readout heads on a frozen diffusion model.

Send a request to `POST /v1/generations`, poll its `Location` until `state` is `succeeded`, `failed`
or `canceled`, and download from the presigned URLs. Errors are RFC 9457 problems whose `code` is
stable. Unknown fields are refused; the effective request is echoed with every default filled in.
"""


def problems(*statuses: int, accepted: bool = False, poll: bool = False) -> dict[int | str, Any]:
    """FastAPI's `responses` for these statuses, and 500, as problems.

    Args:
        statuses: that the endpoint may answer.
        accepted: it answers 202 with Location and Retry-After.
        poll: its 200 carries Retry-After until the generation is over.
    """
    described: dict[int | str, Any] = {
        status: {"description": _DESCRIPTIONS[status], "content": _PROBLEM}
        for status in sorted({*statuses, 500})
    }
    retry = {"Retry-After": {"description": "seconds until it is worth asking", **_SECONDS}}
    if 503 in described:
        described[503]["headers"] = retry
    applied = {"description": "`wait=N`, where it was waited", "schema": {"type": "string"}}
    waited = {"Preference-Applied": applied}
    if poll:
        described[200] = {"description": "The generation", "headers": retry | waited}
    if accepted:
        location = {"description": "path of the generation", "schema": {"type": "string"}}
        replayed = {"description": "`true`: made by an earlier request", "schema": _TRUE}
        described[202] = {
            "description": "Queued",
            "headers": {"Location": location, REPLAYED: replayed, **retry, **waited},
        }
        view = {"schema": {"$ref": "#/components/schemas/GenerationView"}}
        described[200] = {
            "description": "Over within the time that was preferred to wait",
            "headers": {"Location": location, REPLAYED: replayed, **waited},
            "content": {"application/json": view},
        }
    return described


def install(app: FastAPI) -> None:
    """Make `app.openapi()` this module's description."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = build(app)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


def build(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, with the problem schema in place of its own validation error."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=DESCRIPTION,
        routes=app.routes,
    )
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs")
    schemas["Problem"] = problem
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    document["components"]["securitySchemes"] = {"apiKey": _SCHEME}
    for path, item in document["paths"].items():
        for operation in item.values():
            _secure(operation, guarded=path.startswith(GUARDED))
            _drop_fastapis_422(operation["responses"])
            for response in operation["responses"].values():
                response.setdefault("headers", {})["X-Request-ID"] = _REQUEST_ID
    return document


def _secure(operation: dict[str, Any], *, guarded: bool) -> None:
    """Say who may call; 401 is among the answers where a key is asked for."""
    operation["security"] = [{"apiKey": []}] if guarded else []
    if guarded:
        challenge = {"description": "RFC 6750", "schema": {"type": "string"}}
        unauthorized = {"description": _DESCRIPTIONS[401], "content": _PROBLEM}
        unauthorized["headers"] = {"WWW-Authenticate": challenge}
        responses = operation["responses"] | {"401": unauthorized}
        operation["responses"] = dict(sorted(responses.items()))


def _drop_fastapis_422(responses: dict[str, Any]) -> None:
    """FastAPI adds its own to every operation with parameters; ours are listed where they are."""
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]


class _Dumper(yaml.SafeDumper):
    """Without anchors, and with readable multi-line text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(document: dict[str, Any]) -> str:
    """The document as openapi.yaml has it."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def main() -> None:
    """Print openapi.yaml; the same for every environment."""
    from service.app import create_app
    from service.settings import GatewaySettings

    sys.stdout.write(to_yaml(create_app(GatewaySettings()).openapi()))


if __name__ == "__main__":
    main()
