"""What commands share: settings, the catalogue, common options, and how they fail."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from heads_registry.manifest import Catalogue
    from jobs.settings import CoreSettings

    S = TypeVar("S", bound=CoreSettings)


DEFAULT_DATA_DIR = Path(".readout")
DEFAULT_URL = "http://127.0.0.1:8000"
OutOption = Annotated[Path, typer.Option(help="Directory of the pictures.")]


def fail(message: object, code: int) -> typer.Exit:
    """Say what went wrong; raise what comes back to end with that exit code."""
    typer.echo(f"readout: {message}", err=True)
    return typer.Exit(code)


def catalogue() -> Catalogue:
    """Models and heads that are installed; a broken registry ends the command."""
    from heads_registry.manifest import BUILTIN_DIR, Catalogue, RegistryError
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
