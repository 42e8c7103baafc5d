"""One attention rule, five ways to compute it.

    t may look at u   ⇔   enter[u] ≤ enter[t] < exit[u]   and   order[u] ≤ order[t]

`plan` looks at the vectors of a forward once and picks a strategy; the layers then only call it.

  causal     every row is one path from its first column on: plain causal attention, no mask at all
  documents  every row is a sequence of separate paths: they are gathered into a padded [documents, L], attended
             causally and scattered back; right padding is harmless under causality
  flex       a block mask for `flex_attention`, on CUDA: trees, spans that look both ways, sliding windows
  trees      on other devices, every row a sequence of separate trees: gathered like documents, each with its own mask
  dense      a bool mask [B, T, U] for what is left, and everywhere for decoding with a cache

On a CPU, rows of 1,024 columns with 8 documents of mixed length cost a quarter of the dense mask's time as documents:
50 ms against 195 (tests/unit/test_attention.py has the shapes).
Letters: B rows, T queries, U keys, H heads, K width of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.components.llms.cache import Columns, KVCache, Span
from quintet.components.llms.flex import flex_kernel
from quintet.components.llms.rope import Tables, rotate
from quintet.components.roles import Context
from quintet.components.visible import visible
from quintet.sizes import rounded

__all__ = ["Attend", "Strategy", "attend_with", "choose", "dense_mask", "path_starts", "plan", "tree_starts"]

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


class Strategy(StrEnum):
    """How the rule is computed; all give the same numbers."""

    CAUSAL = "causal"
    DOCUMENTS = "documents"
    FLEX = "flex"
    TREES = "trees"
    DENSE = "dense"


@dataclass(frozen=True)
class Attend:
    """Attention of one forward: what `Context.attention` holds.

    Called with (layer, q float[B, H, T, K], k and v float[B, Hkv, T, K]) it turns q and k to their positions, keeps
    k and v in the cache if there is one, and attends by the rule. q and k come unrotated, so a fusion with
    projections of its own (a visual expert) need not know about positions.
    """

    strategy: Strategy
    kernel: Kernel
    rope: Tables
    cache: KVCache | None = None
    span: Span | None = None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Under autocast normed queries come in float32 and the values in bfloat16: the kernels want one type.
        q, k = (self.turn(x).to(v.dtype) for x in (q, k))
        if self.cache is None or self.span is None:
            return self.kernel(q, k, v)
        held_k, held_v = self.cache.write(layer, self.span, k, v)
        # The first forward sees only itself: no need to read back what was just written.
        return self.kernel(q, k, v) if self.span.start == 0 else self.kernel(q, held_k, held_v)

    def turn(self, x: Tensor) -> Tensor:
        """float[B, H, T, K] turned to the positions of this forward's columns."""
        return rotate(x, self.rope)


def plan(ctx: Context, *, rope: Tables, window: int | None = None) -> Attend:
    """The cheapest strategy that is exact for the columns of `ctx`, ready to be called by every layer.

    With a cache the columns are appended to it here. `window`, in tokens along the path, is how far back a token
    looks (Mistral v0.1); None is all the way.
    """
    assert bool((ctx.enter < ctx.exit).all()), "a column that cannot see itself: its interval is empty"
    if ctx.cache is not None and ctx.cache.length > 0:
        return attend_with(Strategy.DENSE, ctx, rope=rope, window=window)
    return attend_with(choose(ctx, window=window), ctx, rope=rope, window=window)


def choose(ctx: Context, *, window: int | None = None) -> Strategy:
    """The cheapest exact strategy where the columns see nothing but each other."""
    if window is None or int(ctx.positions.max()) < window:
        starts = path_starts(ctx)
        if starts is not None:
            return Strategy.DOCUMENTS if bool(starts[:, 1:].any()) else Strategy.CAUSAL
    if ctx.enter.is_cuda:
        return Strategy.FLEX
    return Strategy.DENSE if tree_starts(ctx) is None else Strategy.TREES


def attend_with(strategy: Strategy, ctx: Context, *, rope: Tables, window: int | None = None) -> Attend:
    """Attention by a given strategy; whether it is exact for `ctx` is the caller's to know (see `choose`)."""
    cache: KVCache | None = ctx.cache
    span = cache.extend(ctx) if cache is not None else None
    if strategy is Strategy.CAUSAL:
        kernel: Kernel = _causal
    elif strategy is Strategy.DOCUMENTS:
        starts = path_starts(ctx)
        assert starts is not None, "these rows are trees, not separate paths"
        kernel = _Documents(starts)  # pyright: ignore[reportAssignmentType]  # its decorator hides the type
    elif strategy is Strategy.TREES:
        starts = tree_starts(ctx)
        assert starts is not None, "these rows are not trees laid end to end"
        kernel = _Documents(starts, rule=_Rule(ctx, window))  # pyright: ignore[reportAssignmentType]
    elif strategy is Strategy.FLEX:
        kernel = flex_kernel(ctx, window=window)
    else:
        kernel = _Dense(dense_mask(ctx, window=window))
    return Attend(strategy, kernel, rope, cache, span)


