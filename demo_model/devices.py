"""Where and how precisely a stage computes; probed when asked, never at import."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from demo_model.config import AdaptersConfig, RunConfig
from heads_registry.device import resolve_device, resolve_dtype


@dataclass(frozen=True)
class Device:
    """A device and the type that autocast computes in; float32 is no autocast."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def choose_device(config: RunConfig | AdaptersConfig) -> Device:
    """CUDA where there is one; bfloat16 where the hardware has it; also sets threads."""
    torch.set_num_threads(config.threads)
    device = resolve_device("auto")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    dtype = resolve_dtype(config.precision, device)
    if dtype == torch.float16:  # would need scaled losses
        dtype = torch.float32
    return Device(device, dtype)


def raise_priority(by: int = 10) -> None:
    """Takes precedence over other processes where the user may (root); else does nothing.

    Linux shares the processor between sessions first (autogroups), so that `nice` alone does
    nothing against another session's processes: a process started with `setsid` raises its session.
    """
    try:
        os.nice(-by)
        if os.getsid(0) == os.getpid():
            Path("/proc/self/autogroup").write_text(str(-by))
    except OSError:
        return
