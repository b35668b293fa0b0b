"""Which device and which precision to compute with; torch alone, without models."""

from __future__ import annotations

import torch


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device, cpu_dtype: str | None = None) -> torch.dtype:
    """``auto`` is bfloat16 where the hardware multiplies it fast, else float32.

    On CPUs that is AMX or AVX512-bf16 (PERFORMANCE.md); elsewhere bf16 is emulated and slower.
    `cpu_dtype` is what a model's manifest asks for there instead.
    """
    named = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    if name == "auto" and device.type == "cpu" and cpu_dtype:
        name = cpu_dtype
    if name != "auto":
        return named[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    fast = (
        getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        or getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    )
    return torch.bfloat16 if fast else torch.float32