def path_starts(ctx: Context) -> Tensor | None:
    """bool[B, T], true where a path begins, if the rows are paths laid end to end; None if they are not.

    A column begins a path when its interval lies behind all before it. Any other column must continue the path: its
    interval lies within its neighbour's (equal to it, or an only child's) and its order is greater.
    """
    enter, end, order = ctx.enter, ctx.exit, ctx.order
    starts = torch.ones_like(enter, dtype=torch.bool)
    starts[:, 1:] = enter[:, 1:] >= end.cummax(dim=1).values[:, :-1]
    inside = (enter[:, 1:] >= enter[:, :-1]) & (end[:, 1:] <= end[:, :-1]) & (order[:, 1:] > order[:, :-1])
    return starts if bool((starts[:, 1:] | inside).all()) else None


def tree_starts(ctx: Context) -> Tensor | None:
    """bool[B, T], true where a tree begins, if the rows are trees laid end to end; None if they are not.

    A column begins a tree when its interval lies behind all before it; no other may reach back before its tree.
    """
    starts = torch.ones_like(ctx.enter, dtype=torch.bool)
    starts[:, 1:] = ctx.enter[:, 1:] >= ctx.exit.cummax(dim=1).values[:, :-1]
    begun = ctx.enter.where(starts, ctx.enter.min()).cummax(dim=1).values
    return starts if bool((ctx.enter >= begun).all()) else None


@dataclass(frozen=True)
class _Rule:
    """The rule among columns that were gathered: as a mask, where causality is not enough."""

    ctx: Context
    window: int | None

    def seen(self, pick: Tensor, real: Tensor) -> Tensor:
        """bool[n, 1, L, L], true where a query may look, of columns `pick` int64[n, L]; nobody looks at the unreal."""
        enter, end, order, positions = (
            vector.flatten()[pick] for vector in (self.ctx.enter, self.ctx.exit, self.ctx.order, self.ctx.positions)
        )
        seen = visible(enter, order, key_exit=end) & real[:, None, :]
        if self.window is not None:
            seen &= positions[:, :, None] - positions[:, None, :] < self.window
        # A query that is not real repeats one that is, which sees itself.
        return seen[:, None]


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if _is_short(q):
        return _products(q, k, v, _triangle(q.shape[2]))
    return _fused(q, k, v, None)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The fused kernel of torch, causal where there is no mask bool[B, 1, T, U].

    On a CPU without AMX its backward takes three times as long in bfloat16 as in float32 (docs/log.md).
    """
    shared = q.shape[1] != k.shape[1]
    attend = partial(F.scaled_dot_product_attention, attn_mask=mask, is_causal=mask is None, enable_gqa=shared)
    slow = q.requires_grad and q.dtype is torch.bfloat16 and q.device.type == "cpu"
    if not slow or torch.cpu._is_amx_tile_supported():
        return attend(q, k, v)
    with torch.autocast("cpu", enabled=False):  # it would take them back to bfloat16
        return attend(q.float(), k.float(), v.float()).to(q.dtype)


@lru_cache(maxsize=32)
def _triangle(columns: int) -> Tensor:
    return torch.full((columns, columns), float("-inf"), dtype=torch.bfloat16).triu_(1)


_PRODUCTS = 512
"""Columns up to which rows on a CPU are attended by plain matrix products in bfloat16."""


def _is_short(q: Tensor) -> bool:
    return q.device.type == "cpu" and q.dtype is torch.bfloat16 and q.shape[2] <= _PRODUCTS


def _products(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """Attention by two matrix products and a softmax; heads that share keys are rows of one product.

    `hidden` is −∞ where a query may not look, [T, U] or [B, 1, T, U]. For short rows on a CPU the fused kernel takes
    several times as long, most of all in bfloat16 without AMX and backwards (docs/log.md). The mask is added, not
    filled in, so that it costs nothing backwards.
    """
    rows, heads, columns, width = q.shape
    shared = heads // k.shape[1]
    grouped = (q * width**-0.5).reshape(rows, -1, shared * columns, width)
    scores = grouped @ k.transpose(-1, -2)
    scores.unflatten(2, (shared, columns)).add_(hidden if hidden.ndim == 2 else hidden[:, :, None])
    return (scores.softmax(-1) @ v).reshape(rows, heads, columns, width)


def dense_mask(ctx: Context, *, window: int | None) -> Tensor:
    """The rule as bool[B, 1, T, U]; U is the cache's length, with the columns of `ctx` already in it."""
    cache: Columns | None = ctx.cache
    if cache is None:
        seen = visible(ctx.enter, ctx.order, key_exit=ctx.exit)
        key_positions = ctx.positions
    else:
        enter, end, order, key_positions = (
            vector[:, : cache.length] for vector in (cache.enter, cache.exit, cache.order, cache.positions)
        )
        seen = visible(ctx.enter, ctx.order, key_enter=enter, key_exit=end, key_order=order)
    if window is not None:
        seen = seen & (ctx.positions[:, :, None] - key_positions[:, None, :] < window)
    return seen[:, None]


