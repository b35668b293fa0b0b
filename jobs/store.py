"""Object storage through boto3: control images in, results out; nobody else talks to S3.

Keys: ``uploads/{id}.png`` and ``.json`` (its metadata), ``jobs/{job}/{attempt}/…``, ``batches/…``,
``references/{hash}.safetensors``. What must last
is in the object or a manifest, never in S3's user metadata, which some servers forget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from jobs.errors import ObjectNotFound, StorageError, StorageFull, StorageUnavailable
from jobs.settings import CoreSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = [
    "ListedObject",
    "ObjectNotFound",
    "ObjectStore",
    "StorageError",
    "StorageFull",
    "StorageUnavailable",
    "StoredObject",
]

CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 15.0
ATTEMPTS = 2
_MISSING = {"404", "NoSuchKey", "NotFound"}
_FULL = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "507"}
_BROKEN = {"InternalError", "500"}
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True)
class ListedObject:
    """An object in a list; its age is by this machine's clock."""

    key: str
    size_bytes: int
    age_s: float


@dataclass(frozen=True)
class StoredObject:
    """What storage says of an object."""

    key: str
    size_bytes: int
    media_type: str


class ObjectStore:
    """One bucket. Every method raises `StorageUnavailable` when storage does not answer in time."""

    def __init__(self, settings: CoreSettings) -> None:
        """Make the clients; talks to storage only when a method is called."""
        self._bucket = settings.s3_bucket
        self._expiry_s = settings.presigned_url_expiry_s
        self._client = _client(settings, settings.s3_endpoint_url)
        public = settings.s3_public_endpoint_url
        self._public = _client(settings, public) if public else self._client

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._public.close()

    def ping(self) -> None:
        """Ask for a sign of life of storage and bucket.

        Raises:
            StorageUnavailable: it gives none, or the bucket is not ours.
        """
        with _storage_errors(f"bucket {self._bucket}"):
            self._client.head_bucket(Bucket=self._bucket)

    def server_date(self) -> str | None:
        """The `Date` of the server's answer, as HTTP has it; None where it sends none.

        Raises:
            StorageUnavailable, ObjectNotFound: as `ping`.
        """
        with _storage_errors(f"bucket {self._bucket}"):
            answer = self._client.head_bucket(Bucket=self._bucket)
        return answer["ResponseMetadata"]["HTTPHeaders"].get("date")

    def ensure_bucket(self) -> None:
        """Create the bucket where it is missing.

        Raises:
            StorageUnavailable: it is missing and cannot be created.
        """
        try:
            self.ping()
        except ObjectNotFound:
            with _storage_errors(f"bucket {self._bucket}"):
                self._client.create_bucket(Bucket=self._bucket)
        except StorageUnavailable as error:
            raise StorageUnavailable(f"{error} (READOUT_S3_… settings)") from error

    def put_bytes(self, key: str, data: bytes, media_type: str = "image/png") -> None:
        """Store an object, whole or not at all.

        Raises:
            StorageFull: there is no room left for it.
        """
        with _storage_errors(key, writing=True):
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ContentType=media_type)

    def get_bytes(self, key: str) -> bytes:
        """An object's bytes.

        Raises:
            ObjectNotFound: there is none under that key.
        """
        with _storage_errors(key):
            return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()

    def head(self, key: str) -> StoredObject:
        """Size and type of an object.

        Raises:
            ObjectNotFound: there is none under that key.
        """
        with _storage_errors(key):
            found = self._client.head_object(Bucket=self._bucket, Key=key)
        return StoredObject(key, found["ContentLength"], found.get("ContentType", ""))

    def presigned_get(
        self, key: str, expires_s: int | None = None, file_name: str | None = None
    ) -> str:
        """A URL that lets anyone GET the object for a while, at the endpoint that clients see.

        Args:
            key: of the object; it is not checked to exist.
            expires_s: None takes the setting.
            file_name: makes browsers save the object under that name instead of showing it.
        """
        parameters: dict[str, Any] = {"Bucket": self._bucket, "Key": key}
        if file_name is not None:
            disposition = f'attachment; filename="{file_name}"'
            parameters["ResponseContentDisposition"] = disposition
        return self._public.generate_presigned_url(
            "get_object", Params=parameters, ExpiresIn=expires_s or self._expiry_s
        )

    def list_keys(self, prefix: str) -> Sequence[str]:
        """All keys that begin with `prefix`, in order."""
        return tuple(found.key for found in self.list_objects(prefix))

    def list_older(self, prefix: str, age_s: float) -> Sequence[str]:
        """Keys that begin with `prefix` and were written more than `age_s` ago, by this clock."""
        return tuple(found.key for found in self.list_objects(prefix) if found.age_s > age_s)

    def list_objects(self, prefix: str) -> Sequence[ListedObject]:
        """All objects whose keys begin with `prefix`, in the order of the keys."""
        now = datetime.now(UTC)
        with _storage_errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix
            )
            return tuple(
                ListedObject(
                    found["Key"], found["Size"], (now - found["LastModified"]).total_seconds()
                )
                for page in pages
                for found in page.get("Contents", ())
            )

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there counts as deleted."""
        with _storage_errors(key):
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def delete_prefix(self, prefix: str) -> int:
        """Delete everything under `prefix`; returns how many objects there were.

        Raises:
            ValueError: the prefix does not end in "/", and so might mean more than one thinks.
        """
        if not prefix.endswith("/"):
            raise ValueError(f"prefix {prefix!r} must end with '/'")
        keys = self.list_keys(prefix)
        for key in keys:
            self.delete(key)
        return len(keys)


def _client(settings: CoreSettings, endpoint_url: str | None) -> S3Client:
    key, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    host = urlsplit(endpoint_url).hostname if endpoint_url else None
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=key.get_secret_value() if key else None,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(
            signature_version="s3v4",
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            s3={"addressing_style": "path" if settings.s3_path_style else "virtual"},
            # A proxy of the environment cannot reach our loopback.
            proxies={} if host in _LOOPBACK else None,
            # Other servers than AWS need not know its newer default checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


@contextmanager
def _storage_errors(what: str, *, writing: bool = False) -> Iterator[None]:
    """botocore's errors → ours; of a full disk, some servers say no better than InternalError."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            raise ObjectNotFound(f"no object {what!r} in storage") from error
        if code in _FULL:
            raise StorageFull(f"object storage is full: {code}") from error
        if writing and code in _BROKEN:
            raise StorageUnavailable(
                f"object storage takes no writes ({code}): its disk may be full"
            ) from error
        raise StorageUnavailable(f"object storage refused {what!r}: {code}") from error
    except (BotoCoreError, OSError) as error:
        message = f"object storage does not answer: {type(error).__name__}"
        raise StorageUnavailable(message) from error
