"""Faults of the field, planted one at a time in parts of the model and in the pipeline, wrong on purpose."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from quintet.components.connectors.mlp import Mlp
from quintet.components.fusion.token import TokenFusion
from quintet.components.llms.decoder import Decoder
from quintet.components.roles import Around, Context, plain
from quintet.data.collate import collate
from quintet.values import Batch, Features, Layout, Targets


# ---- faults in parts -----------------------------------------------------------------------------------------------
class Leaky(Decoder):
    """Attention that ignores intervals: causal over the whole row."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        def build(self, *, vocab: int | None = None) -> "Leaky":
            return Leaky(self if vocab is None else replace(self, vocab=vocab))

    def forward(self, embeds: Tensor, ctx: Context, around: Around = plain) -> Tensor:
        whole = torch.zeros_like(ctx.enter)
        return super().forward(embeds, replace(ctx, enter=whole, exit=whole + 1), around)


class Placed(Decoder):
    """Embeddings that know the column of the row."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        def build(self, *, vocab: int | None = None) -> "Placed":
            return Placed(self if vocab is None else replace(self, vocab=vocab))

    def forward(self, embeds: Tensor, ctx: Context, around: Around = plain) -> Tensor:
        return super().forward(embeds + ctx.order[..., None].sin(), ctx, around)


class Thaws(Decoder):
    """A part that unfreezes itself."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        def build(self, *, vocab: int | None = None) -> "Thaws":
            return Thaws(self if vocab is None else replace(self, vocab=vocab))

    def forward(self, embeds: Tensor, ctx: Context, around: Around = plain) -> Tensor:
        self.norm.requires_grad_(True)
        return super().forward(embeds, ctx, around)


class Unused(Mlp):
    """A parameter that no forward touches."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Mlp.Config):
        def build(self, *, d_in: int, d_out: int) -> "Unused":
            return Unused(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__(config, d_in=d_in, d_out=d_out)
        self.spare = nn.Linear(d_in, d_out)


class DropsLast(Mlp):
    """Makes one feature less than its layout says."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Mlp.Config):
        def build(self, *, d_in: int, d_out: int) -> "DropsLast":
            return DropsLast(self, d_in=d_in, d_out=d_out)

    def forward(self, features: Features) -> Features:
        kept = [piece[:-1] for piece in super().forward(features).split()]
        return Features(torch.cat(kept), tuple(Layout((len(piece),)) for piece in kept))


class SwapsItems(Mlp):
    """Gives each medium's features to the other: totals agree, items do not."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Mlp.Config):
        def build(self, *, d_in: int, d_out: int) -> "SwapsItems":
            return SwapsItems(self, d_in=d_in, d_out=d_out)

    def forward(self, features: Features) -> Features:
        made = super().forward(features)
        return Features(torch.cat(made.split()[::-1]), made.layouts[::-1])


class OneMore(TokenFusion):
    """Reserves one column too many."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TokenFusion.Config):
        def columns(self, num_features: int) -> int:
            return num_features + 1


class Spills(TokenFusion):
    """Adds what the media are about to every column of their own sample, also to those before."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TokenFusion.Config):
        def build(self, *, dim: int, depth: int) -> "Spills":
            return Spills()

    def inputs(self, embeds: Tensor, features: Mapping[str, Features], batch: Batch) -> Tensor:
        written = super().inputs(embeds, features, batch)
        for kind, found in features.items():
            where = batch.media[kind]
            for n, piece in enumerate(found.split()):
                own = batch.enter[where.row[n]] == where.enter[n]
                written = written.index_put((where.row[n], own), written[where.row[n], own] + piece.mean(0))
        return written


class Overflows(TokenFusion):
    """Adds what a medium is about to all that stands behind it in the row, also to other samples."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TokenFusion.Config):
        def build(self, *, dim: int, depth: int) -> "Overflows":
            return Overflows()

    def inputs(self, embeds: Tensor, features: Mapping[str, Features], batch: Batch) -> Tensor:
        written = super().inputs(embeds, features, batch)
        for kind, found in features.items():
            where = batch.media[kind]
            for n, piece in enumerate(found.split()):
                behind = batch.order[where.row[n]] >= where.order[n]
                written = written.index_put((where.row[n], behind), written[where.row[n], behind] + piece.mean(0))
        return written


class Blind(TokenFusion):
    """Forgets to write the features."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TokenFusion.Config):
        def build(self, *, dim: int, depth: int) -> "Blind":
            return Blind()

    def inputs(self, embeds: Tensor, features: Mapping[str, Features], batch: Batch) -> Tensor:
        return embeds


# ---- faults in the pipeline ----------------------------------------------------------------------------------------
def collates_shifted(*args: Any, **kwargs: Any) -> Batch:
    """`collate`, and then the shift once more."""
    batch = collate(*args, **kwargs)
    t = batch.targets
    return replace(batch, targets=Targets((t.slots - 1).clamp(min=0), t.ids, t.weights, t.node))


def collates_fewer(*args: Any, **kwargs: Any) -> Batch:
    """`collate` without the last target."""
    batch = collate(*args, **kwargs)
    t = batch.targets
    return replace(batch, targets=Targets(t.slots[:-1], t.ids[:-1], t.weights[:-1], t.node[:-1]))


def learns_shifted(model: Any, batch: Batch, extra: Any = None) -> tuple[Tensor, float]:
    """The objective, with the shift once more."""
    t = batch.targets
    moved = Targets((t.slots - 1).clamp(min=0), t.ids, t.weights, t.node)
    return -torch.dot(model.target_logps(model(batch), moved), t.weights), t.count
