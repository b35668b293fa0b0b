"""Data-parallel training: several processes average their gradients; knows no model."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def agree(self, *values: float) -> list[float]:
        """The leader's values."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return [float(value) for value in shared]

    def average(self, tensor: Tensor) -> None:
        """Replaces the tensor by its mean over the processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor.div_(self.size)

    def wait(self) -> None:
        """Returns when all processes are here."""
        if self.size > 1:
            dist.barrier()


class FlatGradients:
    """All gradients of some parameters as views of one buffer: one addition to average them."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        first = self.parameters[0]
        count = sum(parameter.numel() for parameter in self.parameters)
        self.flat = torch.zeros(count, dtype=first.dtype, device=first.device)
        at = 0
        for parameter in self.parameters:
            part = self.flat[at : at + parameter.numel()]
            parameter.grad = part.as_strided(
                parameter.size(), parameter.stride(), part.storage_offset()
            )
            at += parameter.numel()

    def clip(self, max_norm: float) -> None:
        """Scales the gradients down to a norm of at most `max_norm`; no host synchronisation."""
        self.flat.mul_((max_norm / (self.flat.norm() + 1e-6)).clamp(max=1.0))

    def zero(self) -> None:
        """Sets all gradients to zero."""
        self.flat.zero_()


def _run(rank: int, size: int, port: int, function: Callable[..., None], arguments: tuple) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(minutes=30))
    try:
        function(Group(rank, size), *arguments)
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_in_group(size: int, function: Callable[..., None], *arguments: object) -> None:
    """Calls `function(group, *arguments)` in `size` processes and waits; here where size is 1.

    SIGTERM and SIGINT are passed on, so that every process can save and leave.
    """
    if size == 1:
        function(Group(), *arguments)
        return
    context = torch.multiprocessing.spawn(
        _run, (size, _free_port(), function, arguments), nprocs=size, join=False
    )

    def pass_on(number: int, frame: object) -> None:
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    previous = {
        number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        while not context.join():
            pass
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
