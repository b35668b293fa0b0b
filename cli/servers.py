"""`readout up` and its parts, each a process; and `readout doctor`, which looks at them all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.environment import (
    DEFAULT_DATA_DIR,
    DataDirOption,
    fail,
    find_embedded_servers,
    settings_of,
)


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
        raise fail(error, error.exit_code) from None


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

    settings = settings_of(GatewaySettings)
    configure_logging(settings.log_format)
    host = host or settings.host
    try:
        check_exposure(settings, host)
        application = create_app(settings)
    except (Exposed, RegistryError) as error:
        raise fail(error, 2) from None
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


def worker(check: CheckOption = False) -> None:
    """Run one worker: takes jobs from Redis, samples, stores the results."""
    if check:
        raise typer.Exit(0 if _worker_lives() else 1)
    from worker.__main__ import main

    raise typer.Exit(main())


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

    settings = settings_of(GatewaySettings)
    configure_logging(settings.log_format)
    stop = Event()
    for number in (SIGINT, SIGTERM):
        signal(number, lambda *_: stop.set())
    outbox = Thread(target=webhook_sender.run_forever, args=(settings, stop), name="outbox")
    outbox.start()
    run_forever(settings, stop)
    outbox.join()


def doctor(data_dir: DataDirOption = DEFAULT_DATA_DIR) -> None:
    """Look at Redis, storage, models, heads, adapters, device and clocks; say what is wrong."""
    import doctor as examination
    from jobs.settings import CoreSettings

    find_embedded_servers(data_dir)
    raise typer.Exit(examination.main(settings_of(CoreSettings), typer.echo))


def _worker_lives() -> bool:
    from socket import gethostname

    from jobs.connection import connect
    from jobs.errors import JobsError
    from jobs.settings import CoreSettings
    from jobs.workers import WorkerBoard

    settings = settings_of(CoreSettings)
    try:
        return any(
            worker.host == gethostname()
            for worker in WorkerBoard(connect(settings), settings).alive()
        )
    except JobsError as error:
        raise fail(error, 1) from None


def _reconciler_lives() -> bool:
    from jobs.connection import connect, redis_errors
    from jobs.errors import JobsError
    from jobs.keys import reconciler_key
    from jobs.settings import CoreSettings

    settings = settings_of(CoreSettings)
    try:
        with redis_errors():
            return bool(connect(settings).exists(reconciler_key(settings)))
    except JobsError as error:
        raise fail(error, 1) from None
