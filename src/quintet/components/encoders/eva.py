"""The layer of EVA2-CLIP-E: norms after the branches, not before them, and queries, keys and values in one matrix.

Source: EVA-CLIP (Sun et al. 2023, arXiv:2303.15389) as CogVLM's code has it (`visual.py`); the names are its file's.
"""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EvaLayer"]


class EvaLayer(nn.Module):
    """h + norm(attention(h)), then h + norm(mlp(h)), on hidden float[N, L, D]; all tokens see each other."""

    def __init__(self, *, width: int, heads: int, ffn: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.input_layernorm = nn.LayerNorm(width, eps=eps)
        self.attention = nn.ModuleDict(
            {"query_key_value": nn.Linear(width, 3 * width), "dense": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, ffn), "fc2": nn.Linear(ffn, width)})
        self.post_attention_layernorm = nn.LayerNorm(width, eps=eps)

    def forward(self, hidden: Tensor, mask: None = None) -> Tensor:
        """`mask` is there for the other layers' sake; there is none."""
        packed = self.attention["query_key_value"](hidden).unflatten(-1, (3, self.heads, -1))
        mixed = F.scaled_dot_product_attention(*packed.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)
        hidden = hidden + self.input_layernorm(self.attention["dense"](mixed))
        return hidden + self.post_attention_layernorm(self.mlp["fc2"](F.gelu(self.mlp["fc1"](hidden))))
