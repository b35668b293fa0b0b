"""The names of our keys in Redis, all under the settings' prefix (RQ names its own)."""

from __future__ import annotations

from jobs.settings import CoreSettings


def record_key(settings: CoreSettings, job_id: str) -> str:
    """A job's record, a hash."""
    return f"{settings.redis_prefix}:job:{job_id}"


def events_key(settings: CoreSettings, job_id: str) -> str:
    """A job's events, a stream."""
    return f"{settings.redis_prefix}:job:{job_id}:events"


def tombstone_key(settings: CoreSettings, job_id: str) -> str:
    """The owner of a job that has ended; outlives the record, so that an expired id is known."""
    return f"{settings.redis_prefix}:job:{job_id}:owner"


def index_key(settings: CoreSettings, name: str, owner: str | None = None) -> str:
    """Ids by sequence number: of a state or of all ("all"), of everyone or of one owner."""
    index = f"{settings.redis_prefix}:index:{name}"
    return index if owner is None else f"{index}:{owner}"


def idempotency_key(settings: CoreSettings, digest: str) -> str:
    """What became of a client's idempotency key, a hash that expires."""
    return f"{settings.redis_prefix}:idempotency:{digest}"


def endpoints_key(settings: CoreSettings, owner: str) -> str:
    """An owner's webhook endpoints, a hash of JSON by id; the transitions look whether it is."""
    return f"{settings.redis_prefix}:webhooks:{owner}"


def outbox_key(settings: CoreSettings) -> str:
    """What became of jobs and is to be told, a stream that the transitions append to."""
    return f"{settings.redis_prefix}:outbox"


def delivery_key(settings: CoreSettings, delivery_id: str) -> str:
    """A delivery, JSON that expires."""
    return f"{settings.redis_prefix}:delivery:{delivery_id}"


def due_key(settings: CoreSettings) -> str:
    """Deliveries that are under way, by time due."""
    return f"{settings.redis_prefix}:deliveries:due"


def deliveries_key(settings: CoreSettings, owner: str, endpoint_id: str) -> str:
    """An endpoint's log: ids of deliveries by time."""
    return f"{settings.redis_prefix}:deliveries:{owner}:{endpoint_id}"


def line_key(settings: CoreSettings) -> str:
    """Waiting jobs by turn, as jobs/scripts.py keeps them."""
    return f"{settings.redis_prefix}:line"


def api_key_key(settings: CoreSettings, key_id: str) -> str:
    """An API key, a hash with the digest of its token."""
    return f"{settings.redis_prefix}:api-key:{key_id}"


def api_keys_key(settings: CoreSettings) -> str:
    """The ids of all API keys, a set."""
    return f"{settings.redis_prefix}:api-keys"


def sweep_key(settings: CoreSettings) -> str:
    """Attempts whose objects are to be deleted: ``id/attempt/round`` by time due."""
    return f"{settings.redis_prefix}:sweep"


def expiring_key(settings: CoreSettings) -> str:
    """Jobs that have ended: id by the time when the record goes, and its objects with it."""
    return f"{settings.redis_prefix}:expiring"


def canceling_key(settings: CoreSettings) -> str:
    """Canceled jobs whose worker has not yet said that it stopped: id by end of lease."""
    return f"{settings.redis_prefix}:canceling"


def batch_key(settings: CoreSettings, batch: str) -> str:
    """A batch: what it is, and how many of its jobs are in each state; a hash."""
    return f"{settings.redis_prefix}:batch:{batch}"


def batch_items_key(settings: CoreSettings, batch: str) -> str:
    """The ids of a batch's jobs by position, a list."""
    return f"{settings.redis_prefix}:batch:{batch}:items"


def batch_tombstone_key(settings: CoreSettings, batch: str) -> str:
    """The owner of a batch that has ended."""
    return f"{settings.redis_prefix}:batch:{batch}:owner"


def batches_key(settings: CoreSettings) -> str:
    """Every batch's id by the time of its creation."""
    return f"{settings.redis_prefix}:batches"


def ended_batches_key(settings: CoreSettings) -> str:
    """Batches whose manifest is to be written, a set."""
    return f"{settings.redis_prefix}:batches:ended"


def figures_key(settings: CoreSettings, kind: str) -> str:
    """What jobs of one kind took, newest first, a list that expires."""
    return f"{settings.redis_prefix}:figures:{kind}"


def workers_key(settings: CoreSettings) -> str:
    """Workers that gave a sign of life: name by its time."""
    return f"{settings.redis_prefix}:workers"


def worker_key(settings: CoreSettings, name: str) -> str:
    """What a worker last said of itself, JSON that expires."""
    return f"{settings.redis_prefix}:worker:{name}"


def reconciler_key(settings: CoreSettings) -> str:
    """The lock of the reconciler that works now."""
    return f"{settings.redis_prefix}:reconciler"
