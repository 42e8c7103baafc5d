"""CogVLM's adapter: a linear layer, then a gated network, and learned columns at the picture's beginning and end.

    features ─► Linear ─► LayerNorm ─► GELU ─► down(silu(gate) · up) ─► [begin] … [end]

Source: CogVLM (Wang et al. 2023, arXiv:2311.03079, section 2.1: a two-layer MLP with SwiGLU) and its code (`GLU`,
`boi`, `eoi`). The widths are those of the released config.
"""

from dataclasses import dataclass, replace
from math import prod
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.components.roles import ConnectorConfig
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Glu"]


class Glu(nn.Module):
    """Every feature alone through the gated network; each item between two learned columns."""

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """The width inside, and whether items have learned ends."""

        ffn: int
        """Width inside the gated network."""
        ends: bool = True
        """Whether a learned column stands before and after each item's features."""

        def __post_init__(self) -> None:
            if self.ffn < 1:
                raise ConfigError(f"ffn is {self.ffn}; a width is at least 1")

        def starter(self) -> Self:
            return replace(self, ffn=512)

        def tiny(self) -> Self:
            return replace(self, ffn=64)

        def layout(self, layout: Layout) -> Layout:
            return Layout((layout.extra + prod(layout.grid) + 2,)) if self.ends else layout

        def build(self, *, d_in: int, d_out: int) -> "Glu":
            return Glu(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(d_in, d_out, bias=False)
        self.norm = nn.LayerNorm(d_out)
        self.gate = nn.Linear(d_out, config.ffn, bias=False)
        self.up = nn.Linear(d_out, config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, d_out, bias=False)
        self.ends = nn.Parameter(torch.randn(2, d_out) * 0.02) if config.ends else None

    def forward(self, features: Features) -> Features:
        values = self.project(features.values)
        layouts = tuple(self.config.layout(layout) for layout in features.layouts)
        if self.ends is None:
            return Features(values, layouts)
        begin, end = self.ends.to(values.dtype).split(1)
        pieces = [torch.cat([begin, piece, end]) for piece in values.split(features.counts)]
        # Without items the learned columns still take part, where sharded training counts on it.
        return Features(torch.cat(pieces) if pieces else values + 0.0 * self.ends.sum(), layouts)

    def project(self, values: Tensor) -> Tensor:
        """float[S, D] at the encoder's width → at the LLM's."""
        hidden = F.gelu(self.norm(self.linear(values)))
        return self.down(F.silu(self.gate(hidden)) * self.up(hidden))
