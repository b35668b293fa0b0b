"""The error tree of jobs/: what can be wrong with a job, its queue and its storage.

JobsError
├── JobNotFound          no record of that id
│   └── JobExpired       …any more: it ended, and its time is over
├── ApiKeyNotFound       no API key of that id
├── EndpointNotFound     no webhook endpoint of that id
├── DeliveryNotFound     no delivery of that id
├── TooManyEndpoints     an owner has as many webhook endpoints as one may
├── IdempotencyConflict  another request came with the same idempotency key before
│   ├── KeyReused        …and with another body
│   ├── KeyInFlight      …and is being worked on
│   └── AlreadyMade      …and has made something; carries its id
├── QueueFull            as many jobs wait or run as the service admits
├── StateConflict        the job's state does not allow what was asked
├── StaleAttempt         the attempt no longer owns the job: another one does, or it has ended
│   └── JobCanceled      …because a client canceled it
├── QueueUnavailable     Redis does not answer
└── StorageError
    ├── StorageUnavailable   object storage does not answer, or refuses us
    │   └── StorageFull          …because it has no room left
    └── ObjectNotFound       no object under that key
"""

from __future__ import annotations


class JobsError(Exception):
    """Base of everything that can be wrong in jobs/."""


class JobNotFound(JobsError):
    """No record of that id."""


class JobExpired(JobNotFound):
    """The job of that id ended, and its record has been deleted since."""


class ApiKeyNotFound(JobsError):
    """No API key of that id."""


class EndpointNotFound(JobsError):
    """No webhook endpoint of that id."""


class DeliveryNotFound(JobsError):
    """No delivery of that id at that endpoint."""


class TooManyEndpoints(JobsError):
    """An owner has as many webhook endpoints as one may."""


class IdempotencyConflict(JobsError):
    """Another request came with the same idempotency key before."""


class KeyReused(IdempotencyConflict):
    """The key came with another body before."""


class KeyInFlight(IdempotencyConflict):
    """A request with this key is being worked on."""


class AlreadyMade(IdempotencyConflict):
    """A request with this key has made something: `made`, its id."""

    def __init__(self, made: str) -> None:
        super().__init__(f"this idempotency key has made {made}")
        self.made = made


class QueueFull(JobsError):
    """As many jobs wait or run as the service admits."""


class StateConflict(JobsError):
    """The job's state does not allow what was asked; `state` is the one it is in."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state


class StaleAttempt(JobsError):
    """The attempt no longer owns the job; whatever it made must not be published."""


class JobCanceled(StaleAttempt):
    """A client canceled the job while this attempt ran it."""


class QueueUnavailable(JobsError):
    """Redis does not answer."""


class StorageError(JobsError):
    """Base of what can be wrong with object storage."""


class StorageUnavailable(StorageError):
    """Object storage does not answer, or refuses our credentials or bucket."""


class StorageFull(StorageUnavailable):
    """Object storage answers and has no room left."""


class ObjectNotFound(StorageError):
    """No object under that key."""
