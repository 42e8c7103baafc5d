"""Causal attention of paths laid end to end, on a CPU: plain matrix products over tiles below the diagonal.

The fused kernel of torch is slower there: for paths of 170 columns by a third in float32 and four times in bfloat16
without AMX, most of it backwards (docs/log.md). Here nothing is gathered, padded or scattered: a path is a slice of
the packed columns, a tile of its queries looks at the keys up to its own end, and what lies above the diagonal is
never computed but inside the last tile. Short paths that lie side by side share a slice and a mask.

Letters: B rows, T columns, H heads, K width of a head, G heads that share keys, L columns of a slice, t of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Slice", "attend_slices", "slices"]

_TILE = {torch.bfloat16: 128}
"""Queries of a tile; 64 unless the type is here. Measured: 48 and 96 cost float32 up to a tenth more, and bfloat16's
products want to be larger."""
_SHORT = 64
"""Columns up to which neighbouring paths share a slice: a product for each would cost more to start than to run."""
_KEPT = 512
"""Columns of a slice up to which its probabilities are kept for the backward pass; for longer ones they are made again,
so that memory grows with the columns and not with their square."""


@dataclass(frozen=True)
class Slice:
    """Packed columns `start … stop - 1` that look at nothing else, and what each of them may not look at.

    `hidden` float[L, L] is 0 or -inf, to be added to scores.
    """

    start: int
    stop: int
    hidden: Tensor


def slices(starts: Tensor, *, dtype: torch.dtype) -> list[Slice]:
    """The slices of bool[B, T], true where a path begins; rows count on."""
    first = starts.flatten().nonzero().flatten().tolist()
    ends = [*first[1:], starts.numel()]
    groups: list[list[tuple[int, int]]] = []
    for a, b in zip(first, ends, strict=True):
        if groups and b - groups[-1][0][0] <= _SHORT:
            groups[-1].append((a, b))
        else:
            groups.append([(a, b)])
    longest = max(b - a for a, b in zip(first, ends, strict=True))
    # A corner of a triangle is a triangle: one serves all.
    triangle = torch.full((longest, longest), float("-inf"), dtype=dtype).triu_(1)
    return [Slice(g[0][0], g[-1][1], _mask(g, triangle)) for g in groups]


def _mask(paths: list[tuple[int, int]], triangle: Tensor) -> Tensor:
    if len(paths) == 1:
        length = paths[0][1] - paths[0][0]
        return triangle[:length, :length]
    begin, length = paths[0][0], paths[-1][1] - paths[0][0]
    hidden = torch.full((length, length), float("-inf"), dtype=triangle.dtype)
    for a, b in paths:
        hidden[a - begin : b - begin, a - begin : b - begin] = triangle[: b - a, : b - a]
    return hidden


def attend_slices(q: Tensor, k: Tensor, v: Tensor, found: list[Slice]) -> Tensor:
    """Attention of q float[B, H, T, K] over k and v float[B, H / G, T, K] within the slices, float[B, H, T, K].

    Fastest where the heads of a column lie side by side in memory, as the projections make them; so does the result.
    """
    return _Attention.apply(q, k, v, found)  # type: ignore[no-any-return]


class _Attention(torch.autograd.Function):
    """softmax(QKᵀ/√K + hidden) V and its gradients, slice by slice and tile by tile."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, found: list[Slice]) -> Tensor:
        kept: list[Tensor] = []
        wanted = any(ctx.needs_input_grad)
        rows_q, rows_k, rows_v = _rows(q, k.shape[1]), _rows(k), _rows(v)
        out = torch.empty_like(rows_q)
        for s in found:
            keys, values = _heads_first(rows_k, s), _heads_first(rows_v, s)
            for a, b in _tiles(s, q.dtype):
                p = _probabilities(_queries(rows_q, s, a, b), keys, s.hidden, a, b)
                _put(out, s, a, b, torch.bmm(p, values[:, :b]))
                if wanted and s.stop - s.start <= _KEPT:
                    kept.append(p)
        ctx.found = found
        ctx.save_for_backward(q, k, v, *kept)
        return _columns(out, q)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, *kept = ctx.saved_tensors
        rows_q, rows_k, rows_v, rows_grad = _rows(q, k.shape[1]), _rows(k), _rows(v), _rows(grad, k.shape[1])
        grad_q, grad_k, grad_v = torch.empty_like(rows_q), torch.empty_like(rows_k), torch.empty_like(rows_v)
        scale = q.shape[-1] ** -0.5
        for s in reversed(ctx.found):
            keys, values = _heads_first(rows_k, s), _heads_first(rows_v, s)
            sum_k, sum_v = torch.zeros_like(keys), torch.zeros_like(values)
            for a, b in reversed(_tiles(s, q.dtype)):
                query, g = _queries(rows_q, s, a, b), _queries(rows_grad, s, a, b)
                p = kept.pop() if s.stop - s.start <= _KEPT else _probabilities(query, keys, s.hidden, a, b)
                sum_v[:, :b].baddbmm_(p.mT, g)
                # The gradient of a softmax: p · (d − Σ p d).
                d = torch._softmax_backward_data(torch.bmm(g, values[:, :b].mT), p, -1, p.dtype)
                sum_k[:, :b].baddbmm_(d.mT, query, alpha=scale)
                _put(grad_q, s, a, b, torch.bmm(d, keys[:, :b]).mul_(scale))
            grad_k[s.start : s.stop] = sum_k.transpose(0, 1)
            grad_v[s.start : s.stop] = sum_v.transpose(0, 1)
        return _columns(grad_q, q), _columns(grad_k, k), _columns(grad_v, v), None


