"""Learned prompts that the upper layers may look at, behind gates that start at zero.

    out = attention(q, k, v) + tanh(gate) · softmax(q · kₚ) vₚ     kₚ, vₚ: the layer's prompts through its projections

The softmax over the prompts is one of its own, prompts have no position, and every column may look at them. With gates
at zero the LLM is what it was. A picture takes one column, a mark of its place; from there on it acts

    added   LLaMA-Adapter: its feature is added to the prompts of all adapted layers
    first   LLaMA-Adapter V2: its features are prompts of the first layer, behind a gate of that layer's own; the
            prompts of the other layers stay as they are

`tuned` adds what LLaMA-Adapter V2 tunes besides: y = s · (Wx + b) in every linear layer, and the norms.

Sources: LLaMA-Adapter (Zhang et al. 2023, arXiv:2303.16199, sections 3.1 to 3.3) and V2 (Gao et al. 2023,
arXiv:2304.15010, sections 3.1 to 3.3). The queries are turned to their positions as in the code. With several pictures
in sight their features are summed; the papers have one. Shapes: B rows, T columns, H heads, W width of a head, N items
of n features, P prompts, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from quintet import dist
from quintet.components.fusion.expert import decoder_config
from quintet.components.fusion.splice import splice
from quintet.components.fusion.tuning import Tuned, Tuning
from quintet.components.llms.attention import Attend
from quintet.components.llms.decoder import Attention, Block, Decoder
from quintet.components.roles import Context, Fusion, FusionConfig, LLMConfig
from quintet.errors import ConfigError
from quintet.values import Batch, Features, Layout

__all__ = ["AdaptionPrompts", "Items"]


class AdaptionPrompts(Fusion):
    """Prompts for the upper layers; parts `fusion.prompts`, and in V2 `fusion.early` and `fusion.tuning`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FusionConfig):
        """How many prompts, in which layers, and what a picture does."""

        length: int = 10
        """Prompts a layer."""
        skip: int = 2
        """Layers at the bottom that have none."""
        visual: Literal["added", "first"] = "added"
        tuned: bool = False
        """Whether linear layers have biases and scales, and norms are tuned."""

        def __post_init__(self) -> None:
            if self.length < 1 or self.skip < 0:
                raise ConfigError(f"length is {self.length} and skip {self.skip}; they must be at least 1 and 0")
            if self.visual == "first" and not self.skip:
                raise ConfigError("pictures are the first layer's prompts (visual='first'); skip at least that layer")

        def starter(self) -> Self:
            return replace(self, skip=min(self.skip, 1))

        def tiny(self) -> Self:
            return replace(self, skip=int(self.visual == "first"))

        @property
        def needs_blocks(self) -> bool:
            return True

        def columns(self, num_features: int) -> int:
            return 1

        def build_for(self, llm: LLMConfig) -> "AdaptionPrompts":
            decoder = decoder_config(llm, "an adaption prompt")
            if decoder.qkv_bias or decoder.qk_norm:
                raise ConfigError(
                    "adaption prompts are for LLMs without biases and norms on queries and keys (LLaMA, Vicuna, "
                    f"Mistral); {decoder.family} has them"
                )
            if self.skip >= decoder.depth:
                raise ConfigError(
                    f"skip is {self.skip}, and the LLM has {decoder.depth} layers: none would have prompts"
                )
            return AdaptionPrompts(self, decoder)

    def __init__(self, config: Config, llm: Decoder.Config) -> None:
        super().__init__()
        self.config = config
        self.prompts = nn.ModuleList(_Prompts(config.length, llm) for _ in range(config.skip, llm.depth))
        self.early = nn.ModuleList([_Gate(llm.heads)] if config.visual == "first" else [])
        self.tuning = nn.ModuleList([Tuning(llm) for _ in range(llm.depth)] if config.tuned else [])

    def parts(self) -> dict[str, nn.Module]:
        return {"fusion.prompts": self.prompts, "fusion.early": self.early, "fusion.tuning": self.tuning}

    def inputs(self, embeds: Tensor, features: Mapping[str, Features], batch: Batch) -> Tensor:
        """A picture's column says nothing: zeros."""
        for kind, found in features.items():
            marks = Features(
                embeds.new_zeros(len(found.layouts), embeds.shape[-1]), (Layout((1,)),) * len(found.layouts)
            )
            embeds = splice(embeds, marks, batch.media[kind], kind)
        return embeds

    def memory(self, features: Mapping[str, Features], batch: Batch) -> "Items":
        media = [batch.media[kind] for kind in features]
        places = (torch.cat([getattr(m, name) for m in media]) for name in ("row", "enter", "exit", "order"))
        return Items(torch.cat([torch.stack(found.split()) for found in features.values()]), *places)

    def around(self, index: int, block: nn.Module, hidden: Tensor, ctx: Context) -> Tensor:
        return block(hidden, ctx, lambda block, hidden, ctx: self._run(index, block, hidden, ctx))

    def _run(self, index: int, block: Block, hidden: Tensor, ctx: Context) -> Tensor:
        tuned: Tuned = self.tuning[index]() if self.config.tuned else Tuned({}, {})
        attend, attn = ctx.attention, block.attn
        assert isinstance(attend, Attend)
        x = tuned.norm("attend_norm", block.attend_norm, hidden)
        layers = {name: getattr(attn, name) for name in ("q_proj", "k_proj", "v_proj")}
        q, k, v = (_heads(tuned.linear(name, layer, x), attn) for name, layer in layers.items())
        mixed = attend(index, q, k, v)
        queries = attend.turn(q).to(v.dtype) * v.shape[-1] ** -0.5
        place = index - self.config.skip
        if place >= 0:
            mixed = mixed + self._look(queries, attn, tuned, self.prompts[place], ctx)
        # Sharded weights are gathered by all ranks or by none: there the gate runs without pictures, too.
        elif index == 0 and self.early and (ctx.memory is not None or dist.world() > 1):
            mixed = mixed + self._look_at_items(queries, attn, tuned, ctx)
        hidden = hidden + tuned.linear("o_proj", attn.o_proj, mixed.transpose(1, 2).flatten(2))
        return hidden + tuned.feed(block, hidden)

    def _look(self, q: Tensor, attn: Attention, tuned: Tuned, prompts: nn.Module, ctx: Context) -> Tensor:
        """float[B, H, T, W]: what columns find in the layer's prompts, to which the items in sight are added.

        Projections are linear, so an item is added to keys and values as (prompt + item)W = promptW + itemW.
        """
        prompt, gate = prompts()
        k, v = _pair(tuned.linear, attn, prompt[None])
        scores = q @ k.mT
        items: Items | None = ctx.memory
        if items is None or self.config.visual == "first":
            return gate * (_weights(scores) @ v)
        seen = items.seen(ctx)[:, None, :, :, None]
        k_items, v_items = _pair(tuned.direction, attn, items.values)
        # float[B, H, T, N, n] with n the prompts' number or 1; summed over items.
        scores = scores + (torch.einsum("bhtw,ihnw->bhtin", q, k_items) * seen).sum(3)
        weights = _weights(scores)
        of_items = (weights[..., None, :] * seen).expand(*scores.shape[:3], len(items.values), -1)
        v_items = v_items.expand(-1, -1, weights.shape[-1], -1)
        return gate * (weights @ v + torch.einsum("bhtin,ihnw->bhtw", of_items, v_items))

    def _look_at_items(self, q: Tensor, attn: Attention, tuned: Tuned, ctx: Context) -> Tensor:
        """float[B, H, T, W]: what columns find in the features of the items in sight."""
        items: Items = ctx.memory if ctx.memory is not None else Items.none(q, dim=attn.k_proj.in_features)
        k, v = _pair(tuned.linear, attn, items.values)
        k, v = (each.transpose(0, 1).flatten(1, 2) for each in (k, v))
        seen = items.seen(ctx).repeat_interleave(items.values.shape[1], dim=-1)[:, None]
        scores = q @ k.mT
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        # Where no item is in sight the weights are even and meaningless; there they count nothing.
        return self.early[0]() * ((_weights(scores) * seen) @ v)


