"""The data directory of `readout up`: one owner at a time, secrets, and where each part lies."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from stack.errors import DataDirInUse, StackError

SERVERS_FILE = "servers.json"


@dataclass(frozen=True)
class Secrets:
    """Credentials of the embedded servers, made at the first start."""

    redis_password: str
    s3_access_key_id: str
    s3_secret_access_key: str

    @classmethod
    def generate(cls) -> Secrets:
        """New random credentials."""
        return cls(
            redis_password=secrets.token_hex(24),
            s3_access_key_id="readout-" + secrets.token_hex(6),
            s3_secret_access_key=secrets.token_hex(24),
        )


class DataDir:
    """Everything that one embedded stack keeps; hold it with `with` to be its only owner."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.valkey = self.path / "valkey"
        self.objects = self.path / "s3"
        self.logs = self.path / "logs"
        self._lock: IO[str] | None = None

    def __enter__(self) -> DataDir:
        """Make the directories and take the lock.

        Raises:
            DataDirInUse: another process holds it.
            StackError: it cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for directory in (self.valkey, self.objects, self.logs):
                directory.mkdir(mode=0o700, exist_ok=True)
            self._lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise StackError(f"cannot use the data directory {self.path}: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise DataDirInUse(
                f"the data directory {self.path} is in use by another `readout up` (process "
                f"{owner}); stop it or choose another with --data-dir"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def publish_servers(self, settings: Mapping[str, str]) -> None:
        """Let other commands of the owner find the servers that run now; see `running_servers`."""
        _write_private(self.path / SERVERS_FILE, json.dumps(dict(settings)))

    def secrets(self) -> Secrets:
        """The embedded servers' credentials; made at first use, readable by the owner alone.

        Raises:
            StackError: the file is there and is not what was written.
        """
        path = self.path / "secrets.json"
        if not path.exists():
            _write_private(path, json.dumps(asdict(Secrets.generate())))
        try:
            return Secrets(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise StackError(f"{path} is not readable; remove it to make new ones") from error


def running_servers(data_dir: Path) -> dict[str, str]:
    """Settings that name the servers which the last `readout up` in this directory has started.

    They hold secrets; whether those servers still run, connecting shows. None of them where there
    was no such start.
    """
    try:
        found: dict[str, str] = json.loads((data_dir.expanduser() / SERVERS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found


def _write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone can read, whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)
