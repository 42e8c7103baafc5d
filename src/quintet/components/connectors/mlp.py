"""Linear layers with an activation between: the connector of LLaVA-1.5 and of most models after it.

LLaVA-1.5 (Liu et al. 2023, arXiv:2310.03744, section 3.2) has two layers and GELU, both as wide as the LLM.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from quintet.components.roles import ConnectorConfig
from quintet.errors import ConfigError
from quintet.values import Features, Layout

__all__ = ["Activation", "Mlp", "Stack"]

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


class Stack(nn.Module):
    """`depth` linear layers: d_in → d_out, then d_out → d_out, the activation between them.

    `first` is the width after the first layer, where it is not d_out.
    `layers` holds the linear layers alone, so that the weights are `layers.0`, `layers.1` … whatever stands between.
    """

    def __init__(
        self,
        *,
        d_in: int,
        d_out: int,
        depth: int,
        bias: bool = True,
        act: Activation = "gelu",
        first: int | None = None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ConfigError(f"depth is {depth}; a connector needs at least one linear layer")
        widths = [d_in, *[d_out] * depth]
        if first is not None and depth > 1:
            widths[1] = first
        self.layers = nn.ModuleList(nn.Linear(widths[i], widths[i + 1], bias=bias) for i in range(depth))
        self.act = (
            nn.GELU(approximate="tanh" if act == "gelu_tanh" else "none")
            if act.startswith("gelu")
            else _ACTIVATIONS[act]()
        )

    def forward(self, values: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            values = layer(self.act(values) if i else values)
        return values


class Mlp(nn.Module):
    """Every feature alone, through a small network."""

    sees_prompt = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ConnectorConfig):
        """How many layers, and what is between them."""

        depth: int = 2
        """Linear layers; with 1 it is a `Linear`."""
        bias: bool = True
        act: Activation = "gelu"
        widen: int | None = None
        """Width after the first layer as a multiple of the encoder's (Prismatic); None: the LLM's width."""

        def __post_init__(self) -> None:
            if self.depth < 1:
                raise ConfigError(f"depth is {self.depth}; a connector needs at least one linear layer")

        def layout(self, layout: Layout) -> Layout:
            return layout

        def build(self, *, d_in: int, d_out: int) -> "Mlp":
            return Mlp(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__()
        self.config = config
        first = None if config.widen is None else config.widen * d_in
        self.project = Stack(d_in=d_in, d_out=d_out, depth=config.depth, bias=config.bias, act=config.act, first=first)

    def forward(self, features: Features) -> Features:
        return Features(self.project(features.values), features.layouts)
