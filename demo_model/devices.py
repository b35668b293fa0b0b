"""Where and how precisely a stage computes; probed when asked, never at import."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from demo_model.config import AdaptersConfig, RunConfig


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


def cpu_has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AMX or AVX512-BF16)."""
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capability.get("amx_bf16") or capability.get("avx512_bf16"))


def choose_device(config: RunConfig | AdaptersConfig) -> Device:
    """CUDA where there is one; bfloat16 where the hardware has it; also sets threads."""
    torch.set_num_threads(config.threads)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if cuda:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    fast = cuda or cpu_has_fast_bfloat16()
    bfloat16 = fast if config.precision == "auto" else config.precision == "bfloat16"
    return Device(device, torch.bfloat16 if bfloat16 else torch.float32)


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
