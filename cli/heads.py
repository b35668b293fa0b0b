"""`readout heads`, `models` and `acceptance`: what is installed, and whether it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.environment import OutOption, catalogue, fail

heads_app = typer.Typer(help="Readout heads that are installed.", no_args_is_help=True)
adapters_app = typer.Typer(
    help="ControlNets and T2I-Adapters that are installed.", no_args_is_help=True
)
models_app = typer.Typer(help="Base models that are installed.", no_args_is_help=True)


@heads_app.command("list")
def heads_list() -> None:
    """Print id, kind and title of every installed head."""
    for head in catalogue().heads:
        typer.echo(f"{head.id:<32} {head.kind:<14} {head.title}")


@adapters_app.command("list")
def adapters_list() -> None:
    """Print id, type, what the image shows and title of every installed adapter."""
    for adapter in catalogue().adapters:
        typer.echo(f"{adapter.id:<32} {adapter.type:<12} {adapter.conditioning:<8} {adapter.title}")


@heads_app.command("import")
def heads_import(
    checkpoint: Annotated[Path, typer.Argument(help="A published .pt checkpoint.")],
    out: Annotated[Path, typer.Option(help="Registry directory; see READOUT_REGISTRY_DIRS.")],
    family: Annotated[str | None, typer.Option(help="Base-model family; default: guessed.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the head; default: what it reads.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a head of that name.")] = False,
) -> None:
    """Import a published head: checked, never executed, written as safetensors and manifest."""
    from heads_registry.importers import import_head
    from heads_registry.manifest import RegistryError

    try:
        found = import_head(checkpoint, out, family=family, name=name, overwrite=overwrite)
    except RegistryError as error:
        raise fail(error, 2) from None
    head = found.manifest
    typer.echo(f"{head.id}: {head.kind}, {head.signal}, {found.parameters:,} parameters")
    typer.echo(
        f"taps {len(head.feature_taps)}, values {head.value_range[0]} to {head.value_range[1]}"
    )
    for note in found.notes:
        typer.echo(f"note: {note}")
    typer.echo(found.manifest_path)


@heads_app.command("check")
def heads_check(
    head: Annotated[str, typer.Argument(help="Name, family/name, or the path of a manifest.")],
    model: Annotated[str, typer.Option(help="See `readout models list`.")] = "mannequin-64",
) -> None:
    """Say whether a head fits a model, and why not; exit code 1 if it does not."""
    from heads_registry.fit import check_head
    from heads_registry.manifest import RegistryError

    try:
        fit = check_head(catalogue(), head, model)
    except RegistryError as error:
        raise fail(error, 2) from None
    verdict = "does not fit" if fit.problems else "fits"
    typer.echo(f"{fit.head.id} {verdict} {fit.model.name}")
    for problem in fit.problems:
        typer.echo(f"- {problem}")
    raise typer.Exit(1 if fit.problems else 0)


@heads_app.command("pull")
def heads_pull(
    repository: Annotated[str, typer.Argument(help="On the hub: g-luo/readout-guidance.")],
    out: Annotated[Path, typer.Option(help="Registry directory; see READOUT_REGISTRY_DIRS.")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    overwrite: Annotated[bool, typer.Option(help="Replace heads of those names.")] = False,
) -> None:
    """Fetch every head of a hub repository and import it; what is no head is named and left out."""
    from heads_registry.hub import pull
    from heads_registry.manifest import RegistryError

    try:
        pulled = pull(repository, out, revision=revision, overwrite=overwrite)
    except RegistryError as error:
        raise fail(error, 2) from None
    for found in pulled.heads:
        typer.echo(f"{found.manifest.id:<32} {found.manifest.kind:<15} {found.manifest_path}")
    for name, reason in pulled.refused.items():
        typer.echo(f"not imported: {name}: {reason}", err=True)
    if pulled.refused:
        raise typer.Exit(1)


@models_app.command("list")
def models_list() -> None:
    """Print name, family and title of every installed model."""
    for model in catalogue().models.values():
        typer.echo(f"{model.name:<24} {model.family:<20} {model.title}")


def acceptance(
    model: Annotated[str, typer.Option(help="Hub id or directory of SD1.5, SDXL or kin.")],
    heads: Annotated[Path, typer.Option(help="Registry directory of its heads.")],
    data: Annotated[Path, typer.Option(help="Examples, laid out as in the authors' repository.")],
    out: OutOption = Path("out/acceptance"),
    size: Annotated[int, typer.Option(min=64, help="Of the pictures, px.")] = 512,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 100,
) -> None:
    """Draw examples with a real model and its heads; say whether guidance comes closer."""
    from heads_registry.device import resolve_device, resolve_dtype
    from heads_registry.manifest import RegistryError
    from worker.acceptance import accept

    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    try:
        checks = accept(
            model,
            heads,
            data,
            out,
            size=size,
            steps=steps,
            device=device,
            dtype=dtype,
            echo=typer.echo,
        )
    except RegistryError as error:
        raise fail(error, 2) from None
    typer.echo(out / "sheet.png")
    if not all(check.is_closer for check in checks):
        raise typer.Exit(1)
