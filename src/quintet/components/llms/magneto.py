"""Magneto, the decoder of Kosmos-1 and Kosmos-2: a norm before and a norm inside of both halves of a block.

Source: Wang et al. 2022, arXiv:2210.06423 (sub-LN); positions by xPos in Kosmos-1 (Sun et al. 2022, arXiv:2212.10554),
by sinusoids in the released Kosmos-2. Layers are those of transformers' `Kosmos2TextForCausalLM`, with which
tests/unit/test_kosmos.py compares; dropout, 0.1 in training, is left out. Attention is ours (`attention.py`).

Shapes: B rows, T columns, D width, H heads, K width of a head, V vocabulary.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.components.llms.attention import plan
from quintet.components.llms.cache import KVCache
from quintet.components.llms.rope import Rope, tables
from quintet.components.roles import Around, Context, LLMConfig, plain
from quintet.errors import ConfigError

__all__ = ["Magneto"]

_FIRST = 2
"""The position of the first token: 0 and 1 are fairseq's for padding."""
_XPOS = 512.0
"""Tokens after which xPos' slowest dimension has fallen to its base (torchscale's scale base)."""


class Magneto(nn.Module):
    """Tokens → hidden states, causal along every path of the message tree."""

    @dataclass(frozen=True, kw_only=True)
    class Config(LLMConfig):
        """Sizes; the defaults are Kosmos'."""

        vocab: int = 0  # pyright: ignore[reportIncompatibleMethodOverride]  # a field is a property here
        dim: int = 2048  # pyright: ignore[reportIncompatibleMethodOverride]
        depth: int = 24  # pyright: ignore[reportIncompatibleMethodOverride]
        heads: int = 32
        ffn: int = 8192
        norm_eps: float = 1e-5
        positions: Literal["xpos", "sinusoid"]
        source: str | None = None
        """Hub name of the published weights."""
        licence: str | None = None

        def __post_init__(self) -> None:
            if self.dim % self.heads or (self.dim // self.heads) % 2:
                raise ConfigError(f"width {self.dim} does not divide into {self.heads} heads of even width")

        def starter(self) -> Self:
            """The shape of the trained small LLM that ships with the package, with this one's traits."""
            return self._small(vocab=2048, dim=192, depth=6, heads=6, ffn=768)

        def tiny(self) -> Self:
            """A shape for tests."""
            return self._small(vocab=512, dim=32, depth=2, heads=4, ffn=64)

        def _small(self, **shape: int) -> Self:
            return replace(self, **shape, source=None, licence=None)

        def build(self, *, vocab: int | None = None) -> "Magneto":
            """The module; `vocab` replaces the published vocabulary when tokens are added."""
            return Magneto(self if vocab is None else replace(self, vocab=vocab))

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.dim, self.depth, self.vocab = cfg.dim, cfg.depth, cfg.vocab
        self.embedding = nn.Embedding(cfg.vocab, cfg.dim)
        self.blocks = nn.ModuleList(_Block(cfg, index=i) for i in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.dim, eps=cfg.norm_eps)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Magneto's: Xavier, values, outputs and feed-forward layers √ln(2 · depth) larger; embeddings 1/√D."""
        gain = math.sqrt(math.log(2 * self.depth))
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight, gain=1.0 if name.endswith(("q_proj", "k_proj")) else gain)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=self.dim**-0.5)

    def embed(self, tokens: Tensor) -> Tensor:
        """int64[B, T] → float[B, T, D]."""
        return self.embedding(tokens)

    def tables(self) -> tuple[Tensor, ...]:
        """The embedding's weight, float[V, D]; it is the head's too."""
        return (self.embedding.weight,)

    def forward(self, embeds: Tensor, ctx: Context, around: Around = plain) -> Tensor:
        """Hidden states after the last norm, float[B, T, D], or float[P, D] of the slots in `ctx.read`.

        Embeddings, those of pictures too, are made √D longer first.
        """
        hidden = embeds * math.sqrt(self.dim)
        turned = ctx.positions
        if self.cfg.positions == "sinusoid":
            hidden = hidden + sinusoids(ctx.positions + _FIRST, self.dim).to(hidden.dtype)
            turned = torch.zeros_like(turned)
        if ctx.attention is None:
            head_dim = self.dim // self.cfg.heads
            ctx = replace(ctx, attention=plan(ctx, rope=tables(Rope(), turned, head_dim=head_dim, dtype=embeds.dtype)))
        for index, block in enumerate(self.blocks):
            hidden = around(index, block, hidden, ctx)
        return self.norm(hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """float[…, D] → logits float[…, V]: the weight is the embedding's."""
        return F.linear(hidden, self.embedding.weight)

    def new_cache(self, rows: int, columns: int) -> KVCache:
        """An empty cache with room for the prompt's columns and those to be generated."""
        shape = (self.depth, rows, self.cfg.heads, columns, self.dim // self.cfg.heads)
        return KVCache(shape, like=self.embedding.weight)


class _Block(nn.Module):
    """Two residual updates, each normed before and once more before its last layer."""

    def __init__(self, cfg: Magneto.Config, *, index: int) -> None:
        super().__init__()
        self.index, self.is_last, self.heads = index, index == cfg.depth - 1, cfg.heads
        self.xpos = cfg.positions == "xpos"
        dim, eps = cfg.dim, cfg.norm_eps
        self.attend_norm, self.inner_norm = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.feed_norm, self.middle_norm = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(cfg.ffn, eps=eps)
        self.up_proj, self.down_proj = nn.Linear(dim, cfg.ffn), nn.Linear(cfg.ffn, dim)

    def forward(self, hidden: Tensor, ctx: Context) -> Tensor:
        hidden = hidden + self.attend(self.attend_norm(hidden), ctx)
        if self.is_last and ctx.read is not None:
            hidden = hidden.flatten(0, 1).index_select(0, ctx.read)
        middle = self.middle_norm(F.gelu(self.up_proj(self.feed_norm(hidden))))
        return hidden + self.down_proj(middle)

    def attend(self, x: Tensor, ctx: Context) -> Tensor:
        """What attention adds to float[B, T, D]."""
        assert ctx.attention is not None, "Magneto.forward sets ctx.attention"
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.xpos:
            scale = decay(ctx.positions, q.shape[-1]).to(q.dtype)
            q, k = q * scale, k / scale
        found = ctx.attention(self.index, q, k, v).transpose(1, 2).flatten(2)
        return self.o_proj(self.inner_norm(found))


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of int64[B, T]: float32[B, T, dim], with fairseq's rates."""
    half = dim // 2
    rates = torch.exp(torch.arange(half, device=positions.device).float() * -(math.log(10_000) / (half - 1)))
    angles = positions[..., None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def decay(positions: Tensor, head_dim: int) -> Tensor:
    """What xPos multiplies queries by, and divides keys by: float32[B, 1, T, K], the same for both of a rotated pair.

    A product then falls with the distance: the slower a dimension turns, the less.
    """
    half = torch.arange(0, head_dim, 2, device=positions.device).float()
    base = (half + 0.4 * head_dim) / (1.4 * head_dim)
    scale = base ** (positions[:, None, :, None].float() / _XPOS)
    return torch.cat([scale, scale], -1)
