"""What went wrong, as a failure for the record or as the end of the process; without torch.

Exceptions of the engine that concern more than one job:

    DeviceLost       the device takes no more work from this process
    OutOfMemory      the cheapest plan needs more memory than there is
    BatchTooLarge    jobs that were to run together need more memory than there is
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from PIL import UnidentifiedImageError

from jobs.errors import ObjectNotFound, StorageFull, StorageUnavailable
from jobs.record import Failure, FailureCode
from worker.lease import DeadlineExceeded


class DeviceLost(Exception):
    """The device takes no more work from this process: it must end, the job runs elsewhere."""


class OutOfMemory(Exception):
    """The cheapest plan needs more memory than there is."""


class BatchTooLarge(Exception):
    """Jobs that were to run together need more memory than there is; fewer may fit."""


class InvalidTarget(Exception):
    """A control image that cannot be used; the message says what to change."""


def failure_of(error: Exception, expected: Callable[[Exception], Failure | None]) -> Failure:
    """Code and message of what ended an attempt; what nobody expects is a bug and tells nothing.

    Args:
        error: whatever was raised.
        expected: the engine's own failures; None where it knows none.
    """
    match error:
        case DeadlineExceeded():
            return Failure(code=FailureCode.TIMED_OUT, message=str(error))
        case InvalidTarget():
            return Failure(code=FailureCode.INVALID_TARGET, message=str(error))
    said = _PLAIN.get(type(error))
    if said is None and isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        said = _DISK_FULL
    if said is not None:
        return Failure(code=said[0], message=said[1])
    return expected(error) or Failure(
        code=FailureCode.INTERNAL,
        message="a fault of the service; please report it with the job's id",
    )


_DISK_FULL = (
    FailureCode.STORAGE_UNAVAILABLE,
    "the worker's disk is full; the operator must make room; then try again",
)
_PLAIN: dict[type[Exception], tuple[FailureCode, str]] = {
    StorageFull: (
        FailureCode.STORAGE_UNAVAILABLE,
        "object storage is full; the operator must make room; then try again",
    ),
    StorageUnavailable: (
        FailureCode.STORAGE_UNAVAILABLE,
        "object storage did not answer; the operator must see to it; try later",
    ),
    ObjectNotFound: (
        FailureCode.INVALID_TARGET,
        "a control image is no longer in storage; upload it again",
    ),
    UnidentifiedImageError: (
        FailureCode.INVALID_TARGET,
        "a control image cannot be decoded; upload it again",
    ),
}
