"""A small client of the service's HTTP API, for the command line, the demo and the benchmarks."""

from client.errors import ClientError, GenerationFailed, Refused, Unreachable, WaitTimeout
from client.http import ReadoutClient

__all__ = [
    "ClientError",
    "GenerationFailed",
    "ReadoutClient",
    "Refused",
    "Unreachable",
    "WaitTimeout",
]
