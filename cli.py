"""The `readout` command: wiring only; every import of a room waits until its command runs.

Exit codes: 0 done · 1 the stack or the generation failed · 2 wrong use, a port in use or a missing
piece · 3 the service refused the request · 4 the service cannot be reached · 130 Ctrl-C.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from client.generate import Job
    from heads_registry.manifest import Catalogue
    from jobs.api_keys import ApiKeyStore
    from jobs.settings import CoreSettings

    S = TypeVar("S", bound=CoreSettings)

app = typer.Typer(
    help="Readout Guidance as a service: images that follow poses, depth maps and edges.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
heads_app = typer.Typer(help="Readout heads that are installed.", no_args_is_help=True)
models_app = typer.Typer(help="Base models that are installed.", no_args_is_help=True)
keys_app = typer.Typer(help="API keys: who may call the service.", no_args_is_help=True)
adapters_app = typer.Typer(
    help="ControlNets and T2I-Adapters that are installed.", no_args_is_help=True
)
train_app = typer.Typer(help="Train readout heads on your own data.", no_args_is_help=True)
app.add_typer(heads_app, name="heads")
app.add_typer(adapters_app, name="adapters")
app.add_typer(train_app, name="train")
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")

DEFAULT_DATA_DIR = Path(".readout")
DEFAULT_URL = "http://127.0.0.1:8000"


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="readout")


def _fail(message: object, code: int) -> typer.Exit:
    typer.echo(f"readout: {message}", err=True)
    return typer.Exit(code)


@app.command()
def up(
    data_dir: Annotated[
        Path, typer.Option(help="Everything that is kept: queue, results, secrets, logs.")
    ] = DEFAULT_DATA_DIR,
    port: Annotated[int, typer.Option(min=0, max=65535, help="HTTP port; 0: a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Worker processes.")] = 1,
    redis_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Embedded Valkey's; default: free.")
    ] = None,
    s3_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Embedded S3's; default: a free one.")
    ] = None,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that a running job has to finish on Ctrl-C.")
    ] = 60.0,
    log_format: Annotated[str, typer.Option(help="console or json.")] = "console",
) -> None:
    """Start the whole stack here: Valkey, S3, gateway and workers, on loopback.

    With REDIS_URL or READOUT_S3_ENDPOINT_URL (and its keys) set, those servers are used instead.
    """
    from stack.errors import StackError
    from stack.up import Options, up

    if log_format not in ("console", "json"):
        raise typer.BadParameter("console or json", param_hint="--log-format")
    options = Options(
        data_dir=data_dir,
        port=port,
        workers=workers,
        redis_port=redis_port,
        s3_port=s3_port,
        grace_s=grace,
        log_format="json" if log_format == "json" else "console",
    )
    try:
        up(options)
    except StackError as error:
        raise _fail(error, error.exit_code) from None


@app.command()
def gateway(
    host: Annotated[str | None, typer.Option(help="Address; default: READOUT_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Default: READOUT_PORT.")
    ] = None,
) -> None:
    """Run the HTTP gateway alone."""
    import uvicorn

    from heads_registry.manifest import RegistryError
    from jobs.logs import configure_logging
    from service.app import create_app
    from service.auth import Exposed, check_exposure
    from service.settings import GatewaySettings

    settings = _settings(GatewaySettings)
    configure_logging(settings.log_format)
    host = host or settings.host
    try:
        check_exposure(settings, host)
        application = create_app(settings)
    except (Exposed, RegistryError) as error:
        raise _fail(error, 2) from None
    uvicorn.run(
        application,
        host=host,
        port=settings.port if port is None else port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


CheckOption = Annotated[
    bool, typer.Option("--check", help="Only ask whether one runs here; for health checks.")
]


@app.command()
def worker(check: CheckOption = False) -> None:
    """Run one worker: takes jobs from Redis, samples, stores the results."""
    if check:
        raise typer.Exit(0 if _worker_lives() else 1)
    from worker.__main__ import main

    raise typer.Exit(main())


@app.command()
def reconciler(check: CheckOption = False) -> None:
    """Run the reconciler: requeues what dead workers left behind, and delivers webhooks.

    One of it is enough.
    """
    if check:
        raise typer.Exit(0 if _reconciler_lives() else 1)
    from signal import SIGINT, SIGTERM, signal
    from threading import Event, Thread

    from jobs.logs import configure_logging
    from jobs.reconciler import run_forever
    from service import webhook_sender
    from service.settings import GatewaySettings

    settings = _settings(GatewaySettings)
    configure_logging(settings.log_format)
    stop = Event()
    for number in (SIGINT, SIGTERM):
        signal(number, lambda *_: stop.set())
    outbox = Thread(target=webhook_sender.run_forever, args=(settings, stop), name="outbox")
    outbox.start()
    run_forever(settings, stop)
    outbox.join()


@app.command()
def doctor() -> None:
    """Look at Redis, storage, models, heads, adapters, device and clocks; say what is wrong."""
    import doctor as examination
    from jobs.settings import CoreSettings

    raise typer.Exit(examination.main(_settings(CoreSettings), typer.echo))


ModelOption = Annotated[str | None, typer.Option(help="See `readout models list`.")]
NegativeOption = Annotated[str | None, typer.Option(help="What to keep away from.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Default: drawn.")]
ImagesOption = Annotated[int, typer.Option(min=1, help="With seeds seed, seed + 1, …")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Denoising steps.")]
ScaleOption = Annotated[float | None, typer.Option(help="Classifier-free guidance.")]
OutOption = Annotated[Path, typer.Option(help="Directory of the pictures.")]
UrlOption = Annotated[str, typer.Option(envvar="READOUT_URL", help="The service.")]
KeyOption = Annotated[
    str | None,
    typer.Option(envvar="READOUT_API_KEY", show_envvar=True, help="Better in the environment."),
]
ReferenceArgument = Annotated[
    str, typer.Argument(help="An image file, or a generation's id (gen_…, or gen_…:INDEX).")
]


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    control: Annotated[
        list[str] | None,
        typer.Option(help="HEAD=IMAGE[:WEIGHT], such as pose=pose.png:0.8; repeatable."),
    ] = None,
    keypoints: Annotated[
        list[str] | None, typer.Option(help="OpenPose JSON file[:WEIGHT] for the pose head.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="ADAPTER=IMAGE[:SCALE], see `readout adapters list`; repeatable."),
    ] = None,
    model: ModelOption = None,
    negative_prompt: NegativeOption = None,
    seed: SeedOption = None,
    num_images: ImagesOption = 1,
    steps: StepsOption = None,
    guidance_scale: ScaleOption = None,
    out: OutOption = Path("out/generate"),
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Generate pictures through a running service; Ctrl-C cancels the generation."""
    from client.generate import Job

    parameters = {
        "model": model,
        "negative_prompt": negative_prompt,
        "seed": seed,
        "num_images": num_images,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
    }
    controls = tuple(control or ()), tuple(keypoints or ())
    adapters = tuple(adapter or ())
    _run(lambda: Job(prompt, url, out, *controls, parameters, api_key, adapters=adapters))


