"""The `Idempotency-Key` header: a claim before a request makes anything, given back on refusal."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

from fastapi import Depends, Header
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from jobs.errors import AlreadyMade, QueueUnavailable
from jobs.idempotency import IdempotencyClaims, IdempotencyKey
from service.errors import FieldError, InvalidRequest

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")

_Header = Annotated[
    str | None,
    Header(
        alias=HEADER,
        description="any text of 1 to 255 printable ASCII characters, such as a UUID, in quotes or "
        "not. Requests of one API key with the same text make one thing: for 24 hours a repetition "
        "gets the first answer, with another body 422, and 409 while the first is at work",
    ),
]


async def _idempotency_key(key: _Header = None) -> str | None:
    if key is None:
        return None
    text = key[1:-1] if len(key) > 1 and key[0] == key[-1] == '"' else key
    if not _KEY.fullmatch(text):
        detail = "use 1 to 255 printable ASCII characters without spaces, such as a UUID"
        wrong = FieldError(parameter=HEADER, detail=detail)
        raise InvalidRequest(f"{HEADER}: {detail}", errors=[wrong])
    return text


KeyDep = Annotated[str | None, Depends(_idempotency_key)]


def bind(text: str | None, owner: str, route: str, body: BaseModel) -> IdempotencyKey | None:
    """The key with what it is bound to.

    Args:
        text: the header; None without one.
        owner: whose key it is; another owner's same text is another key.
        route: such as ``POST /v1/generations``.
        body: validated, so that white space and the order of fields do not matter.

    Raises:
        InvalidRequest: a text has half of a surrogate pair, which no UTF-8 can say.
    """
    if text is None:
        return None
    try:
        meant = body.model_dump_json().encode()
    except PydanticSerializationError as error:
        raise InvalidRequest("some text of the request is not valid Unicode") from error
    fingerprint = hashlib.sha256(meant).hexdigest()
    return IdempotencyKey(owner, route, text, fingerprint)


@contextmanager
def claimed(claims: IdempotencyClaims, key: IdempotencyKey | None) -> Iterator[None]:
    """Hold the claim of a key while something is made with it; without a key: nothing.

    Raises:
        KeyReused, KeyInFlight, AlreadyMade: see jobs/idempotency.py.
    """
    if key is None:
        yield
        return
    claims.claim(key)
    try:
        yield
    except AlreadyMade:
        raise
    except BaseException:
        with suppress(QueueUnavailable):
            claims.release(key)
        raise
