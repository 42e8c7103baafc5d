"""What resamplers and gated blocks are made of: attention from one sequence to another, and a feed-forward layer.

Linear layers have no bias, as in Perceiver and Flamingo, and the field's names, so that LoRA targets mean what they
say. Shapes: B rows, T queries, U keys, D width, C width of what is looked at, H heads, K width of a head.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from quintet.components.llms.decoder import RMSNorm

__all__ = ["Activation", "CrossAttention", "FeedForward", "Norm", "norm"]

Activation = Literal["gelu", "relu", "squared_relu", "swiglu"]
Norm = Literal["layer", "rms"]


def norm(kind: Norm, dim: int) -> nn.Module:
    """LayerNorm with torch's epsilon, or LLaMA's RMSNorm with its 1e-6."""
    return nn.LayerNorm(dim) if kind == "layer" else RMSNorm(dim, eps=1e-6)


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from another; positions play no part. The caller norms both."""

    def __init__(self, *, dim: int, d_context: int, heads: int, head_dim: int, qk_norm: Norm | None) -> None:
        """`qk_norm` norms each head of queries and keys (IDEFICS)."""
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(d_context, heads * head_dim, bias=False)
        self.v_proj = nn.Linear(d_context, heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, dim, bias=False)
        self.q_norm = norm(qk_norm, head_dim) if qk_norm else nn.Identity()
        self.k_norm = norm(qk_norm, head_dim) if qk_norm else nn.Identity()

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values float[B, H, U, K] of float[B, U, C]."""
        v = self._heads(self.v_proj(context))
        return self.k_norm(self._heads(self.k_proj(context))).to(v.dtype), v

    def forward(self, x: Tensor, keys: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        """float[B, T, D] → what attention gives, float[B, T, D]; `mask` bool[B, 1, T, U] is true where one may look."""
        k, v = keys
        q = self.q_norm(self._heads(self.q_proj(x))).to(v.dtype)
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """down(act(up(x))), or LLaMA's down(silu(gate(x)) · up(x)). Squared ReLU: So et al. 2021, arXiv:2109.08668."""

    def __init__(self, *, dim: int, hidden: int, act: Activation) -> None:
        super().__init__()
        self.act = act
        self.gate_proj = nn.Linear(dim, hidden, bias=False) if act == "swiglu" else None
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up_proj(x)
        if self.gate_proj is not None:
            return self.down_proj(F.silu(self.gate_proj(x)) * up)
        if self.act == "gelu":
            return self.down_proj(F.gelu(up))
        positive = F.relu(up)
        return self.down_proj(positive * positive if self.act == "squared_relu" else positive)
