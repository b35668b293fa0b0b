"""`readout keys`: who may call the service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.environment import (
    DEFAULT_DATA_DIR,
    DataDirOption,
    fail,
    find_embedded_servers,
    settings_of,
)

if TYPE_CHECKING:
    from jobs.api_keys import ApiKeyStore


keys_app = typer.Typer(help="API keys: who may call the service.", no_args_is_help=True)


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="For people: the program that will use it.")],
    owner: Annotated[
        str | None,
        typer.Option(help="Whose jobs it sees, to replace a key; default: an owner of its own."),
    ] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Make a key and print it, now and never again: only a hash of it is kept."""
    with _api_keys(data_dir) as keys:
        try:
            key, token = keys.create(name, owner)
        except ValueError as error:
            raise fail(error, 2) from None
    typer.echo(f"key {key.id} of owner {key.owner}; it is not shown again:", err=True)
    typer.echo(token.get_secret_value())


@keys_app.command("list")
def keys_list(data_dir: DataDirOption = DEFAULT_DATA_DIR) -> None:
    """Print id, owner, date and name of every key."""
    with _api_keys(data_dir) as keys:
        for key in keys.list():
            state = f"revoked {key.revoked_at:%Y-%m-%d}" if key.revoked_at else "valid"
            typer.echo(f"{key.id}  {key.owner:<16}  {key.created_at:%Y-%m-%d}  {state}  {key.name}")


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="See `readout keys list`.")],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Refuse a key from now on; jobs that it made go on."""
    with _api_keys(data_dir) as keys:
        keys.revoke(key_id)


@contextmanager
def _api_keys(data_dir: Path) -> Iterator[ApiKeyStore]:
    """The keys where the environment says, or where a running `readout up` keeps them."""
    from jobs.api_keys import ApiKeyStore
    from jobs.connection import connect
    from jobs.errors import JobsError
    from jobs.settings import CoreSettings
    from stack.up import EXTERNAL_REDIS

    find_embedded_servers(data_dir)
    if not any(os.environ.get(name) for name in EXTERNAL_REDIS):
        hint = "set REDIS_URL, or name the --data-dir of a running `readout up`"
        raise fail(f"no Redis is known: {hint}", 2)
    settings = settings_of(CoreSettings)
    client = connect(settings)
    try:
        yield ApiKeyStore(client, settings)
    except JobsError as error:
        raise fail(error, 1) from None
    finally:
        client.close()
