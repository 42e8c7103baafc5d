"""What this machine computes with: its number formats, its measured matrix-product peak, its memory."""

import ctypes
import platform
import resource
import sys
import time
from contextlib import nullcontext
from typing import Any, Literal

import torch

from quintet.errors import ConfigError

__all__ = ["Precision", "autocast", "matmul_peak", "peak_memory", "pick_precision", "prepare_cpu"]

Precision = Literal["auto", "fp32", "bf16"]


def pick_precision(asked: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """bf16 where the processor has instructions for it, decided by what it is and not by a measurement.

    A choice that depended on a timing would differ between two runs of the same command.
    """
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type != "cpu":
        raise ConfigError(f"no precision is known for device {device}; ask for fp32 or bf16")
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bf16_products() else "fp32"


def _has_bf16_products() -> bool:
    """AVX512-BF16 or AMX. Plain AVX512 has bf16 too, emulated and slower than fp32."""
    if sys.platform != "linux":
        return False
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16"))


def autocast(precision: Literal["fp32", "bf16"], device: torch.device) -> Any:
    """The context in which a forward runs."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def matmul_peak(device: torch.device, precision: Literal["fp32", "bf16"]) -> float:
    """FLOP/s of a square matrix product, the best of a few runs: what this machine can do at most."""
    side = 8192 if device.type == "cuda" else 1536
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(side, side, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that the device's allocator held, or on a CPU that this process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def prepare_cpu() -> None:
    """Settings of this process that make training on a CPU several times faster; call it before the first tensor work.

    Numbers too small for the normal range are flushed to zero: Adam's second moments of a well-trained parameter lie
    there, and arithmetic on them traps into slow paths (measured: a run fell from 170 to 40 pictures a second as it
    learnt). Threads inherit the setting from the one that starts them, hence the early call. And glibc keeps freed
    blocks instead of returning them to the system: activations are large blocks that are freed and asked for again
    at every step, at a page fault for each page (measured: 5.3 s a step became 1.4 s). Both are in docs/log.md.
    """
    torch.set_flush_denormal(True)
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, (1 << 31) - 1)
    libc.mallopt(top_pad, 1 << 26)