@app.command()
def drag(
    reference: ReferenceArgument,
    point: Annotated[
        list[str],
        typer.Option(help="X,Y:X,Y from and to, as fractions of the picture; repeatable."),
    ],
    prompt: Annotated[
        str | None,
        typer.Option(help="What the picture shows.", show_default="the generation's own"),
    ] = None,
    px: Annotated[bool, typer.Option("--px", help="Points are pixels of the result.")] = False,
    model: ModelOption = None,
    steps: StepsOption = None,
    guidance_scale: ScaleOption = None,
    out: OutOption = Path("out/drag"),
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Move what is at some points of a picture to others, through a running service."""
    from client.edit import points_of
    from client.generate import Job

    def job() -> Job:
        parameters = {
            "task": "drag",
            "points": points_of(point),
            "unit": "px" if px else None,
            "model": model,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
        }
        return Job(prompt, url, out, (), (), parameters, api_key, reference)

    _run(job)


@app.command()
def vary(
    reference: ReferenceArgument,
    prompt: Annotated[str, typer.Argument(help="What to draw with the reference's appearance.")],
    weights: Annotated[
        str | None, typer.Option(help="A picture each, of one seed, such as 0,0.5,1 (figure 6).")
    ] = None,
    model: ModelOption = None,
    negative_prompt: NegativeOption = None,
    seed: SeedOption = None,
    num_images: ImagesOption = 1,
    steps: StepsOption = None,
    guidance_scale: ScaleOption = None,
    out: OutOption = Path("out/vary"),
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Draw variations of a picture that keep its appearance, through a running service."""
    from client.edit import weights_of
    from client.generate import Job

    def job() -> Job:
        parameters = {
            "task": "appearance",
            "weight_sweep": weights_of(weights),
            "model": model,
            "negative_prompt": negative_prompt,
            "seed": seed,
            "num_images": num_images,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
        }
        return Job(prompt, url, out, (), (), parameters, api_key, reference)

    _run(job)


def _run(job: Callable[[], Job]) -> None:
    """Make a job's pictures and print where they are."""
    from client.errors import BadArgument, ClientError, Refused, Unreachable
    from client.generate import generate

    exit_codes = {BadArgument: 2, Refused: 3, Unreachable: 4}
    try:
        for path in generate(job()):
            typer.echo(path)
    except ClientError as error:
        raise _fail(error, exit_codes.get(type(error), 1)) from None
    except KeyboardInterrupt:
        raise _fail("canceled", 130) from None


@app.command()
def acceptance(
    model: Annotated[str, typer.Option(help="Hub id or directory of SD1.5, SDXL or kin.")],
    heads: Annotated[Path, typer.Option(help="Registry directory of its heads.")],
    data: Annotated[Path, typer.Option(help="Examples, laid out as in the authors' repository.")],
    out: OutOption = Path("out/acceptance"),
    size: Annotated[int, typer.Option(min=64, help="Of the pictures, px.")] = 512,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 100,
) -> None:
    """Draw examples with a real model and its heads; say whether guidance comes closer."""
    from heads_registry.manifest import RegistryError
    from worker.acceptance import accept
    from worker.device import resolve_device, resolve_dtype

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
        raise _fail(error, 2) from None
    typer.echo(out / "sheet.png")
    if not all(check.is_closer for check in checks):
        raise typer.Exit(1)


@heads_app.command("list")
def heads_list() -> None:
    """Print id, kind and title of every installed head."""
    for head in _catalogue().heads:
        typer.echo(f"{head.id:<32} {head.signal:<8} {head.title}")


@adapters_app.command("list")
def adapters_list() -> None:
    """Print id, type, what the image shows and title of every installed adapter."""
    for adapter in _catalogue().adapters:
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
        raise _fail(error, 2) from None
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
        fit = check_head(_catalogue(), head, model)
    except RegistryError as error:
        raise _fail(error, 2) from None
    verdict = "does not fit" if fit.problems else "fits"
    typer.echo(f"{fit.head.id} {verdict} {fit.model.name}")
    for problem in fit.problems:
        typer.echo(f"- {problem}")
    raise typer.Exit(1 if fit.problems else 0)


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
        bool | None, typer.Option(help="Heads in bfloat16 where safe; default: on a GPU.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option(help="Event files under the run.")] = False,
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
            registries=_settings(CoreSettings).registry_dirs,
            limit=limit,
            minutes=minutes,
            device=device,
            dtype=dtype,
            mixed_precision=mixed_precision,
            tensorboard=tensorboard,
        )
        for path in train_heads(options, typer.echo):
            typer.echo(path)
    except (RegistryError, ValueError) as error:
        raise _fail(error, 2) from None
    except KeyboardInterrupt:
        raise _fail("stopped; the same command goes on from the last checkpoint", 130) from None


@app.command()
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
            registries = _settings(CoreSettings).registry_dirs
            count = prepare_negatives(
                Options([recipe], data, Path(), run, model, registries, device=device)
            )
        elif signal == "tracks":
            count = annotate_tracks(data, device)
        else:
            count = annotate_images(data, signal, device, again)
    except (RegistryError, ValueError) as error:
        raise _fail(error, 2) from None
    typer.echo(f"{count} {signal}")


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
        raise _fail(error, 2) from None
    for found in pulled.heads:
        typer.echo(f"{found.manifest.id:<32} {found.manifest.kind:<15} {found.manifest_path}")
    for name, reason in pulled.refused.items():
        typer.echo(f"not imported: {name}: {reason}", err=True)
    if pulled.refused:
        raise typer.Exit(1)


@models_app.command("list")
def models_list() -> None:
    """Print name, family and title of every installed model."""
    for model in _catalogue().models.values():
        typer.echo(f"{model.name:<24} {model.family:<20} {model.title}")


DataDirOption = Annotated[
    Path, typer.Option(help="Of a running `readout up`; REDIS_URL, where set, comes first.")
]


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
            raise _fail(error, 2) from None
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
    from pydantic import SecretStr

    from jobs.api_keys import ApiKeyStore
    from jobs.connection import connect
    from jobs.errors import JobsError
    from jobs.settings import CoreSettings
    from stack.datadir import running_redis
    from stack.up import EXTERNAL_REDIS

    settings = _settings(CoreSettings)
    if not any(os.environ.get(name) for name in EXTERNAL_REDIS):
        url = running_redis(data_dir)
        if url is None:
            hint = "set REDIS_URL, or name the --data-dir of a running `readout up`"
            raise _fail(f"no Redis is known: {hint}", 2)
        settings = settings.model_copy(update={"redis_url": SecretStr(url)})
    client = connect(settings)
    try:
        yield ApiKeyStore(client, settings)
    except JobsError as error:
        raise _fail(error, 1) from None
    finally:
        client.close()


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version

    typer.echo(version("readout-service"))


def _worker_lives() -> bool:
    from socket import gethostname

    from jobs.connection import connect
    from jobs.errors import JobsError
    from jobs.settings import CoreSettings
    from jobs.workers import WorkerBoard

    settings = _settings(CoreSettings)
    try:
        return any(
            worker.host == gethostname()
            for worker in WorkerBoard(connect(settings), settings).alive()
        )
    except JobsError as error:
        raise _fail(error, 1) from None


def _reconciler_lives() -> bool:
    from jobs.connection import connect, redis_errors
    from jobs.errors import JobsError
    from jobs.keys import reconciler_key
    from jobs.settings import CoreSettings

    settings = _settings(CoreSettings)
    try:
        with redis_errors():
            return bool(connect(settings).exists(reconciler_key(settings)))
    except JobsError as error:
        raise _fail(error, 1) from None


def _catalogue() -> Catalogue:
    from heads_registry.manifest import BUILTIN_DIR, Catalogue, RegistryError
    from jobs.settings import CoreSettings

    try:
        return Catalogue((BUILTIN_DIR, *_settings(CoreSettings).registry_dirs))
    except RegistryError as error:
        raise _fail(error, 2) from None


def _settings(kind: type[S]) -> S:
    from pydantic import ValidationError

    try:
        return kind()
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"])
        raise _fail(f"setting {name}: {first['msg']}", 2) from None


if __name__ == "__main__":
    main()
