"""What a client of the service can meet.

ClientError
├── BadArgument        a control that cannot be understood or read; nothing was sent
├── Unreachable        no answer: not running, another address, a broken network
├── Refused            the service answered with a problem (RFC 9457); carries it
├── GenerationFailed   the job ended as failed or canceled; carries it
└── WaitTimeout        the job was not done in the time given
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Base of everything that a call can raise."""


class BadArgument(ClientError):
    """A control that cannot be understood or read; the message names it."""


class Unreachable(ClientError):
    """No answer."""


class Refused(ClientError):
    """The service answered with a problem."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = dict(problem)
        super().__init__(describe(status, problem))

    @property
    def code(self) -> str:
        """The problem's stable code."""
        return str(self.problem.get("code", ""))


class GenerationFailed(ClientError):
    """The job ended without a result."""

    def __init__(self, generation: Mapping[str, Any]) -> None:
        self.generation = dict(generation)
        failure = generation.get("failure") or {}
        reason = f": {failure['code']}: {failure['message']}" if failure else ""
        super().__init__(f"generation {generation['id']} {generation['state']}{reason}")


class WaitTimeout(ClientError):
    """The job was not done in the time given."""


def describe(status: int, problem: Mapping[str, Any]) -> str:
    """A problem for people: what is wrong, then one line for each field."""
    title = problem.get("title") or "the service answered without a problem document"
    detail = problem.get("detail") or ""
    lines = [f"{title} ({status}): {detail}" if detail else f"{title} ({status})"]
    for error in problem.get("errors") or ():
        where = error.get("pointer") or error.get("parameter") or "request"
        if error.get("detail") and str(error["detail"]) not in lines[0]:
            lines.append(f"  {where}: {error['detail']}")
        elif where not in lines[0]:
            lines.append(f"  at {where}")
    if problem.get("request_id"):
        lines.append(f"  request id {problem['request_id']}")
    return "\n".join(lines)
