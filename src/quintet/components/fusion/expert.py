"""A visual expert in every layer: columns of pictures have projections and feed-forward weights of their own.

    text columns    ─► q, k, v of the LLM  ─┐                        ┌─► o of the LLM    ─► feed-forward of the LLM
                                            ├─► one joint attention ─┤
    image columns   ─► q, k, v of expert   ─┘                        └─► o of the expert ─► feed-forward of the expert

The norms are shared. Expert weights begin as copies of the LLM's, and where a forward reads no picture nothing but the
LLM runs, so text alone is computed exactly as by the LLM.

Source: CogVLM (Wang et al. 2023, arXiv:2311.03079, section 2.1) and its code (`cogvlm_model.py`, `mixin.py`).
Shapes: B rows, T columns, S columns of pictures, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quintet import dist
from quintet.components.fusion.token import TokenFusion
from quintet.components.llms.decoder import Attention, Block, Decoder, FeedForward
from quintet.components.roles import Context, LLMConfig
from quintet.errors import ConfigError
from quintet.values import Batch, Features, MediaBatch

__all__ = ["VisualExpert", "decoder_config"]


class VisualExpert(TokenFusion):
    """Writes features at their columns, as `TokenFusion` does, and gives these columns weights of their own."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TokenFusion.Config):
        """Which columns of a picture the expert serves. Its sizes are the LLM's."""

        serves_last: bool = True
        """Whether the last column of an item is the expert's too. CogVLM's code leaves its end-of-image column to the
        LLM's weights; the paper does not say."""

        @property
        def needs_blocks(self) -> bool:
            return True

        @property
        def deep(self) -> bool:
            return True

        def build_for(self, llm: LLMConfig) -> "VisualExpert":
            return VisualExpert(self, decoder_config(llm, "a visual expert"))

    def __init__(self, config: Config, llm: Decoder.Config) -> None:
        super().__init__()
        self.config = config
        layers = [_Expert(llm, index=i) for i in range(llm.depth)]
        self.layers = nn.ModuleList(layers)
        if not config.serves_last:
            # No text is predicted from a patch: of the last layer only keys and values are read. What nothing reads
            # gets no gradient, ever, so it is held and saved, but is no parameter.
            attn, mlp = layers[-1].attn, layers[-1].mlp
            for module in (attn.q_proj, attn.q_norm, attn.o_proj, mlp):
                _hold(module)

    @torch.no_grad()
    def begin(self, llm: Any) -> None:
        for layer, block in zip(self.layers, llm.blocks, strict=True):
            layer.load_state_dict({n: t for n, t in block.state_dict().items() if n.startswith(("attn.", "mlp."))})

    def memory(self, features: Mapping[str, Features], batch: Batch) -> Any:
        return self._split(batch.media, batch.tokens)

    def around(self, index: int, block: nn.Module, hidden: Tensor, ctx: Context) -> Tensor:
        # Sharded weights are gathered by all ranks or by none: there the expert runs on no columns, too.
        if not ctx.media and dist.world() == 1:
            return block(hidden, ctx)
        split = ctx.memory if ctx.media else self._split({}, ctx.enter)
        return block(hidden, ctx, lambda block, hidden, ctx: self.layers[index](block, hidden, ctx, split))

    def rows(self, llm: Any, *, columns: int, media: int, features: int) -> Mapping[nn.Module | Tensor, float]:
        served = media if self.config.serves_last else max(0, media - 1)
        return {llm: columns - served, self: served}

    def _split(self, media: Mapping[str, MediaBatch], like: Tensor) -> "_Split":
        """The columns of int64[B, T], picture or text."""
        mine = torch.zeros(like.numel(), dtype=torch.bool, device=like.device)
        for m in media.values():
            mine[m.slots] = True
            if not self.config.serves_last:
                last = torch.tensor(m.counts, device=like.device).cumsum(0) - 1
                mine[m.slots[last]] = False
        text, image = (~mine).nonzero().flatten(), mine.nonzero().flatten()
        return _Split(text, image, torch.cat([text, image]).argsort())


@dataclass(frozen=True)
class _Split:
    """Flat columns of text and of pictures, and where each column is when one stands after the other."""

    text: Tensor
    image: Tensor
    back: Tensor

    def through(self, x: Tensor, llm: Callable[[Tensor], Tensor], expert: Callable[[Tensor], Tensor]) -> Tensor:
        """float[B, T, …], text columns through `llm`, image columns through `expert`."""
        flat = x.flatten(0, 1)
        out = torch.cat([llm(flat.index_select(0, self.text)), expert(flat.index_select(0, self.image))])
        return out.index_select(0, self.back).unflatten(0, x.shape[:2])


class _Expert(nn.Module):
    """The expert's share of one block."""

    def __init__(self, llm: Decoder.Config, *, index: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(llm, index=index), FeedForward(llm)

    def forward(self, block: Block, hidden: Tensor, ctx: Context, split: _Split) -> Tensor:
        assert ctx.attention is not None
        heads = split.through(block.attend_norm(hidden), _joined(block.attn), _joined(self.attn)).transpose(1, 2)
        count = [self.attn.heads, self.attn.kv_heads, self.attn.kv_heads]
        mixed = ctx.attention(self.attn.index, *heads.split(count, dim=1)).transpose(1, 2).flatten(2)
        hidden = hidden + split.through(mixed, block.attn.o_proj, self.attn.o_proj)
        return hidden + split.through(block.feed_norm(hidden), block.mlp, self.mlp)


def _hold(module: nn.Module) -> None:
    """Every parameter below becomes a buffer of the same name."""
    for owner in module.modules():
        for name, value in list(owner.named_parameters(recurse=False)):
            delattr(owner, name)
            owner.register_buffer(name, value.detach())


def _joined(attn: Attention) -> Callable[[Tensor], Tensor]:
    """Queries, keys and values in one tensor, head after head."""
    return lambda x: torch.cat(attn.project(x), dim=-2)


def decoder_config(llm: LLMConfig, what: str) -> Decoder.Config:
    """The config of our own decoder, whose blocks can be taken apart.

    Raises:
        ConfigError: another LLM.
    """
    if not isinstance(llm, Decoder.Config):
        raise ConfigError(f"{what} works inside the blocks of our own decoder; {type(llm).__qualname__} has none")
    return llm
