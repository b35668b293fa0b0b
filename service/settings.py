"""The gateway's settings: the shared ones, plus where it listens and what it admits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from jobs.settings import CoreSettings

MEBIBYTE = 1024 * 1024


class GatewaySettings(CoreSettings):
    """Environment of the gateway. Prefix ``READOUT_``."""

    auth: Literal["keys", "none", "none-anywhere"] = Field(
        "keys",
        description="who may call: holders of API keys; anybody, on loopback addresses alone; "
        "anybody, because something in front of the gateway asks who calls",
    )
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0: any free port")
    default_model: str = Field("mannequin-64", description="model of a request that names none")

    max_body_bytes: int = Field(8 * MEBIBYTE, ge=1024, description="largest JSON body")
    max_batch_body_bytes: int = Field(
        32 * MEBIBYTE, ge=1024, description="largest body of a batch, JSON or JSON lines"
    )
    max_batch_items: int = Field(3000, ge=1, le=10_000, description="most items of one batch")
    max_upload_bytes: int = Field(20_000_000, ge=1024, description="largest uploaded image file")
    max_inline_image_bytes: int = Field(
        2 * MEBIBYTE, ge=1024, description="largest base64 image inside a request, decoded"
    )
    max_image_pixels: int = Field(
        40_000_000, ge=64, description="largest pixels, by the image's header"
    )
    stored_image_side_px: int = Field(
        2048, ge=64, description="longer images are scaled down to this side before they are stored"
    )
    max_decodes: int = Field(2, ge=1, description="images decoded at the same time")
    max_waiting_decodes: int = Field(
        16, ge=0, description="images that wait for their turn; beyond it 503"
    )

    max_listeners: int = Field(
        500, ge=0, description="clients that wait: for events, or with `Prefer: wait`"
    )
    webhook_allow_insecure: bool = Field(
        False, description="webhooks to http URLs and private addresses too; for development"
    )
    webhook_ca_file: Path | None = Field(
        None, description="PEM file of those who may vouch for receivers; null: the usual ones"
    )
    webhook_timeout_s: float = Field(15.0, gt=0, description="of one attempt, all in all")
    webhook_retry_after_s: tuple[float, ...] = Field(
        (0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400),
        min_length=1,
        description="pause before each attempt, JSON; up to a fifth is added at random",
    )
    poll_interval_s: int = Field(1, ge=1, description="Retry-After of a job that is not done")
    busy_retry_s: int = Field(5, ge=1, description="Retry-After when the service is full or down")
