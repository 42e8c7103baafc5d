"""Abstractors: a picture's features summed up as fewer, by queries (mPLUG-Owl) or by convolutions (MM1, Honeybee).

    Abstractor     queries look at the picture and at each other, layer by layer; one learned feature ends the picture
    CAbstractor    residual convolutions ─► adaptive average pooling to a square ─► residual convolutions ─► MLP

Letters: N items, Q queries, S picture features, D width, C channels.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.components.connectors.mlp import Stack
from quintet.components.roles import ConnectorConfig
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Abstractor", "CAbstractor"]


# ---- mPLUG-Owl ---------------------------------------------------------------------------------------------------
class Abstractor(nn.Module):
    """mPLUG-Owl's visual abstractor (Ye et al. 2023, arXiv:2304.14178, section 3.1; details from its code).

    A layer's keys are the normalised queries and the normalised picture together, so there is no self-attention apart.
    Its residual starts from the normalised queries, as in the code. It is as wide as the encoder.
    """

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """Sizes; the defaults are the paper's."""

        queries: int = 64
        depth: int = 6
        heads: int = 16
        ffn: int = 4096
        eps: float = 1e-6
        end: bool = True
        """Whether a learned feature (`vit_eos`) stands after the queries'."""

        def starter(self) -> "Abstractor.Config":
            return replace(self, queries=min(self.queries, 16), depth=2, heads=6, ffn=512)

        def tiny(self) -> "Abstractor.Config":
            return replace(self, queries=min(self.queries, 4), depth=2, heads=4, ffn=64)

        def layout(self, layout: Layout) -> Layout:
            return Layout((self.queries + self.end,))

        def build(self, *, d_in: int, d_out: int) -> "Abstractor":
            return Abstractor(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        if d_in % config.heads:
            raise ConfigError(f"features of width {d_in} do not divide into {config.heads} heads")
        self.config = config
        self.queries = nn.Parameter(torch.randn(config.queries, d_in) * 0.02)
        self.layers = nn.ModuleList(_Layer(config, dim=d_in) for _ in range(config.depth))
        self.project = nn.Linear(d_in, d_out)
        self.end = nn.Parameter(torch.randn(d_out) * 0.02) if config.end else None

    def forward(self, features: Features) -> Features:
        if not features.layouts:
            return Features(self.project(features.values), ())
        pieces: list[tuple[Layout, list[int], Tensor]] = []
        for layout, items, values in features.groups():
            hidden = self.queries.expand(len(items), -1, -1)
            for layer in self.layers:
                hidden = layer(hidden, values)
            made = self.project(hidden)
            if self.end is not None:
                made = torch.cat([made, self.end.to(made.dtype).expand(len(made), 1, -1)], 1)
            pieces.append((self.config.layout(layout), items, made))
        return Features.join(pieces)


class _Layer(nn.Module):
    def __init__(self, config: Abstractor.Config, *, dim: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm_query, self.norm_key = nn.LayerNorm(dim, eps=config.eps), nn.LayerNorm(dim, eps=config.eps)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.norm = nn.LayerNorm(dim, eps=config.eps)
        self.gate_proj, self.up_proj = nn.Linear(dim, config.ffn), nn.Linear(dim, config.ffn)
        self.ffn_norm, self.down_proj = nn.LayerNorm(config.ffn, eps=config.eps), nn.Linear(config.ffn, dim)

    def forward(self, queries: Tensor, picture: Tensor) -> Tensor:
        """float[N, Q, D] looks at float[N, S, D] and at itself."""
        queries = self.norm_query(queries)
        seen = torch.cat([queries, self.norm_key(picture)], 1)
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.q_proj(queries), self.k_proj(seen), self.v_proj(seen))
        )
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        hidden = queries + self.o_proj(found)
        normed = self.norm(hidden)
        return hidden + self.down_proj(self.ffn_norm(F.silu(self.gate_proj(normed)) * self.up_proj(normed)))


