"""What commands share: settings, the catalogue, common options, and how they fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from heads_registry.catalogue import Catalogue
    from jobs.settings import CoreSettings

    S = TypeVar("S", bound=CoreSettings)


DEFAULT_DATA_DIR = Path(".readout")
DEFAULT_URL = "http://127.0.0.1:8000"
DataDirOption = Annotated[
    Path,
    typer.Option(help="Of a running `readout up`; what the environment names goes first."),
]
OutOption = Annotated[Path, typer.Option(help="Directory of the pictures.")]


def fail(message: object, code: int) -> typer.Exit:
    """Say what went wrong; raise what comes back to end with that exit code."""
    typer.echo(f"readout: {message}", err=True)
    return typer.Exit(code)


def find_embedded_servers(data_dir: Path) -> None:
    """Name the servers of a running `readout up` in the environment, but those that it names."""
    from stack.datadir import running_servers
    from stack.up import EXTERNAL_REDIS, EXTERNAL_S3

    named = [name for name in (*EXTERNAL_REDIS, *EXTERNAL_S3) if os.environ.get(name)]
    for name, value in running_servers(data_dir).items():
        rivals = EXTERNAL_REDIS if name in EXTERNAL_REDIS else EXTERNAL_S3
        if not set(rivals) & set(named):
            os.environ[name] = value


def catalogue() -> Catalogue:
    """Models and heads that are installed; a broken registry ends the command."""
    from heads_registry.catalogue import BUILTIN_DIR, Catalogue
    from heads_registry.manifest import RegistryError
    from jobs.settings import CoreSettings

    try:
        return Catalogue((BUILTIN_DIR, *settings_of(CoreSettings).registry_dirs))
    except RegistryError as error:
        raise fail(error, 2) from None


def settings_of(kind: type[S]) -> S:
    """Settings from the environment; a wrong one ends the command."""
    from pydantic import ValidationError

    try:
        return kind()
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"])
        raise fail(f"setting {name}: {first['msg']}", 2) from None
