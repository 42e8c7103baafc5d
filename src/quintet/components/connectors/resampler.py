"""Resamplers of one layer: learned queries look at a picture once.

    Resampler           queries on a square, with the fixed 2-D positions of queries and patches (Qwen-VL)
    AttentivePooling    latent queries that look at the picture and at each other (Kosmos-1, Kosmos-2)

Those of several layers are elsewhere: `perceiver.py`, `qformer.py`, `abstractor.py`.
Letters: N items, Q queries, S picture features, E the encoder's width, D the LLM's.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.components.roles import ConnectorConfig
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["AttentivePooling", "Resampler", "sincos"]


def sincos(side: int, dim: int, *, grid: tuple[int, int] | None = None) -> Tensor:
    """Positions of a square in raster order, float32[rows · cols, dim]: sines, then cosines, of columns and of rows.

    On another `grid` they are those of the square, resized (bicubic, corners not aligned). As in MAE (He et al. 2021,
    arXiv:2111.06377), of which Qwen-VL and others take them: the first half of the width tells columns.
    """
    rates = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * rates
    one = torch.cat([angles.sin(), angles.cos()], 1)
    table = torch.cat([one[None].expand(side, -1, -1), one[:, None].expand(-1, side, -1)], -1).float()
    if grid is not None and grid != (side, side):
        resized = F.interpolate(table.permute(2, 0, 1)[None], grid, mode="bicubic", align_corners=False)
        table = resized[0].permute(1, 2, 0)
    return table.flatten(0, 1)


class Resampler(nn.Module):
    """Qwen-VL's adapter (Bai et al. 2023, arXiv:2308.12966, section 2.1; details from its code).

    One cross-attention as wide as the LLM and no feed-forward. Positions are added to queries and keys, not to values,
    and are the same for both: whatever the picture's grid, a query starts from its place.
    """

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """Sizes; the defaults are the paper's."""

        side: int = 16
        """Of the square of queries."""
        heads: int = 32
        eps: float = 1e-6
        places: int | None = None
        """Side of the square whose fixed positions are resized to the queries'; None is the queries' own."""
        local: float = 0.0
        """How sharply queries begin by looking at their own place; 0 begins at random, as published."""

        @property
        def deep(self) -> bool:
            return False  # one layer

        def starter(self) -> "Resampler.Config":
            return replace(self, side=min(self.side, 4), heads=6, places=self.side, local=8.0)

        def tiny(self) -> "Resampler.Config":
            return replace(self, side=min(self.side, 2), heads=4)

        def layout(self, layout: Layout) -> Layout:
            if len(layout.grid) != 2 or layout.extra or layout.more:
                raise ConfigError(
                    f"features {layout} have no places on one grid; let the encoder select its patches "
                    "(select='patch') of whole pictures, or wrap this into `Views`"
                )
            return Layout((self.side, self.side))

        def build(self, *, d_in: int, d_out: int) -> "Resampler":
            return Resampler(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        if d_out % config.heads or d_out % 4:
            raise ConfigError(f"a width of {d_out} does not divide into {config.heads} heads, or by 4 for positions")
        self.config = config
        self.queries = nn.Parameter(torch.randn(config.side**2, d_out) * 0.02)
        self.enter = nn.Linear(d_in, d_out, bias=False)
        self.norm_query, self.norm_key = nn.LayerNorm(d_out, eps=config.eps), nn.LayerNorm(d_out, eps=config.eps)
        self.attend = _Attention(d_out, heads=config.heads)
        if config.local:
            self.attend.liken(config.local)
            # What is seen is little beside where it is; of values this is undone by the norm behind the attention.
            for norm in (self.norm_query, self.norm_key):
                nn.init.constant_(norm.weight, 0.1)
        self.norm = nn.LayerNorm(d_out, eps=config.eps)
        self.project = nn.Linear(d_out, d_out, bias=False)

    def forward(self, features: Features) -> Features:
        if not features.layouts:
            return Features(self.project(self.enter(features.values)), ())
        pieces: list[tuple[Layout, list[int], Tensor]] = []
        queries = self.norm_query(self.queries)
        side, dim = self.config.side, queries.shape[-1]
        table = self.config.places or side
        asked = queries + sincos(table, dim, grid=(side, side)).to(queries)
        for layout, items, values in features.groups():
            after = self.config.layout(layout)
            rows, cols = layout.grid
            keys = self.norm_key(self.enter(values))
            places = sincos(table, dim, grid=(rows, cols)).to(keys)
            found = self.attend(asked.expand(len(items), -1, -1), keys + places, keys)
            pieces.append((after, items, self.project(self.norm(found))))
        return Features.join(pieces)


class AttentivePooling(nn.Module):
    """Kosmos' resampler (Huang et al. 2023, arXiv:2302.14045, section 2.1; Peng et al. 2023, arXiv:2306.14824).

    A linear layer to the LLM's width, then latent queries look at the features and at themselves, once. Kosmos-2 makes
    every feature one long first. Details are those of transformers' `Kosmos2ImageToTextProjection`.
    """

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """Sizes; the defaults are the papers'."""

        queries: int = 64
        heads: int = 32
        unit: bool = False
        """Whether every feature is first divided by its length (Kosmos-2)."""

        @property
        def deep(self) -> bool:
            return False  # one layer

        def starter(self) -> "AttentivePooling.Config":
            return replace(self, queries=min(self.queries, 16), heads=6)

        def tiny(self) -> "AttentivePooling.Config":
            return replace(self, queries=min(self.queries, 4), heads=4)

        def layout(self, layout: Layout) -> Layout:
            return Layout((self.queries,))

        def build(self, *, d_in: int, d_out: int) -> "AttentivePooling":
            return AttentivePooling(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        if d_out % config.heads:
            raise ConfigError(f"a width of {d_out} does not divide into {config.heads} heads")
        self.config = config
        self.enter = nn.Linear(d_in, d_out)
        if config.unit:
            # Of a feature that is one long each number is 1/√d_in: the layer begins as it would for numbers around 1,
            # else the queries see nothing but themselves for hundreds of steps.
            nn.init.normal_(self.enter.weight)
        self.queries = nn.Parameter(torch.randn(config.queries, d_out))
        self.attend = _Attention(d_out, heads=config.heads)

    def forward(self, features: Features) -> Features:
        values = F.normalize(features.values, dim=-1) if self.config.unit else features.values
        entered = Features(self.enter(values), features.layouts)
        if not features.layouts:
            return entered
        pieces: list[tuple[Layout, list[int], Tensor]] = []
        for layout, items, hidden in entered.groups():
            queries = self.queries.expand(len(items), -1, -1)
            seen = torch.cat([hidden, queries.to(hidden.dtype)], 1)
            pieces.append((self.config.layout(layout), items, self.attend(queries, seen, seen)))
        return Features.join(pieces)


class _Attention(nn.Module):
    def __init__(self, dim: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim) for _ in range(4))

    @torch.no_grad()
    def liken(self, sharp: float) -> None:
        """Queries and keys begin as turned copies of what they are made of: who is alike looks at each other."""
        nn.init.orthogonal_(self.q_proj.weight, gain=sharp**0.5)
        self.k_proj.weight.copy_(self.q_proj.weight)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries float[N, Q, D] look at float[N, S, D]."""
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.q_proj(queries), self.k_proj(keys), self.v_proj(values))
        )
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
