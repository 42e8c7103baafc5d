"""Mixture-of-modality adapters: before the attention of every block, by ways that depend on what a column sees.

    text alone      ─► weights of the token "text"  ─┐
                                                     ├─► norm ─► adapter ─► the block's attention ─► …
    with a picture  ─► weights of the token "image" ─┘

Each of the two tokens is a learned embedding that goes through the blocks by itself; before each attention its state
there says how the ways are mixed. In LaVIN's code it is the first token of a text, which sees nothing but itself, and
nothing looks at it (`model.py`, "mask decision token"): so it is the same in every text of its kind, and here the two
are computed once a forward, beside the columns.

Where we differ: there a text that has a picture is of that kind from its first token on; here a column is from the
picture on. What was said before is read as it was said, packed, in a tree or in a chat.

Source: LaVIN (Luo et al. 2023, arXiv:2305.15023, section 3.1). Shapes: B rows, T columns, N items, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from quintet.components.fusion.expert import decoder_config
from quintet.components.fusion.token import TokenFusion
from quintet.components.llms.decoder import Block
from quintet.components.roles import Context, LLMConfig
from quintet.components.routed import RoutedAdapter
from quintet.errors import ConfigError
from quintet.values import Batch, Features

__all__ = ["ModalityAdapters"]

TEXT, IMAGE = 0, 1


@dataclass(frozen=True)
class _View:
    """Which token each column is routed by, int64[B, T], and the tokens before each block so far, float[2, D]."""

    which: Tensor
    tokens: list[Tensor] = field(default_factory=list)


class ModalityAdapters(TokenFusion):
    """Writes features at their columns, as `TokenFusion` does, and adapts what every attention reads."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TokenFusion.Config):
        """How narrow an adapter is, and how evenly its ways are mixed."""

        narrow: int = 8
        groups: int = 2
        temperature: float = 10.0
        """What the router's numbers are divided by; LaVIN has 10 with 7 B, and 5 with 13 B and in its chat model."""

        def __post_init__(self) -> None:
            if self.narrow < 1 or self.groups < 1 or self.temperature <= 0:
                raise ConfigError(
                    f"narrow is {self.narrow}, groups {self.groups}, temperature {self.temperature}; all are positive"
                )

        def tiny(self) -> Self:
            return replace(self, narrow=4)

        @property
        def needs_blocks(self) -> bool:
            return True

        def build_for(self, llm: LLMConfig) -> "ModalityAdapters":
            decoder = decoder_config(llm, "a mixture-of-modality adapter")
            return ModalityAdapters(self, dim=decoder.dim, depth=decoder.depth)

    def __init__(self, config: Config, *, dim: int, depth: int) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Parameter(torch.randn(2, dim))
        self.adapters = nn.ModuleList(
            RoutedAdapter(dim, narrow=config.narrow, groups=config.groups, temperature=config.temperature)
            for _ in range(depth)
        )

    def memory(self, features: Mapping[str, Features], batch: Batch) -> Any:
        """Where the items stand, int64[4, N]: row, enter, exit, order."""
        media = [batch.media[kind] for kind in features]
        return torch.stack([torch.cat([getattr(m, name) for m in media]) for name in ("row", "enter", "exit", "order")])

    def view(self, memory: Tensor | None, batch: Batch) -> _View:
        which = torch.full_like(batch.enter, TEXT)
        if memory is not None:
            row, enter, exit, order = memory
            rows = torch.arange(len(which), device=which.device)[:, None, None]
            own, mine = batch.enter[..., None], batch.order[..., None]
            seen = (row == rows) & (enter <= own) & (own < exit) & (order <= mine)
            which = which.masked_fill(seen.any(-1), IMAGE)
        return _View(which, [self.tokens])

    def around(self, index: int, block: nn.Module, hidden: Tensor, ctx: Context) -> Tensor:
        view: _View = ctx.memory
        tokens = view.tokens[index].to(hidden.dtype)
        # What a block is given may be a copy where weights are sharded, so what it adds to the view is lost: it returns
        # the tokens, and they are noted here.
        hidden, tokens = block(hidden, ctx, lambda block, hidden, ctx: self._run(index, block, hidden, tokens, ctx))
        view.tokens.append(tokens)
        return hidden

    def _run(self, index: int, block: Block, hidden: Tensor, tokens: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """Columns float[B, T, D] and tokens float[2, D] behind the block."""
        x, own = block.attend_norm(hidden), block.attend_norm(tokens)
        which = torch.cat([ctx.memory.which.flatten(), torch.arange(len(own), device=own.device)])
        adapted = self.adapters[index](torch.cat([x.flatten(0, 1), own]), own, which)
        hidden = hidden + block.attn(adapted[: -len(own)].view_as(x), ctx)
        return hidden + block.feed(hidden), _alone(block, tokens, adapted[-len(own) :])


def _alone(block: Block, tokens: Tensor, adapted: Tensor) -> Tensor:
    """The block for tokens that see nothing but themselves, float[2, D]: attention gives each its own value."""
    attn = block.attn
    _, _, values = attn.project(adapted)
    tokens = tokens + attn.o_proj(values.repeat_interleave(attn.heads // attn.kv_heads, dim=-2).flatten(-2))
    return tokens + block.feed(tokens)
