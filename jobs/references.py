"""Where workers share reference trajectories in object storage, and how they go again."""

from __future__ import annotations

from jobs.settings import CoreSettings
from jobs.store import ObjectStore

REFERENCES = "references/"


def reference_object(key: str) -> str:
    """The object of a trajectory; `key` is a hash of what decides its numbers."""
    return f"{REFERENCES}{key}.safetensors"


def expire_references(store: ObjectStore, settings: CoreSettings) -> int:
    """Delete shared references that are too old, then the oldest until the rest fits.

    Returns:
        How many objects were deleted.

    Raises:
        StorageUnavailable: storage does not answer.
    """
    entries = sorted(store.list_objects(REFERENCES), key=lambda entry: entry.age_s)
    kept_bytes, deleted = 0, 0
    budget = settings.reference_storage_bytes
    for entry in entries:
        kept_bytes += entry.size_bytes
        if entry.age_s > settings.reference_ttl_s or 0 < budget < kept_bytes:
            store.delete(entry.key)
            deleted += 1
    return deleted