# ---- Honeybee, MM1 -----------------------------------------------------------------------------------------------
class CAbstractor(nn.Module):
    """The C-Abstractor of Honeybee (Cha et al. 2023, arXiv:2312.06742, section 3.3), MM1's connector.

    Any grid becomes `side` × `side` features that know their neighbourhood. Blocks are RegNet's: depth-wise, with
    squeeze and excitation. A class token must not come with the patches.
    """

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """Sizes; the defaults are Honeybee's, with MM1's 144 features."""

        side: int = 12
        """Of the square of features that come out."""
        dim: int = 1024
        depth: int = 3
        """Blocks before the pooling, and as many after it."""
        squeeze: float = 0.25
        """Width of the bottleneck of squeeze and excitation, as a share."""

        def __post_init__(self) -> None:
            if min(self.side, self.depth, int(self.dim * self.squeeze)) < 1:
                raise ConfigError(f"side {self.side}, depth {self.depth}, dim {self.dim}: each must be at least 1")

        def starter(self) -> "CAbstractor.Config":
            return replace(self, side=min(self.side, 4), dim=192, depth=1)

        def tiny(self) -> "CAbstractor.Config":
            return replace(self, side=min(self.side, 2), dim=32, depth=1)

        def layout(self, layout: Layout) -> Layout:
            if len(layout.grid) != 2 or layout.extra:
                raise ConfigError(
                    f"features of shape {layout.grid} and {layout.extra} more are no grid that convolutions could read;"
                    " let the encoder select its patches (select='patch')"
                )
            return Layout((self.side, self.side))

        def build(self, *, d_in: int, d_out: int) -> "CAbstractor":
            return CAbstractor(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        self.config = config
        before = [d_in] + [config.dim] * config.depth
        self.before = nn.Sequential(*(_Block(a, b, squeeze=config.squeeze) for a, b in pairwise(before)))
        after = [config.dim] * (config.depth + 1)
        self.after = nn.Sequential(*(_Block(a, b, squeeze=config.squeeze) for a, b in pairwise(after)))
        self.project = Stack(d_in=config.dim, d_out=d_out, depth=2, act="silu")

    def forward(self, features: Features) -> Features:
        if not features.layouts:
            return Features(self.project(features.values.new_empty(0, self.config.dim)), ())
        pieces: list[tuple[Layout, list[int], Tensor]] = []
        for layout, items, values in features.groups():
            after = self.config.layout(layout)
            hidden = self.before(values.unflatten(1, layout.grid))
            pooled = F.adaptive_avg_pool2d(hidden.permute(0, 3, 1, 2), self.config.side).permute(0, 2, 3, 1)
            pieces.append((after, items, self.project(self.after(pooled).flatten(1, 2))))
        return Features.join(pieces)


class _Block(nn.Module):
    """RegNet's bottleneck of full width: 1 × 1, depth-wise 3 × 3, squeeze and excitation, 1 × 1, and the residual.

    Channels stand last, so a convolution of 1 × 1 is a linear layer.
    """

    def __init__(self, d_in: int, dim: int, *, squeeze: float) -> None:
        super().__init__()
        few = round(d_in * squeeze)
        self.enter, self.enter_norm = nn.Linear(d_in, dim, bias=False), nn.LayerNorm(dim, eps=1e-6)
        self.spread = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.spread_norm = nn.LayerNorm(dim, eps=1e-6)
        self.squeeze, self.excite = nn.Linear(dim, few), nn.Linear(few, dim)
        self.leave, self.leave_norm = nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim, eps=1e-6)
        if d_in == dim:
            self.skip: nn.Module = nn.Identity()
        else:
            self.skip = nn.Sequential(nn.Linear(d_in, dim, bias=False), nn.LayerNorm(dim, eps=1e-6))

    def forward(self, grid: Tensor) -> Tensor:
        """float[N, H, W, C] → float[N, H, W, D]."""
        hidden = F.silu(self.enter_norm(self.enter(grid)))
        spread = self.spread(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        hidden = F.silu(self.spread_norm(spread))
        gate = self.excite(F.silu(self.squeeze(hidden.mean((1, 2), keepdim=True))))
        hidden = self.leave_norm(self.leave(hidden * gate.sigmoid()))
        return F.silu(hidden + self.skip(grid))
