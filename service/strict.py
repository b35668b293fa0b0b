"""The base of the API's models: exact types, no unknown fields, nothing that is not finite."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

MAX_FIELDS = 64
"""No object here has as many; a body of a million unknown fields is one error, not a million."""


class Strict(BaseModel):
    """Refuses unknown fields, numbers as strings or booleans, NaN and infinities."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise ValueError(f"{len(data)} fields; no object of a request has more than a few")
        return data
