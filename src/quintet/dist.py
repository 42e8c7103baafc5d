"""The processes of a run: how many there are, which one this is, and sums over all of them.

Every function works unchanged in a single process without `torchrun`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["barrier", "device", "gather", "group", "is_first", "rank", "summed", "total", "world"]


def world() -> int:
    """Processes in the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return rank() == 0


def device() -> torch.device:
    """Where this process computes: its own GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def total(*values: float) -> list[float]:
    """Each value summed over all processes, in double precision."""
    if world() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device())
    dist.all_reduce(sums)
    return sums.tolist()


def summed(values: Mapping[str, float]) -> dict[str, float]:
    """The values of each name summed over all processes, in the names' order; not every process need have each."""
    names = set(values)
    if world() > 1:
        known: list[list[str]] = [[] for _ in range(world())]
        dist.all_gather_object(known, list(values))
        names = set().union(*known)
    ordered = sorted(names)
    return dict(zip(ordered, total(*(values.get(name, 0.0) for name in ordered)), strict=True)) if ordered else {}


def gather(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes in the order of their numbers, and where this one's begin.

    `rows` [N, …] may be of another N in each, and of the same type and shape otherwise. Gradients go back to the
    process that made a row, summed over all that used it.
    """
    if world() == 1:
        return rows, 0
    counts = torch.zeros(world(), dtype=torch.int64, device=rows.device)
    counts[rank()] = len(rows)
    dist.all_reduce(counts)
    sizes: list[int] = counts.tolist()
    everything: Any = _Gather.apply(rows, sizes)
    return everything, sum(sizes[: rank()])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        pieces = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(pieces, padded)
        return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        whole = gradient.contiguous()
        dist.all_reduce(whole)
        start = sum(ctx.sizes[: rank()])
        return whole[start : start + ctx.sizes[rank()]], None


def barrier() -> None:
    """Waits until every process is here."""
    if world() > 1:
        dist.barrier()


@contextmanager
def group() -> Iterator[None]:
    """Joins the processes that `torchrun` started; without it, does nothing."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    dist.init_process_group("cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
