"""Experts in the place of feed-forward layers: every token goes through the two of them that a router likes best.

    hidden ─► attention ─► norm ─► router ─► top 2 of E experts, weighted ─► + hidden        in every second layer

Experts begin as copies of the layer's feed-forward network, and the weights of the chosen ones sum to 1, so the first
forward is the dense model's. The feed-forward weights of the LLM in these layers are what the experts were made of;
from then on nothing reads them.

Source: MoE-LLaVA (Lin et al. 2024, arXiv:2401.15947, section 3) and its code, whose gate is DeepSpeed's `top2gating`.
Its paper weighs experts by the softmax over all of them, its code divides by the sum over the chosen; ours is the
code's, without which copies would not compute what the original does. Its noise on the second choice is left out: an
answer would depend on chance. Letters: N tokens, K experts a token, E experts, D width, F width inside.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quintet.components.fusion.expert import decoder_config
from quintet.components.fusion.token import TokenFusion
from quintet.components.llms.decoder import INIT_STD, Block, Decoder
from quintet.components.roles import Context, LLMConfig
from quintet.errors import ConfigError

__all__ = ["MixtureOfExperts"]


class MixtureOfExperts(TokenFusion):
    """Writes features at their columns, as `TokenFusion` does, and routes all columns through experts.

    Says in `Output.extra`: `balance`, E · Σ f·P summed over layers (f the share of tokens whose first choice an expert
    is, P its mean probability; 1 a layer where all is even), and `dropped`, the share of choices over capacity.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(TokenFusion.Config):
        """How many experts, where, and how many tokens each may take. Their sizes are the LLM's."""

        experts: int = 4
        top: int = 2
        """Experts a token goes through."""
        every: int = 2
        """Layers 0, every, 2 · every … have experts."""
        capacity: float | None = None
        """In training an expert takes at most this many times its even share of a micro-batch's choices; what is over
        is dropped (first choices go first), and counted. None drops nothing, and so does evaluation: there an answer
        must not depend on what it is computed with."""

        def __post_init__(self) -> None:
            if not 1 <= self.top <= self.experts:
                raise ConfigError(f"top is {self.top} of {self.experts} experts; choose between 1 and all")
            if self.every < 1:
                raise ConfigError(f"every is {self.every}; it must be at least 1")
            if self.capacity is not None and self.capacity <= 0:
                raise ConfigError(f"capacity is {self.capacity}; it must be positive, or None to drop nothing")

        @property
        def needs_blocks(self) -> bool:
            return True

        @property
        def deep(self) -> bool:
            return True

        def build_for(self, llm: LLMConfig) -> "MixtureOfExperts":
            return MixtureOfExperts(self, decoder_config(llm, "a mixture of experts"))

    def __init__(self, config: Config, llm: Decoder.Config) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(_Experts(config, llm) for _ in range(0, llm.depth, config.every))

    @torch.no_grad()
    def begin(self, llm: Any) -> None:
        for layer, block in zip(self.layers, llm.blocks[:: self.config.every], strict=True):
            for name in ("gate_proj", "up_proj", "down_proj"):
                # Broadcast: every expert the same.
                getattr(layer, name).copy_(getattr(block.mlp, name).weight)

    def around(self, index: int, block: nn.Module, hidden: Tensor, ctx: Context) -> Tensor:
        place, between = divmod(index, self.config.every)
        if between:
            return block(hidden, ctx)
        return block(hidden, ctx, lambda block, hidden, ctx: self._run(place, block, hidden, ctx))

    def rows(self, llm: Any, *, columns: int, media: int, features: int) -> Mapping[nn.Module | Tensor, float]:
        share = columns * self.config.top / self.config.experts
        stacks = {stack: share for e in self.layers for stack in (e.gate_proj, e.up_proj, e.down_proj)}
        return {**stacks, **{block.mlp: 0 for block in llm.blocks[:: self.config.every]}}

    def _run(self, place: int, block: Block, hidden: Tensor, ctx: Context) -> Tensor:
        hidden = hidden + block.attend(hidden, ctx)
        added, balance, dropped = self.layers[place](block.feed_norm(hidden), _real(hidden, ctx))
        for name, value in (("balance", balance), ("dropped", dropped / len(self.layers))):
            ctx.extra.add(name, value)
        return hidden + added


class _Experts(nn.Module):
    """A router and its experts, which are SwiGLU networks."""

    def __init__(self, config: MixtureOfExperts.Config, llm: Decoder.Config) -> None:
        super().__init__()
        self.config = config
        shape = (config.experts, llm.ffn, llm.dim)
        self.router = nn.Linear(llm.dim, config.experts, bias=False)
        self.gate_proj = nn.Parameter(torch.randn(shape) * INIT_STD)
        self.up_proj = nn.Parameter(torch.randn(shape) * INIT_STD)
        self.down_proj = nn.Parameter(torch.randn(shape[0], shape[2], shape[1]) * INIT_STD)

    def forward(self, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the experts add, float[B, T, D], the balance, and the share of choices that were dropped."""
        tokens = x.flatten(0, 1)
        with torch.autocast(x.device.type, enabled=False):
            probs = self.router(tokens.float()).softmax(-1)
        found, chosen = probs.topk(self.config.top, dim=-1)
        keep = self._keep(chosen, real)
        weights = torch.where(keep, found, 0.0)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).eps)
        out = torch.zeros_like(tokens)
        for expert in range(self.config.experts):
            at, choice = ((chosen == expert) & keep).nonzero(as_tuple=True)
            mine = self._expert(expert, tokens.index_select(0, at)) * weights[at, choice, None]
            out = out.index_add(0, at, mine.to(out.dtype))
        first = F.one_hot(chosen[real, 0], self.config.experts).float().mean(0)
        balance = self.config.experts * torch.dot(first, probs[real].mean(0))
        return out.view_as(x), balance, 1 - keep[real].float().mean()

    def _expert(self, index: int, tokens: Tensor) -> Tensor:
        gate, up = F.linear(tokens, self.gate_proj[index]), F.linear(tokens, self.up_proj[index])
        return F.linear(F.silu(gate) * up, self.down_proj[index])

    def _keep(self, chosen: Tensor, real: Tensor) -> Tensor:
        """bool[N, K]: the choices that have room. In an expert's queue all first choices stand before the second."""
        if self.config.capacity is None or not self.training:
            return torch.ones_like(chosen, dtype=torch.bool)
        room = math.ceil(self.config.capacity * self.config.top * int(real.sum()) / self.config.experts)
        queue = F.one_hot(chosen.T, self.config.experts) * real[None, :, None]
        before = queue.flatten(0, 1).cumsum(0).view_as(queue) - queue
        return (before.gather(-1, chosen.T[..., None])[..., 0] < room).T


def _real(hidden: Tensor, ctx: Context) -> Tensor:
    """bool[B·T]: the columns that are not padding."""
    columns = torch.arange(hidden.shape[1], device=hidden.device)
    return (columns < torch.tensor(ctx.lengths, device=hidden.device)[:, None]).flatten()
