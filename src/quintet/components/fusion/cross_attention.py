"""Feature-level fusion: gated blocks between the LLM's own look at the media, whose columns hold a marker alone.

    y = x + tanh(α) · attention(x, media)        a column that sees no item gets nothing from the attention
    y = y + tanh(β) · feed-forward(y)
    y = the LLM's block(y)

α and β begin at 0, so the model begins as the LLM, exactly; at starter scale α begins open (`Config.start`).
Source: Flamingo (Alayrac et al. 2022, arXiv:2204.14198, section 3.1.2 and figure 4); OpenFlamingo (arXiv:2308.01390)
and IDEFICS (arXiv:2306.16527) differ in data.

Which items a column may look at is the rule of `quintet.values.visible` with the item at its marker: an item counts
from its place on, along its own path. So packing, trees and padding mean here what they mean everywhere. What the
blocks look at is gathered once; with a cache it stays there, and later columns find it by the same rule.
Letters: B rows, T columns, U features of the items of a row, D width of the LLM, C width of the features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from quintet.components.cross import Activation, CrossAttention, FeedForward, Norm, norm
from quintet.components.fusion.splice import splice
from quintet.components.roles import Context, Fusion, FusionConfig
from quintet.components.visible import visible
from quintet.errors import ConfigError
from quintet.values import Batch, Features, Layout

__all__ = ["GatedCrossAttention"]


@dataclass(frozen=True)
class _Memory:
    """The features of each row's items side by side, float[B, U, C], with the place of their item, int64[B, U].

    `kept` has keys and values by block once they were computed without a graph: decoding computes them once.
    """

    values: Tensor
    enter: Tensor
    exit: Tensor
    order: Tensor
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class _View:
    """The memory for the columns of one forward. `mask` bool[B, 1, T, U]; `sees` bool[B, T, 1]: is there any item?"""

    memory: _Memory
    mask: Tensor
    sees: Tensor


class GatedCrossAttention(Fusion):
    """Owns the gated blocks and the marker's embedding (`<image>`), which stands in an item's one column."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FusionConfig):
        """Which blocks, and their sizes as published."""

        every: int = 1
        """A gated block stands before every so many of the LLM's blocks,"""
        first: int = 0
        """from this one on, counted from 0."""
        heads: int
        head_dim: int
        features: int = 0
        """Width of the features that it looks at; 0 is the LLM's."""
        act: Activation
        expand: float = 4.0
        """Width inside the feed-forward layers as a multiple of the LLM's."""
        norm: Norm = "layer"
        qk_norm: bool = False
        """The same norm over each head of queries and keys (IDEFICS)."""
        gate: Literal["scalar", "vector"] = "scalar"
        """Whether α and β are one number or one a channel."""
        start: float = 0.0
        """Where every α begins."""
        look: Literal["last", "all"] = "last"
        """The last item before a column, or all of them."""

        def __post_init__(self) -> None:
            for name, least in {"every": 1, "first": 0, "heads": 1, "head_dim": 1}.items():
                if getattr(self, name) < least:
                    raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}")

        def starter(self) -> Self:
            features = 192 if self.features else 0
            # Block 3 of 32 is block 0 of four. Gates are open, since what is behind them learns through them: in a
            # training of minutes those that begin shut stay shut (docs/log.md).
            return replace(self, every=min(self.every, 2), first=0, heads=6, head_dim=32, features=features, start=0.5)

        def tiny(self) -> Self:
            every = min(self.every, 2)
            first = min(self.first, every - 1)
            return replace(self, every=every, first=first, heads=2, head_dim=8, features=24 if self.features else 0)

        @property
        def needs_blocks(self) -> bool:
            return True

        def columns(self, num_features: int) -> int:
            return 1

        def d_features(self, dim: int) -> int:
            return self.features or dim

        def build(self, *, dim: int, depth: int) -> "GatedCrossAttention":
            return GatedCrossAttention(self, dim=dim, depth=depth)

    def __init__(self, config: Config, *, dim: int, depth: int) -> None:
        super().__init__()
        if config.first >= depth:
            raise ConfigError(f"the first gated block stands before block {config.first}, the LLM has {depth}")
        self.config = config
        self.marker = nn.Parameter(torch.randn(dim) * 0.02)
        count = len(range(config.first, depth, config.every))
        self.blocks = nn.ModuleList(_Block(config, dim=dim, index=i) for i in range(count))

    def inputs(self, embeds: Tensor, features: Mapping[str, Features], batch: Batch) -> Tensor:
        if not features:
            # The marker takes part in every forward, or sharded ranks would wait for its gradient.
            return embeds + 0.0 * self.marker
        for kind, found in features.items():
            markers = Features(self.marker.expand(len(found.layouts), -1), (Layout((1,)),) * len(found.layouts))
            embeds = splice(embeds, markers, batch.media[kind], kind)
        return embeds

    def memory(self, features: Mapping[str, Features], batch: Batch) -> _Memory:
        media = [batch.media[kind] for kind in features]
        counts = torch.tensor([n for found in features.values() for n in found.counts], device=batch.tokens.device)
        # One entry a feature, in the order of `features`: its row and where its item stands.
        row, enter, exit, order = (
            torch.cat([getattr(m, name) for m in media]).repeat_interleave(counts)
            for name in ("row", "enter", "exit", "order")
        )
        rows = len(batch.tokens)
        held = torch.bincount(row, minlength=rows)
        by_row = row.argsort(stable=True)
        starts = (held.cumsum(0) - held).repeat_interleave(held)
        column = torch.empty_like(row).index_copy(0, by_row, torch.arange(len(row), device=row.device) - starts)
        memory = self._blank(rows, int(held.max()), like=next(iter(features.values())).values)
        values = torch.cat([found.values for found in features.values()])
        return _Memory(
            memory.values.index_put((row, column), values),
            memory.enter.index_put((row, column), enter),
            memory.exit.index_put((row, column), exit),
            memory.order.index_put((row, column), order),
        )

    def view(self, memory: _Memory | None, batch: Batch) -> _View:
        if memory is None:
            memory = self._blank(len(batch.tokens), 1, like=self.marker)
        mask = visible(batch.enter, batch.order, key_enter=memory.enter, key_exit=memory.exit, key_order=memory.order)
        if self.config.look == "last":
            order = memory.order[:, None]
            mask = mask & (order == order.masked_fill(~mask, -1).amax(-1, keepdim=True))
        sees = mask.any(-1, keepdim=True)
        # A softmax over nothing is not a number: who sees nothing looks anywhere, and what comes of it is dropped.
        return _View(memory, (mask | ~sees)[:, None], sees)

    def around(self, index: int, block: nn.Module, hidden: Tensor, ctx: Context) -> Tensor:
        number, between = divmod(index - self.config.first, self.config.every)
        if number >= 0 and between == 0:
            hidden = self.blocks[number](hidden, ctx.memory)
        return block(hidden, ctx)

    def rows(self, llm: Any, *, columns: int, media: int, features: int) -> Mapping[nn.Module | Tensor, float]:
        attentions: list[Any] = [block.attn for block in self.blocks]
        return {layer: features for each in attentions for layer in (each.k_proj, each.v_proj)}

    def _blank(self, rows: int, columns: int, *, like: Tensor) -> _Memory:
        """Features that nobody sees: the interval of their item is empty."""
        place = torch.zeros(rows, columns, dtype=torch.int64, device=like.device)
        width = self.config.d_features(len(self.marker))
        return _Memory(like.new_zeros(rows, columns, width), place, place, place)


