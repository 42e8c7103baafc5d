"""A few tokens from one pooled vector: the visual prefix of Frozen (Tsimpoukelli et al. 2021, arXiv:2106.13884)."""

from dataclasses import dataclass

import torch
from torch import nn

from quintet.components.roles import ConnectorConfig
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Prefix"]


class Prefix(nn.Module):
    """The mean of an item's features through one linear layer, C → tokens · D, cut into tokens."""

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """How many tokens, whatever the item's size."""

        tokens: int = 2

        def __post_init__(self) -> None:
            if self.tokens < 1:
                raise ConfigError(f"tokens is {self.tokens}; a prefix has at least 1")

        def layout(self, layout: Layout) -> Layout:
            return Layout((self.tokens,))

        def build(self, *, d_in: int, d_out: int) -> "Prefix":
            return Prefix(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        self.config = config
        self.d_out = d_out
        self.project = nn.Linear(d_in, d_out * config.tokens)

    def forward(self, features: Features) -> Features:
        pooled = torch.stack([item.mean(0) for item in features.split()]) if features.layouts else features.values
        layouts = tuple(self.config.layout(layout) for layout in features.layouts)
        return Features(self.project(pooled).view(-1, self.d_out), layouts)
