"""What can go wrong with the embedded stack, each said in one line.

StackError
├── DataDirInUse     another `readout up` holds the data directory
├── MissingPiece     an extra or a server's binary is not installed
├── PortInUse        somebody else listens on the port that was asked for
├── StartFailed      a server died or did not answer in time at its start
└── ProcessDied      a supervised process ended that must not, or ends again and again
"""

from __future__ import annotations


class StackError(Exception):
    """Base of everything that the embedded stack says in one line; `exit_code` is the shell's."""

    exit_code = 2


class DataDirInUse(StackError):
    """Another `readout up` holds the data directory."""


class MissingPiece(StackError):
    """An extra or a server's binary is not installed."""


class PortInUse(StackError):
    """Somebody else listens on the port."""


class StartFailed(StackError):
    """A server died at its start or did not answer in time."""

    exit_code = 1


class ProcessDied(StackError):
    """A supervised process ended that must not, or ends again and again."""

    exit_code = 1