def _tiles(s: Slice, dtype: torch.dtype) -> list[tuple[int, int]]:
    """A slice's queries in parts of about equal size, counted from its start."""
    length = s.stop - s.start
    parts = max(1, round(length / _TILE.get(dtype, 64)))
    cuts = [length * i // parts for i in range(parts + 1)]
    return list(zip(cuts, cuts[1:], strict=False))


def _probabilities(query: Tensor, keys: Tensor, hidden: Tensor, a: int, b: int) -> Tensor:
    """What the queries `a … b - 1` look at, float[H / G, G·t, b]; `query` is float[H / G, G·t, K]."""
    mask = hidden[a:b, :b]
    if query.shape[1] != b - a:
        mask = mask.repeat(query.shape[1] // (b - a), 1)
    return torch.baddbmm(mask, query, keys[:, :b].mT, alpha=query.shape[-1] ** -0.5).softmax(-1)


# ---- float[B, H, T, K] as rows of columns, and back ----------------------------------------------------------------
def _rows(x: Tensor, groups: int | None = None) -> Tensor:
    """float[B, H, T, K] → float[B·T, H, K], or float[B·T, H / G, G, K] with `groups` of heads: a view, if it may be."""
    rows = x.transpose(1, 2).flatten(0, 1)
    return rows if groups is None else rows.unflatten(1, (groups, -1))


def _columns(rows: Tensor, like: Tensor) -> Tensor:
    batch, heads, columns, width = like.shape
    return rows.view(batch, columns, heads, width).transpose(1, 2)


def _heads_first(rows: Tensor, s: Slice) -> Tensor:
    """The slice's float[H / G, L, K]."""
    return rows[s.start : s.stop].transpose(0, 1)


def _queries(rows: Tensor, s: Slice, a: int, b: int) -> Tensor:
    """A tile's float[H / G, G·t, K]: heads that share keys are rows of one product."""
    return rows[s.start + a : s.start + b].permute(1, 2, 0, 3).flatten(1, 2)


def _put(rows: Tensor, s: Slice, a: int, b: int, tile: Tensor) -> None:
    """The inverse of `_queries`."""
    rows[s.start + a : s.start + b] = tile.unflatten(1, (-1, b - a)).permute(2, 0, 1, 3)
