"""The layer of ViT-22B: attention and feed-forward side by side on one norm, queries and keys normalised.

    h + attention(norm(h)) + mlp(norm(h))

Source: Dehghani et al. 2023, arXiv:2302.05442, section 2. No biases on queries, keys and values; norms without bias and
without centring; the linear layers of the two branches' ends and of the feed-forward have biases. There are no released
weights, so the names are ours.
"""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ParallelLayer"]


class ParallelLayer(nn.Module):
    """hidden float[N, L, D] → the same; all tokens see each other."""

    def __init__(self, *, width: int, heads: int, ffn: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.RMSNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, eps=eps) for _ in range(2))
        self.o_proj = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.norm(hidden)
        q, k, v = self.qkv(normed).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Without the two norms attention's logits grew until the training of 8 billion parameters diverged (figure 1).
        mixed = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v).transpose(1, 2).flatten(2)
        return hidden + self.o_proj(mixed) + self.down(F.gelu(self.up(normed)))
