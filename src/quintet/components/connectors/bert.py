"""BERT's layers, with cross-attention and with a second feed-forward for words: what a Q-Former is made of.

Letters: N items, T tokens, S that they look at, D width, E width of what they look at.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.errors import ConfigError

__all__ = ["BertAttention", "BertFeedForward", "BertLayer", "Sizes", "embed", "initialise"]


class Sizes(Protocol):
    """What the layers must be told; a Q-Former's Config is one."""

    @property
    def dim(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def ffn(self) -> int: ...
    @property
    def eps(self) -> float: ...


class BertAttention(nn.Module):
    """BERT's attention: the norm comes after the residual."""

    def __init__(self, config: Sizes, *, d_key: int) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.q_proj, self.o_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k_proj, self.v_proj = nn.Linear(d_key, dim), nn.Linear(d_key, dim)
        self.norm = nn.LayerNorm(dim, eps=config.eps)

    def forward(self, hidden: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
        """float[N, T, D] looks at float[N, S, E]; `mask` bool[N, 1, T or 1, S], true where it may."""
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for p, x in ((self.q_proj, hidden), (self.k_proj, seen), (self.v_proj, seen))
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.norm(hidden + self.o_proj(out.transpose(1, 2).flatten(2)))


class BertFeedForward(nn.Module):
    """Two linear layers with GELU between, then the norm behind the residual."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(config.dim, config.ffn), nn.Linear(config.ffn, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden + self.down(F.gelu(self.up(hidden))))


class BertLayer(nn.Module):
    """Queries and words attend to each other, queries look at the picture, and each has a feed-forward of its own."""

    def __init__(self, config: Sizes, *, d_in: int, cross: bool, words: bool) -> None:
        super().__init__()
        self.attention = BertAttention(config, d_key=config.dim)
        self.cross = BertAttention(config, d_key=d_in) if cross else None
        self.ffn = BertFeedForward(config)
        self.ffn_words = BertFeedForward(config) if words else None

    def forward(
        self,
        hidden: Tensor,
        picture: Tensor | None,
        queries: int,
        mask: Tensor | None,
        ffn_words: nn.Module | None = None,
    ) -> Tensor:
        """float[N, T, D], of which the first `queries` are queries; `ffn_words` in its own one's place."""
        hidden = self.attention(hidden, hidden, mask)
        ffn_words = self.ffn_words if ffn_words is None else ffn_words
        asked, words = hidden[:, :queries], hidden[:, queries:]
        if queries:
            if self.cross is not None:
                assert picture is not None, "queries need a picture"
                asked = self.cross(asked, picture, None)
            asked = self.ffn(asked)
        if ffn_words is None or not words.shape[1]:
            # Nobody reads the last layer's words.
            return asked
        return torch.cat([asked, ffn_words(words)], 1)


def embed(ids: Tensor, words: nn.Embedding, positions: nn.Embedding, *, what: str) -> Tensor:
    """Each word and its place."""
    if ids.shape[1] > positions.num_embeddings:
        raise ConfigError(
            f"{what} of {ids.shape[1]} tokens; the Q-Former reads at most {positions.num_embeddings}: "
            "raise its `positions` or shorten the text"
        )
    return words(ids) + positions.weight[: ids.shape[1]]


def initialise(part: nn.Module, *, dim: int) -> None:
    """BERT's: normal weights of 0.02 at its width of 768 and in proportion at others, no biases.

    0.02 for all widths leaves attention flat where they are small: at 192 nothing is compared for hundreds of steps.
    """
    for module in part.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02 * (768 / dim) ** 0.5)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
