"""Keys and values that were already read, with the vectors that say who may look at them.

Append-only, in columns: a forward of T columns appends T columns to every row, and the new queries see of all held
columns exactly what `quintet.values.visible` allows. Packed prompts, padded rows and trees whose branches grow side
by side (T > 1: one column a branch) therefore decode exactly, by the same rule that trained them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quintet.components.roles import Context
from quintet.errors import ConfigError

__all__ = ["Columns", "KVCache", "Span"]


@dataclass(frozen=True)
class Span:
    """The columns that one forward appends: `start … stop - 1`."""

    start: int
    stop: int


class Columns:
    """The vectors of the columns that were read, int64[rows, columns] each; only those under `length` mean anything."""

    def __init__(self, rows: int, columns: int, *, device: torch.device) -> None:
        self.enter, self.exit, self.order, self.positions = (
            torch.zeros(rows, columns, dtype=torch.long, device=device) for _ in range(4)
        )
        self.memory: Any = None
        """What the fusion computed for the prompt's media."""
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    @property
    def columns(self) -> int:
        """Columns there is room for."""
        return self.enter.shape[1]

    def extend(self, ctx: Context) -> Span:
        """Appends the columns of `ctx`.

        Raises:
            ConfigError: there is no room left, or the rows are not those the cache was made for.
        """
        rows, new = ctx.enter.shape
        if rows != self.enter.shape[0]:
            raise ConfigError(f"the cache holds {self.enter.shape[0]} rows, this forward has {rows}")
        span = Span(self._length, self._length + new)
        if span.stop > self.columns:
            raise ConfigError(
                f"the cache has room for {self.columns} columns, {self._length} are used and {new} more were asked for;"
                " make it larger: new_cache(rows, columns) wants the prompt's columns plus those to be generated"
            )
        for name in ("enter", "exit", "order", "positions"):
            getattr(self, name)[:, span.start : span.stop] = getattr(ctx, name)
        self._length = span.stop
        return span


class KVCache(Columns):
    """Room for the keys and values of our decoder: float[depth, rows, kv_heads, columns, K] each."""

    def __init__(self, shape: tuple[int, int, int, int, int], *, like: Tensor) -> None:
        """`shape` is (depth, rows, kv_heads, columns, K); `like` gives device and dtype."""
        super().__init__(shape[1], shape[3], device=like.device)
        self.keys = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.values = torch.empty_like(self.keys)

    def write(self, layer: int, span: Span, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores float[B, Hkv, T, K] and gives all columns up to the span's end, float[B, Hkv, stop, K]."""
        assert not (torch.is_grad_enabled() and k.requires_grad), "decoding with a cache keeps no gradients"
        self.keys[layer, :, :, span.start : span.stop] = k
        self.values[layer, :, :, span.start : span.stop] = v
        return self.keys[layer, :, :, : span.stop], self.values[layer, :, :, : span.stop]
