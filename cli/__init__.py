"""The `readout` command: wiring only; every import of a room waits until its command runs.

Exit codes: 0 done · 1 the stack or the generation failed · 2 wrong use, a port in use or a missing
piece · 3 the service refused the request · 4 the service cannot be reached · 130 Ctrl-C.
"""

from __future__ import annotations

import typer

from cli import heads, keys, pictures, servers, training

app = typer.Typer(
    help="Readout Guidance as a service: images that follow poses, depth maps and edges.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version

    typer.echo(version("readout-service"))


for command in (
    *(servers.up, servers.gateway, servers.worker, servers.reconciler, servers.doctor),
    *(pictures.generate, pictures.drag, pictures.vary),
    *(heads.acceptance, training.annotate),
):
    app.command()(command)
for name, group in {
    "heads": heads.heads_app,
    "adapters": heads.adapters_app,
    "train": training.train_app,
    "models": heads.models_app,
    "keys": keys.keys_app,
}.items():
    app.add_typer(group, name=name)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="readout")
