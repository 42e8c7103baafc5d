"""Biases and scales for the linear layers of a frozen block, and factors for its norms: y = s · (Wx + b).

Biases begin at 0, scales and factors at 1, so the LLM begins as it was. A norm's factor times its weight is what tuning
the weight itself would be. Source: LLaMA-Adapter V2 (Gao et al. 2023, arXiv:2304.15010, section 3.1); its code has the
biases and norms alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quintet.components.llms.decoder import Block, Decoder

__all__ = ["Tuned", "Tuning"]

_NORMS = ("attend_norm", "feed_norm")


@dataclass(frozen=True)
class Tuned:
    """A block's layers with what is tuned of them, by the layer's name; without an entry the layer as it is."""

    scale: dict[str, Tensor]
    bias: dict[str, Tensor]

    def linear(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        """The tuned layer: s · (Wx + b)."""
        y = layer(x)
        return self.scale[name] * (y + self.bias[name]) if name in self.scale else y

    def direction(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        """What a change of `x` changes: s · Wx."""
        y = layer(x)
        return self.scale[name] * y if name in self.scale else y

    def norm(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        """The norm with its factor."""
        y = layer(x)
        return y * self.scale[name] if name in self.scale else y

    def feed(self, block: Block, hidden: Tensor) -> Tensor:
        """What the feed-forward layer adds to `hidden`, float[B, T, D]."""
        x, mlp = self.norm("feed_norm", block.feed_norm, hidden), block.mlp
        inside = nn.functional.silu(self.linear("gate_proj", mlp.gate_proj, x)) * self.linear("up_proj", mlp.up_proj, x)
        return self.linear("down_proj", mlp.down_proj, inside)


class Tuning(nn.Module):
    """What is tuned of one block: as many numbers as its layers have outputs, twice, and its norms' widths."""

    def __init__(self, llm: Decoder.Config) -> None:
        super().__init__()
        queries, keys = llm.heads * llm.head_width, llm.kv_heads * llm.head_width
        widths = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "o_proj": llm.dim}
        widths |= {"gate_proj": llm.ffn, "up_proj": llm.ffn, "down_proj": llm.dim}
        self.bias = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name, width in widths.items()})
        widths |= dict.fromkeys(_NORMS, llm.dim)
        self.scale = nn.ParameterDict({name: nn.Parameter(torch.ones(width)) for name, width in widths.items()})

    def forward(self) -> Tuned:
        """Copies: sharded weights are whole within this call alone."""
        return Tuned(
            {name: value.clone() for name, value in self.scale.items()},
            {name: value.clone() for name, value in self.bias.items()},
        )
