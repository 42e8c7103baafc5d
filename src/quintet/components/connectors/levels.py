"""A token for each depth at which the encoder was read: what was side by side in width follows in columns.

Source: LaVIN (Luo et al. 2023, arXiv:2305.15023, section 3.2): CLIP's class token after every fourth layer, six tokens
through one narrow network.
"""

from dataclasses import dataclass, replace
from typing import Self

from torch import nn
from torch.nn import functional as F

from quintet.components.roles import ConnectorConfig
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Levels"]


class Levels(nn.Module):
    """One feature of `levels` · C channels → `levels` tokens, each of C channels through up(silu(down(x)))."""

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """How many depths there are, and the width inside."""

        levels: int = 6
        hidden: int = 128

        def __post_init__(self) -> None:
            if min(self.levels, self.hidden) < 1:
                raise ConfigError(f"levels is {self.levels} and hidden {self.hidden}; both must be at least 1")

        def tiny(self) -> Self:
            return replace(self, hidden=16)

        def layout(self, layout: Layout) -> Layout:
            if layout.count != 1:
                raise ConfigError(f"features are {layout}; depths are told apart for one feature (select='cls')")
            return Layout((self.levels,))

        def build(self, *, d_in: int, d_out: int) -> "Levels":
            if d_in % self.levels:
                raise ConfigError(f"features of {d_in} channels are not those of {self.levels} depths side by side")
            return Levels(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        self.config = config
        self.down_proj = nn.Linear(d_in // config.levels, config.hidden)
        self.up_proj = nn.Linear(config.hidden, d_out)
        for layer in (self.down_proj, self.up_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Features) -> Features:
        levels = features.values.unflatten(-1, (self.config.levels, -1)).flatten(0, 1)
        layouts = tuple(self.config.layout(layout) for layout in features.layouts)
        return Features(self.up_proj(F.silu(self.down_proj(levels))), layouts)