@dataclass(frozen=True)
class Items:
    """Features of N items, float[N, n, D], and where these stand, int64[N] each."""

    values: Tensor
    row: Tensor
    enter: Tensor
    exit: Tensor
    order: Tensor

    @staticmethod
    def none(like: Tensor, *, dim: int) -> "Items":
        """No items."""
        nowhere = torch.zeros(0, dtype=torch.long, device=like.device)
        return Items(like.new_zeros(0, 1, dim), nowhere, nowhere, nowhere, nowhere)

    def seen(self, ctx: Context) -> Tensor:
        """bool[B, T, N]: the items that stand before a column on its path."""
        rows = torch.arange(len(ctx.enter), device=ctx.enter.device)[:, None, None]
        enter, order = ctx.enter[..., None], ctx.order[..., None]
        return (self.row == rows) & (self.enter <= enter) & (enter < self.exit) & (self.order <= order)


class _Prompts(nn.Module):
    """The prompts of one layer, drawn as word embeddings are by default, and its gate, one number a head."""

    def __init__(self, length: int, llm: Decoder.Config) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(length, llm.dim))
        self.gate = nn.Parameter(torch.zeros(1, llm.heads, 1, 1))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Copies: sharded weights are whole within this call alone."""
        return self.prompt.clone(), self.gate.tanh()


class _Gate(nn.Module):
    """The gate of the first layer, one number a head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1, heads, 1, 1))

    def forward(self) -> Tensor:
        return self.gate.tanh()


def _heads(x: Tensor, attn: Attention) -> Tensor:
    """float[…, L, H · W] → float[…, H, L, W]."""
    return x.unflatten(-1, (-1, attn.q_proj.out_features // attn.heads)).transpose(-2, -3)


def _pair(project: Callable[[str, nn.Module, Tensor], Tensor], attn: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of `x` float[N, L, D], float[N, H, L, W] each; heads that queries share are repeated."""
    share = attn.heads // attn.kv_heads
    k = _heads(project("k_proj", attn.k_proj, x), attn).repeat_interleave(share, dim=1)
    return k, _heads(project("v_proj", attn.v_proj, x), attn).repeat_interleave(share, dim=1)


def _weights(scores: Tensor) -> Tensor:
    """The softmax over prompts, in float32."""
    return scores.float().softmax(-1).to(scores.dtype)
