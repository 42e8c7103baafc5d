"""Our own decoder: Llama, Mistral, Qwen2 and Qwen3 are one class with different settings.

    embed ─► block 0 ─► block 1 ─► … ─► norm ─► head
               each called through `around`, so that fusion can stand around it

A block is two residual updates, `attend` and `feed`, that can be called apart. It owns no mask and no positions: both
are in `ctx.attention`, made once per forward (`quintet.components.llms.attention`). Nothing is stored on a layer
between calls. Shapes: B rows, T columns, D width, H heads, K width of a head, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.components.llms.attention import plan
from quintet.components.llms.cache import KVCache
from quintet.components.llms.fused import rms_norm
from quintet.components.llms.rope import Rope, tables
from quintet.components.roles import Around, Context, LLMConfig, plain
from quintet.errors import ConfigError

__all__ = ["Attention", "Block", "Decoder", "FeedForward", "Inside", "RMSNorm"]

INIT_STD = 0.02
"""Standard deviation of every initial weight, as in all four families."""


class Decoder(nn.Module):
    """Tokens → hidden states, causal along every path of the message tree."""

    @dataclass(frozen=True, kw_only=True)
    class Config(LLMConfig):
        """Widths in units, counts of layers and heads, as the published `config.json` gives them."""

        family: Literal["llama", "mistral", "qwen2", "qwen3"] = "llama"
        """Decides the names of published weights, nothing else: what differs in the maths has its own field."""
        vocab: int = 0  # pyright: ignore[reportIncompatibleMethodOverride]  # a field is a property here
        dim: int = 0  # pyright: ignore[reportIncompatibleMethodOverride]
        depth: int = 0  # pyright: ignore[reportIncompatibleMethodOverride]
        heads: int
        kv_heads: int
        ffn: int
        """Hidden width of the gated feed-forward layer."""
        head_dim: int | None = None
        """Width of a head; None is dim / heads."""
        norm_eps: float = 1e-6
        rope: Rope = field(default_factory=Rope)
        qkv_bias: bool = False
        qk_norm: bool = False
        """RMS norm over each head of queries and keys (Qwen3)."""
        tie_head: bool = False
        """Whether the head's weight is the embedding's."""
        sliding_window: int | None = None
        """Tokens a token looks back, itself included; None is all (Mistral from v0.2 on)."""
        max_positions: int = 4096
        """Tokens of context it was trained for."""
        source: str | None = None
        """Hub name of the published weights."""
        licence: str | None = None
        """Licence of the published weights, as its holder names it."""

        def __post_init__(self) -> None:
            for name in ("vocab", "dim", "depth", "heads", "kv_heads", "ffn"):
                if getattr(self, name) < 1:
                    raise ConfigError(f"{name} is {getattr(self, name)}; a decoder needs at least 1")
            if self.heads % self.kv_heads:
                raise ConfigError(f"{self.heads} heads do not share {self.kv_heads} key heads evenly")
            if self.head_dim is None and self.dim % self.heads:
                raise ConfigError(f"dim {self.dim} does not split into {self.heads} heads; set head_dim")
            if self.head_width % 2:
                raise ConfigError(f"a head is {self.head_width} wide; rotary positions need an even width")
            if self.sliding_window is not None and self.sliding_window < 1:
                raise ConfigError(f"sliding_window is {self.sliding_window}; a token at least sees itself")

        @property
        def head_width(self) -> int:
            return self.dim // self.heads if self.head_dim is None else self.head_dim

        def starter(self) -> Self:
            """The shape of the trained small LLM that ships with the package, with this family's traits."""
            return self._small(vocab=2048, dim=192, depth=6, heads=6, kv_heads=2, ffn=512)

        def tiny(self) -> Self:
            """A shape for tests, with this family's traits."""
            return self._small(vocab=512, dim=32, depth=2, heads=4, kv_heads=2, ffn=64)

        def _small(self, **shape: int) -> Self:
            return replace(
                self,
                **shape,
                head_dim=None,
                rope=Rope(),
                tie_head=True,
                sliding_window=None,
                max_positions=4096,
                source=None,
                licence=None,
            )

        def build(self, *, vocab: int | None = None) -> "Decoder":
            """The module; `vocab` replaces the published vocabulary when tokens are added."""
            return Decoder(self if vocab is None else replace(self, vocab=vocab))

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.dim, self.depth, self.vocab = cfg.dim, cfg.depth, cfg.vocab
        self.embedding = nn.Embedding(cfg.vocab, cfg.dim)
        self.blocks = nn.ModuleList(Block(cfg, index=i) for i in range(cfg.depth))
        self.norm = RMSNorm(cfg.dim, eps=cfg.norm_eps)
        # A tied head is no module: the weight exists once, in memory and on disk.
        self.lm_head = None if cfg.tie_head else nn.Linear(cfg.dim, cfg.vocab, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial weights: normal with `INIT_STD`, biases zero, norms one. Uses torch's generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(std=INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, nn.RMSNorm):
                module.reset_parameters()

    def embed(self, tokens: Tensor) -> Tensor:
        """int64[B, T] → float[B, T, D]."""
        return self.embedding(tokens)

    def forward(self, embeds: Tensor, ctx: Context, around: Around = plain) -> Tensor:
        """Hidden states after the last norm, float[B, T, D], or float[P, D] of the slots in `ctx.read`.

        With `ctx.cache` the columns are appended to it. A `ctx.attention` that is already set is used as it is.
        """
        if ctx.attention is None:
            rope = tables(self.cfg.rope, ctx.positions, head_dim=self.cfg.head_width, dtype=embeds.dtype)
            ctx = replace(ctx, attention=plan(ctx, rope=rope, window=self.cfg.sliding_window))
        hidden = embeds
        for index, block in enumerate(self.blocks):
            hidden = around(index, block, hidden, ctx)
        return self.norm(hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """float[…, D] → logits float[…, V]."""
        return F.linear(hidden, self.embedding.weight) if self.lm_head is None else self.lm_head(hidden)

    def tables(self) -> tuple[Tensor, ...]:
        """The embedding's weight, and the head's unless it is tied: float[V, D] each."""
        head = () if self.lm_head is None else (self.lm_head.weight,)
        return self.embedding.weight, *head

    def new_cache(self, rows: int, columns: int) -> KVCache:
        """An empty cache with room for the prompt's columns and those to be generated."""
        shape = (self.depth, rows, self.cfg.kv_heads, columns, self.cfg.head_width)
        return KVCache(shape, like=self.embedding.weight)


class Block(nn.Module):
    """Two residual updates: h + attend(h), then h + feed(h). `index` is its place, from 0."""

    def __init__(self, cfg: Decoder.Config, *, index: int) -> None:
        super().__init__()
        self.index, self.is_last = index, index == cfg.depth - 1
        self.attend_norm = RMSNorm(cfg.dim, eps=cfg.norm_eps)
        self.attn = Attention(cfg, index=index)
        self.feed_norm = RMSNorm(cfg.dim, eps=cfg.norm_eps)
        self.mlp = FeedForward(cfg)

    def forward(self, hidden: Tensor, ctx: Context, inside: "Inside | None" = None) -> Tensor:
        """`inside` runs instead of the two updates: within this call sharded weights are whole."""
        if inside is not None:
            return inside(self, hidden, ctx)
        hidden = hidden + self.attend(hidden, ctx)
        if self.is_last and ctx.read is not None:
            hidden = hidden.flatten(0, 1).index_select(0, ctx.read)
        return hidden + self.feed(hidden)

    def attend(self, hidden: Tensor, ctx: Context) -> Tensor:
        """What attention adds to `hidden`, float[B, T, D]; the residual is the caller's."""
        return self.attn(self.attend_norm(hidden), ctx)

    def feed(self, hidden: Tensor) -> Tensor:
        """What the feed-forward layer adds to `hidden`, float[B, T, D]; the residual is the caller's."""
        return self.mlp(self.feed_norm(hidden))


Inside = Callable[[Block, Tensor, Context], Any]
"""(block, hidden float[B, T, D], ctx) → hidden, or what the fusion wants back: what it does with a block's pieces."""


class Attention(nn.Module):
    """Projections around `ctx.attention`. Names of the layers are the field's, so LoRA targets mean what they say."""

    def __init__(self, cfg: Decoder.Config, *, index: int) -> None:
        super().__init__()
        self.index, self.heads, self.kv_heads = index, cfg.heads, cfg.kv_heads
        width, bias = cfg.head_width, cfg.qkv_bias
        self.q_proj = nn.Linear(cfg.dim, cfg.heads * width, bias=bias)
        self.k_proj = nn.Linear(cfg.dim, cfg.kv_heads * width, bias=bias)
        self.v_proj = nn.Linear(cfg.dim, cfg.kv_heads * width, bias=bias)
        self.o_proj = nn.Linear(cfg.heads * width, cfg.dim, bias=False)
        self.q_norm = RMSNorm(width, eps=cfg.norm_eps) if cfg.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width, eps=cfg.norm_eps) if cfg.qk_norm else nn.Identity()

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        assert ctx.attention is not None, "Decoder.forward sets ctx.attention"
        q, k, v = (each.transpose(1, 2) for each in self.project(x))
        return self.o_proj(ctx.attention(self.index, q, k, v).transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries float[…, H, K], keys and values float[…, Hkv, K], before positions, of `x` float[…, D]."""
        q = self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, -1)))
        k = self.k_norm(self.k_proj(x).unflatten(-1, (self.kv_heads, -1)))
        return q, k, self.v_proj(x).unflatten(-1, (self.kv_heads, -1))


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm in the weight's precision: under autocast the input comes in bfloat16 (query norms)."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, cfg: Decoder.Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(cfg.dim, cfg.ffn, bias=False)
        self.up_proj = nn.Linear(cfg.dim, cfg.ffn, bias=False)
        self.down_proj = nn.Linear(cfg.ffn, cfg.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