class _Block(nn.Module):
    """Attention to the media, then a feed-forward layer, each behind its gate."""

    def __init__(self, config: GatedCrossAttention.Config, *, dim: int, index: int) -> None:
        super().__init__()
        self.index = index
        self.attend_norm = norm(config.norm, dim)
        self.attn = CrossAttention(
            dim=dim,
            d_context=config.d_features(dim),
            heads=config.heads,
            head_dim=config.head_dim,
            qk_norm=config.norm if config.qk_norm else None,
        )
        size = 1 if config.gate == "scalar" else dim
        self.attend_gate = nn.Parameter(torch.full((size,), config.start))
        self.feed_norm = norm(config.norm, dim)
        self.mlp = FeedForward(dim=dim, hidden=round(config.expand * dim), act=config.act)
        self.feed_gate = nn.Parameter(torch.zeros(size))

    def forward(self, hidden: Tensor, view: _View) -> Tensor:
        """float[B, T, D] → float[B, T, D]."""
        keys = view.memory.kept.get(self.index)
        if keys is None:
            keys = self.attn.keys(view.memory.values)
            if not torch.is_grad_enabled():
                view.memory.kept[self.index] = keys
        found = self.attn(self.attend_norm(hidden), keys, view.mask).masked_fill(~view.sees, 0.0)
        hidden = hidden + self.attend_gate.tanh() * found
        return hidden + self.feed_gate.tanh() * self.mlp(self.feed_norm(hidden))
