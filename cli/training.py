"""`readout train head` and `readout annotate`: heads of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.environment import fail, settings_of

train_app = typer.Typer(help="Train readout heads on your own data.", no_args_is_help=True)


@train_app.command("head")
def train_head(
    recipes: Annotated[
        list[Path], typer.Argument(metavar="RECIPE...", help="YAML files; see docs/training.md.")
    ],
    data: Annotated[Path, typer.Option(help="The data's folder; see docs/data.md.")],
    out: Annotated[
        Path, typer.Option(help="A registry directory; READOUT_REGISTRY_DIRS serves it.")
    ] = Path("registry"),
    model: Annotated[str, typer.Option(help="See `readout models list`.")] = "mannequin-64",
    run: Annotated[
        Path | None, typer.Option(help="Checkpoint, caches, previews; default: runs/<heads>.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only so many images, videos or people.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Stop after so much training.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of the frozen model: auto, float32, bfloat16, float16.")
    ] = "auto",
    mixed_precision: Annotated[
        bool | None, typer.Option(help="Heads in bfloat16 where safe; default: as the model.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option(help="Event files under the run.")] = False,
    fine_tune: Annotated[
        bool, typer.Option("--fine-tune", help="Start from the installed heads of these names.")
    ] = False,
) -> None:
    """Train a head, or several spatial ones together: ends with files that the service serves."""
    from heads_registry.manifest import RegistryError
    from heads_registry.training.command import Options, train_heads
    from jobs.settings import CoreSettings

    try:
        options = Options(
            recipes=recipes,
            data=data,
            out=out,
            run=run,
            model=model,
            registries=settings_of(CoreSettings).registry_dirs,
            limit=limit,
            minutes=minutes,
            device=device,
            dtype=dtype,
            mixed_precision=mixed_precision,
            tensorboard=tensorboard,
            fine_tune=fine_tune,
        )
        for path in train_heads(options, typer.echo):
            typer.echo(path)
    except (RegistryError, ValueError) as error:
        raise fail(error, 2) from None
    except KeyboardInterrupt:
        raise fail("stopped; the same command goes on from the last checkpoint", 130) from None


def annotate(
    signal: Annotated[
        str,
        typer.Argument(help="canny, pose, depth or edge; tracks of videos; negatives."),
    ],
    data: Annotated[Path, typer.Option(help="The data's folder; see docs/data.md.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    again: Annotated[bool, typer.Option("--again", help="Label anew what has labels.")] = False,
    recipe: Annotated[
        Path | None, typer.Option(help="negatives: of the head that they are for.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="negatives: the training's run directory.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="negatives: the base model that makes them.")
    ] = "mannequin-64",
) -> None:
    """Label your own pictures: edges, poses, depth, point tracks, negatives of relative heads."""
    from heads_registry.manifest import RegistryError
    from heads_registry.training.annotate import annotate_images, annotate_tracks
    from heads_registry.training.command import Options, prepare_negatives
    from jobs.settings import CoreSettings

    if signal == "negatives" and recipe is None:
        raise typer.BadParameter("negatives are made for a recipe", param_hint="--recipe")
    try:
        if signal == "negatives" and recipe is not None:
            registries = settings_of(CoreSettings).registry_dirs
            count = prepare_negatives(
                Options([recipe], data, Path(), run, model, registries, device=device)
            )
        elif signal == "tracks":
            count = annotate_tracks(data, device)
        else:
            count = annotate_images(data, signal, device, again)
    except (RegistryError, ValueError) as error:
        raise fail(error, 2) from None
    typer.echo(f"{count} {signal}")
