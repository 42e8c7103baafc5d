"""Bottleneck adapters behind the LLM's blocks, with token-level fusion: it learns while its weights stay.

    h = the LLM's block(x)
    y = h + s · up(silu(down(norm(h))))

Source: Houlsby et al. 2019, arXiv:1902.00751; Lynx (Zeng et al. 2023, arXiv:2307.02469, section 2.1) has one behind
every block in the paper and behind the blocks 0, 2, 4 … in the released configuration (`every=2`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.components.fusion.token import TokenFusion
from quintet.components.roles import Context
from quintet.errors import ConfigError

__all__ = ["Adapters"]


class Adapters(TokenFusion):
    """Features at their columns, and an adapter behind every `every`-th block, from the first on."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TokenFusion.Config):
        """Where the adapters are, and how narrow."""

        every: int = 1
        narrow: int = 2
        """The LLM's width over the width inside."""

        def __post_init__(self) -> None:
            if min(self.every, self.narrow) < 1:
                raise ConfigError(f"every is {self.every} and narrow is {self.narrow}; both must be at least 1")

        @property
        def needs_blocks(self) -> bool:
            return True

        def build(self, *, dim: int, depth: int) -> "Adapters":
            return Adapters(self, dim=dim, depth=depth)

    def __init__(self, config: Config, *, dim: int, depth: int) -> None:
        super().__init__()
        self.config = config
        self.adapters = nn.ModuleList(_Adapter(dim, dim // config.narrow) for _ in range(0, depth, config.every))

    def around(self, index: int, block: nn.Module, hidden: Tensor, ctx: Context) -> Tensor:
        hidden = block(hidden, ctx)
        return hidden if index % self.config.every else self.adapters[index // self.config.every](hidden)


class _Adapter(nn.Module):
    def __init__(self, dim: int, narrow: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.down_proj, self.up_proj = nn.Linear(dim, narrow), nn.Linear(narrow, dim)
        self.scale = nn.Parameter(torch.ones(1))
        for layer in (self.down_proj, self.up_proj):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.scale * self.up_proj(F.silu(self.down_proj(self.norm(hidden))))
