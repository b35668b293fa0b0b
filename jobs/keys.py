"""The names of our keys in Redis, all under the settings' prefix (RQ names its own)."""

from __future__ import annotations

from jobs.settings import CoreSettings


def record_key(settings: CoreSettings, job_id: str) -> str:
    """A job's record, a hash."""
    return f"{settings.redis_prefix}:job:{job_id}"


def events_key(settings: CoreSettings, job_id: str) -> str:
    """A job's events, a stream."""
    return f"{settings.redis_prefix}:job:{job_id}:events"


def sweep_key(settings: CoreSettings) -> str:
    """Attempts whose objects are to be deleted: ``id/attempt/round`` by time due."""
    return f"{settings.redis_prefix}:sweep"


def canceling_key(settings: CoreSettings) -> str:
    """Canceled jobs whose worker has not yet said that it stopped: id by end of lease."""
    return f"{settings.redis_prefix}:canceling"


def all_jobs_key(settings: CoreSettings) -> str:
    """Every job's id by sequence number."""
    return f"{settings.redis_prefix}:index:all"


def workers_key(settings: CoreSettings) -> str:
    """Workers that gave a sign of life: name by its time."""
    return f"{settings.redis_prefix}:workers"


def worker_key(settings: CoreSettings, name: str) -> str:
    """What a worker last said of itself, JSON that expires."""
    return f"{settings.redis_prefix}:worker:{name}"


def reconciler_key(settings: CoreSettings) -> str:
    """The lock of the reconciler that works now."""
    return f"{settings.redis_prefix}:reconciler"