class _Dense:
    """Attention by a mask bool[B, 1, T, U]; not read in the first `trunk` columns, which are a path in every row."""

    def __init__(self, mask: Tensor, *, trunk: int = 0) -> None:
        self.mask, self.trunk = mask, trunk
        self.hidden: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if _is_short(q) and q.shape[2] > 1:
            if self.hidden is None:
                self.hidden = torch.zeros(self.mask.shape, dtype=q.dtype).masked_fill_(~self.mask, float("-inf"))
            return _products(q, k, v, self.hidden)
        if not (n := self.trunk):
            return _fused(q, k, v, self.mask)
        begun = _fused(q[:, :, :n], k[:, :, :n], v[:, :, :n], None)
        return torch.cat((begun, _fused(q[:, :, n:], k, v, self.mask[:, :, n:])), dim=2)


_BLOCK = 128
"""Trunks are cut to multiples of it: for shapes that repeat, and because a short one saves nothing."""


def _dense(mask: Tensor) -> _Dense:
    """The mask without what is causal in all rows before their first fork: the pictures and prompts of pairs."""
    columns = mask.shape[-1]
    causal = torch.ones(columns, columns, dtype=torch.bool, device=mask.device).tril()
    forks = (mask != causal).any(dim=-1).flatten(0, 1).any(dim=0).nonzero()
    trunk = int(forks[0]) if len(forks) else columns
    return _Dense(mask, trunk=trunk // _BLOCK * _BLOCK)


class _Documents:
    """Paths, or trees with their `rule`, of like length side by side, in buckets of few shapes.

    From the longest on: a bucket is as wide as its first path, rounded, and takes all that round to the same width and
    as many of the next as make its number a multiple of a few: of eight where they are short, of one where `_COLUMNS`
    are full. So few kernels are built (`quintet.sizes`), and little is padded.
    """

    _COLUMNS = 2048

    def __init__(self, starts: Tensor, *, rule: _Rule | None = None) -> None:
        self.kernels: list[Kernel] = []
        columns = starts.numel()
        first = starts.flatten().nonzero().flatten().tolist()
        lengths = [b - a for a, b in zip(first, [*first[1:], columns], strict=True)]
        left = sorted(range(len(first)), key=lambda i: -lengths[i])
        self.shapes: list[tuple[int, int]] = []
        pick: list[Tensor] = []
        inverse = torch.empty(columns, dtype=torch.long)
        offset = 0
        while left:
            width = rounded(lengths[left[0]], per_octave=8)
            alike = next((n for n, i in enumerate(left) if rounded(lengths[i], per_octave=8) < width), len(left))
            together = min(8, max(1, self._COLUMNS // width))
            alike = -(-alike // together) * together
            bucket, left = left[:alike], left[alike:]
            begin, length = torch.tensor([first[i] for i in bucket]), torch.tensor([lengths[i] for i in bucket])
            column = torch.arange(width)
            source = begin[:, None] + column.clamp(max=length[:, None] - 1)
            real = column < length[:, None]
            pick.append(source.flatten())
            at = source.to(starts.device)
            self.kernels.append(_dense(rule.seen(at, real.to(starts.device))) if rule else _causal)
            inverse[source[real]] = offset + real.flatten().nonzero().flatten()
            self.shapes.append((len(bucket), width))
            offset += len(bucket) * width
        self.pick, self.inverse = torch.cat(pick).to(starts.device), inverse.to(starts.device)

    @torch.compiler.disable  # its loop is over this batch's shapes
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, heads, columns, width = q.shape
        q, k, v = (x.transpose(1, 2).flatten(0, 1).index_select(0, self.pick) for x in (q, k, v))
        sizes = [documents * length for documents, length in self.shapes]
        outs: list[Tensor] = []
        pieces = zip(self.shapes, self.kernels, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
        for shape, kernel, *qkv in pieces:
            out = kernel(*(x.unflatten(0, shape).transpose(1, 2) for x in qkv))
            outs.append(out.transpose(1, 2).flatten(0, 1))
        back = torch.cat(outs).index_select(0, self.inverse)
        return back.view(rows, columns, heads, width).transpose(1, 2)
