"""Fetches published checkpoints from a Hugging Face repository and imports them; names no files.

What is fetched is as untrusted as any file: `heads_registry.checkpoints` reads it, nothing runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
)

from heads_registry.checkpoints import MAX_BYTES, ImportRefused
from heads_registry.importers import ImportedHead, import_head
from heads_registry.manifest import RegistryError

MAX_FILES = 64
"""Checkpoints of one repository that are looked at."""


class HubUnavailable(RegistryError):
    """The repository cannot be read; says whether it is the name or the network."""


@dataclass(frozen=True)
class Pulled:
    """What a repository had.

    Attributes:
        heads: those that were imported.
        refused: file → why it was not.
    """

    heads: tuple[ImportedHead, ...]
    refused: dict[str, str]


def pull(
    repository: str,
    registry: Path,
    *,
    revision: str = "main",
    overwrite: bool = False,
    endpoint: str | None = None,
) -> Pulled:
    """Import every ``.pt`` file of a repository as a head.

    Args:
        repository: its name on the hub, such as ``g-luo/readout-guidance``.
        registry: directory that the heads go to.
        revision: branch, tag or commit.
        overwrite: whether heads of those names may be replaced.
        endpoint: of the hub; None: HF_ENDPOINT or the public one.

    Raises:
        HubUnavailable: there is no such repository, or the hub cannot be reached.
        ImportRefused: it has no checkpoint at all.
    """
    hub = HfApi(endpoint=endpoint)
    heads: list[ImportedHead] = []
    refused: dict[str, str] = {}
    try:
        info = hub.repo_info(repository, revision=revision, files_metadata=True)
        files = [file for file in info.siblings or () if file.rfilename.endswith(".pt")]
        if not files:
            raise ImportRefused(f"{repository}: has no .pt file at {revision!r}")
        for file in sorted(files, key=lambda file: file.rfilename)[:MAX_FILES]:
            name = file.rfilename
            if file.size is not None and file.size > MAX_BYTES:
                refused[name] = f"larger than {MAX_BYTES:,} bytes"
                continue
            with TemporaryDirectory() as directory:
                path = hub.hf_hub_download(
                    repository, name, revision=info.sha or revision, local_dir=directory
                )
                try:
                    heads.append(import_head(Path(path), registry, overwrite=overwrite))
                except ImportRefused as error:
                    refused[name] = str(error)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise HubUnavailable(_reason(repository, error)) from error
    except (HTTPError, OSError) as error:
        raise HubUnavailable(
            f"the hub cannot be reached for {repository}: {type(error).__name__}; without a "
            "network, fetch the .pt files elsewhere and use `readout heads import`"
        ) from error
    return Pulled(tuple(heads), refused)


def _reason(repository: str, error: Exception) -> str:
    if isinstance(error, LocalEntryNotFoundError):
        return f"the hub cannot be reached for {repository}, and nothing of it was fetched before"
    if isinstance(error, HFValidationError):
        return f"{repository!r} is not the name of a repository: write owner/name"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return (
            f"{repository}: the hub has no such repository or revision, or it is private "
            f"(status {status}); check the name, or set HF_TOKEN"
        )
    return f"{repository}: the hub answered with status {status}; try again later"
