"""Waiting for a peer that is away for a while: retries with backoff, within bounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
FIRST_PAUSE_S = 0.2
LAST_PAUSE_S = 5.0


def patiently(
    call: Callable[[], T],
    unavailable: type[Exception],
    patience_s: float,
    raise_if_over: Callable[[], None] = lambda: None,
) -> T:
    """Call until it does not raise `unavailable`, or until the patience is over.

    Args:
        call: safe to repeat.
        unavailable: what it raises while its peer is away.
        patience_s: 0 tries once.
        raise_if_over: asked before each new try whether it is still worth it.

    Raises:
        Exception: the last `unavailable`, or whatever else `call` or `raise_if_over` raise.
    """
    give_up_at = time.monotonic() + patience_s
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return call()
        except unavailable:
            if time.monotonic() + pause_s > give_up_at:
                raise
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, LAST_PAUSE_S)
        raise_if_over()
