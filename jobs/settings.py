"""Settings that gateway, worker and command line share; from the environment, at entry points."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

BUILTIN_REGISTRY = "builtin"


class CoreSettings(BaseSettings):
    """Where the peers are: Redis, object storage, registry directories. Prefix ``READOUT_``."""

    model_config = SettingsConfigDict(env_prefix="READOUT_", frozen=True, extra="ignore")

    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        validation_alias=AliasChoices("READOUT_REDIS_URL", "REDIS_URL", "redis_url"),
    )
    redis_prefix: str = Field("readout", pattern=r"^[a-z0-9:_-]{1,40}$")
    queue: str = Field("default", pattern=r"^[a-z0-9_-]{1,40}$")

    s3_endpoint_url: str | None = Field(None, description="null: AWS itself")
    s3_public_endpoint_url: str | None = Field(
        None, description="the endpoint that clients see, in presigned URLs; null: s3_endpoint_url"
    )
    s3_region: str = "us-east-1"
    s3_bucket: str = Field("readout", min_length=3)
    s3_access_key_id: SecretStr | None = None
    s3_secret_access_key: SecretStr | None = None
    s3_path_style: bool = Field(True, description="path addressing, which most S3 servers want")
    presigned_url_expiry_s: int = Field(3600, ge=60, le=604_800)

    registry_dirs: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="directories with models/*.yaml and heads/*.yaml, separated by ':'"
    )

    job_deadline_s: float = Field(900.0, gt=0, description="a running attempt's time limit")
    max_attempts: int = Field(4, ge=1, description="runs of one job, counting retries")
    lease_s: float = Field(20.0, gt=0, description="an attempt's lease; a heartbeat renews it")
    max_queued: int = Field(5000, ge=1, description="jobs waiting or running; beyond it 503")
    record_ttl_s: int = Field(7 * 24 * 3600, ge=60, description="how long a record is kept")
    upload_ttl_s: int = Field(
        7 * 24 * 3600, ge=60, description="how long a control image is kept after its upload"
    )
    reference_storage_bytes: int = Field(
        0,
        ge=0,
        description="what reference trajectories may hold of object storage, where all workers "
        "find them; 0: they are not put there",
    )
    reference_ttl_s: int = Field(
        24 * 3600, ge=60, description="how long a trajectory in object storage is kept"
    )
    face_detector: str | None = Field(
        None,
        description="finds faces for identity without boxes, for models whose manifest names no "
        "detector: yunet or package:factory; null: none",
    )
    face_model: Path | None = Field(None, description="the ONNX file of yunet")
    idempotency_ttl_s: int = Field(
        24 * 3600, ge=60, description="how long an Idempotency-Key is remembered"
    )
    tombstone_ttl_s: int = Field(
        30 * 24 * 3600, ge=60, description="how long an expired id answers 410, after that 404"
    )
    log_format: str = Field("json", pattern="^(json|console)$")

    @field_validator("registry_dirs", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(Path(part) for part in value.split(":") if part)
        return value
