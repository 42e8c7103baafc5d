"""Learned queries beside a picture's features in plain transformer blocks; the queries' outputs are what is kept.

    features ─► Linear ─► LayerNorm ─┐
                                     ├─► blocks (all see all) ─► the first `queries` ─► Linear ─► LayerNorm
    queries ─────────────────────────┘

Source: LLaMA-Adapter V2 (Gao et al. 2023, arXiv:2304.15010) and its code (`clip_proj`, `visual_query`, `visual_blocks`,
`visual_proj`). Theirs reads CLIP's features after CLIP's own frozen projection to 768; here one linear layer does what
the two do one after the other.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from quintet.components.roles import ConnectorConfig
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["QueryBlocks"]


class QueryBlocks(nn.Module):
    """Any number of features of an item → `queries` of them."""

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """Sizes of the blocks, as published."""

        queries: int
        width: int = 768
        depth: int = 8
        heads: int = 16

        def __post_init__(self) -> None:
            if min(self.queries, self.depth, self.heads) < 1 or self.width % self.heads:
                raise ConfigError(
                    f"queries {self.queries}, depth {self.depth}, heads {self.heads} must be at least 1, "
                    f"and width {self.width} a multiple of heads"
                )

        def starter(self) -> Self:
            return replace(self, width=192, depth=2, heads=6)

        def tiny(self) -> Self:
            return replace(self, queries=4, width=32, depth=1, heads=4)

        def layout(self, layout: Layout) -> Layout:
            return Layout((self.queries,))

        def build(self, *, d_in: int, d_out: int) -> "QueryBlocks":
            return QueryBlocks(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.enter, self.enter_norm = nn.Linear(d_in, width), nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(config.queries, width))
        self.blocks = nn.ModuleList(_block(width, config.heads) for _ in range(config.depth))
        self.leave, self.leave_norm = nn.Linear(width, d_out), nn.LayerNorm(d_out)

    def forward(self, features: Features) -> Features:
        if not features.layouts:
            return Features(self.read(features.values[None])[0, :0], ())
        layout = self.config.layout(features.layouts[0])
        return Features.join([(layout, items, self.read(values)) for _, items, values in features.groups()])

    def read(self, values: Tensor) -> Tensor:
        """float[N, L, d_in] → float[N, queries, d_out]."""
        queries = self.queries.to(values.dtype).expand(len(values), -1, -1)
        hidden = torch.cat([queries, self.enter_norm(self.enter(values))], 1)
        for block in self.blocks:
            hidden = block(hidden)
        return self.leave_norm(self.leave(hidden[:, : self.config.queries]))


def _block(width: int, heads: int) -> nn.Module:
    """A block of a vision transformer: norm, attention, norm, MLP of four times the width, with biases."""
    return nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-5
    )
