"""The attention rule for `flex_attention`: which blocks of columns can be skipped, which need no mask.

The map of blocks comes from the smallest and largest value of each vector in a block, so it costs (T / 128)² and the
full T × T mask is never made. It may call an empty block partial (the kernel then masks all of it) but never skips a
block in which anything is visible, and never calls a block full that is not.

`flex_attention` has no backward on a CPU (torch 2.13), and only the compiled kernel is fast: CUDA only, compiled at
the first call.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from quintet.components.roles import Context

__all__ = ["BLOCK", "block_map", "block_mask", "flex_kernel"]

BLOCK = 128
"""Columns a block, the kernel's own default."""


def flex_kernel(ctx: Context, *, window: int | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention of q float[B, H, T, K] over k, v float[B, Hkv, T, K] by the rule of `ctx`."""
    mask = block_mask(ctx, window=window)

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _compiled()(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

    return kernel


def block_mask(ctx: Context, *, window: int | None) -> BlockMask:
    """The rule as torch's `BlockMask`, the same for every head."""
    full, partial = block_map(ctx, window=window)
    enter, end, order, positions = ctx.enter, ctx.exit, ctx.order, ctx.positions

    def rule(b: Tensor, h: Tensor, t: Tensor, u: Tensor) -> Tensor:
        seen = (enter[b, u] <= enter[b, t]) & (enter[b, t] < end[b, u]) & (order[b, u] <= order[b, t])
        return seen if window is None else seen & (positions[b, t] - positions[b, u] < window)

    columns = enter.shape[1]
    return BlockMask.from_kv_blocks(
        *_listed(partial), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=rule, seq_lengths=(columns, columns)
    )


def block_map(ctx: Context, *, window: int | None) -> tuple[Tensor, Tensor]:
    """(full, partial), both bool[B, N, N] over (block of queries, block of keys), N = ⌈T / 128⌉."""
    columns = ctx.enter.shape[1]
    count = -(-columns // BLOCK)
    # The last block is filled up with its own last column, which changes neither its least nor its greatest value.
    index = torch.arange(count * BLOCK, device=ctx.enter.device).clamp(max=columns - 1)
    enter, end, order, position = (
        torch.stack(torch.aminmax(vector[:, index].unflatten(1, (count, BLOCK)), dim=2))
        for vector in (ctx.enter, ctx.exit, ctx.order, ctx.positions)
    )
    low, high = 0, 1
    q, k = (slice(None), slice(None), None), (slice(None), None, slice(None))
    some = (enter[low][k] <= enter[high][q]) & (enter[low][q] < end[high][k]) & (order[low][k] <= order[high][q])
    every = (enter[high][k] <= enter[low][q]) & (enter[high][q] < end[low][k]) & (order[high][k] <= order[low][q])
    if window is not None:
        some &= position[low][q] - position[high][k] < window
        every &= position[high][q] - position[low][k] < window
    if columns % BLOCK:
        every[:, :, -1] = False
        every[:, -1, :] = False
    return every, some & ~every


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Number of chosen key blocks, int32[B, 1, N], and their indices first, int32[B, 1, N, N]."""
    chosen = blocks[:, None].to(torch.int32)
    return chosen.sum(-1, dtype=torch.int32), chosen.argsort(dim=-1, descending=True, stable=True).to(torch.int32)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention)
