"""The roles of the play, as contracts. A part is any module that keeps its role's promises; nothing is registered.

    media ─► Encoder ─► Features ─► Connector ─► Features ─► Fusion ─► LLM ─► hidden

Or an expert tells of a medium in words, which stand in its place (`quintet.components.experts.expert`).
Every part has a nested `Config` with `build(**widths)`; a published encoder's or LLM's config also knows its small
stand-ins (`starter()`, `tiny()`). Letters in shapes are those of `quintet.values`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

from torch import Tensor, nn

from quintet.config.base import Config
from quintet.values import Batch, Features, Layout, MediaBatch, Targets

__all__ = [
    "LLM", "Around", "Cache", "Connector", "ConnectorConfig", "Context", "Encoder", "EncoderConfig",
    "Fusion", "FusionConfig", "ImageSpec", "LLMConfig", "Prompts", "RegionConfig", "Tally", "plain",
]  # fmt: skip


# ---- encoders ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class ImageSpec(Config):
    """How a picture becomes the pixels that an encoder was trained on. Sizes are (height, width) in pixels.

    `fit`: "pad" keeps the aspect and pads to the size with `background`; "crop" scales the short side and cuts the
    centre; "squash" scales both sides; "native" keeps the picture, rounded up to multiples of `multiple`; one that
    does not fit into `most` is scaled down before, its aspect kept. For "native" `size` is what is shown and planned.
    """

    size: tuple[int, int]
    fit: Literal["pad", "crop", "squash", "native"] = "squash"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    background: tuple[int, int, int] = (0, 0, 0)
    multiple: int = 1
    most: tuple[int, int] | None = None

    @property
    def fixed(self) -> bool:
        """Whether every picture becomes `size`, so that a header need not be read to count tokens."""
        return self.fit != "native"

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """What a picture of this size becomes."""
        if self.fixed:
            return self.size
        height, width = self.within(height, width)
        m = self.multiple
        return -(-height // m) * m, -(-width // m) * m

    def within(self, height: int, width: int) -> tuple[int, int]:
        """A picture's size once it fits into `most`, its aspect kept, rounded down.

        >>> ImageSpec(size=(300, 300), fit="native", most=(1080, 1920)).within(2000, 1000)
        (1080, 540)
        """
        if self.most is None or (height <= self.most[0] and width <= self.most[1]):
            return height, width
        rows, cols = self.most
        # In whole numbers: a float's last bit would take a row away.
        if rows * width < cols * height:
            return rows, max(1, width * rows // height)
        return max(1, height * cols // width), cols


class Encoder(Protocol):
    """Media → `Features`. Gets one raw tensor an item (uint8[3, H, W] for an image) and normalises it itself.

    One with layers may offer `upper(share) → modules`, the last of them, so that a stage can train those alone; one
    that is several parts names them by `parts()`, as connectors do.
    """

    dim: int
    """Width of its features."""

    def layout(self, size: tuple[int, ...]) -> Layout:
        """Features of an item of this size (after `spec`): a pure function, no weights."""
        ...

    def __call__(self, values: tuple[Tensor, ...]) -> Features: ...


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """Settings of an encoder. `spec` says how media are prepared, `layout` counts features without weights."""

    def starter(self) -> Self:
        """The encoder that ships with the package, used as this one is."""
        raise NotImplementedError

    def tiny(self) -> Self:
        """A few thousand random weights, used as this one is."""
        raise NotImplementedError

    @property
    def spec(self) -> ImageSpec:
        raise NotImplementedError

    @property
    def dim(self) -> int:
        raise NotImplementedError

    def layout(self, size: tuple[int, ...]) -> Layout:
        raise NotImplementedError

    def build(self) -> nn.Module:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PartConfig(Config):
    """Settings of what has no published stand-in: a part of any size serves at every scale, or gets smaller."""

    def starter(self) -> Self:
        """The same at the size of the small parts that ship with the package; without sizes of its own, itself."""
        return self

    def tiny(self) -> Self:
        """The same at a size for tests."""
        return self

    @property
    def deep(self) -> bool:
        """Whether it is layers of a transformer, which learn at lower rates than a matrix: by default, with heads."""
        return hasattr(self, "heads")


# ---- connectors --------------------------------------------------------------------------------------------------
class Connector(Protocol):
    """`Features` at the encoder's width → `Features` at the LLM's. Patterns: `linear.py`, and `pool.py` for grids.

    One call has items of several layouts: `groups()` gives those of one as float[n, count, D], `join()` puts what
    became of them back in order. Of no item it makes none, at the LLM's width: `Features(float[0, D], ())`. What it
    cannot read its `Config.layout` refuses: a class token (`extra`), views (`more`), sides that do not divide.
    Widths at the small scales are 192 and 32; `starter()` and `tiny()` choose heads and groups that divide them.
    """

    sees_prompt: bool
    """Whether it also reads the instruction (InstructBLIP); then features cannot be shared between questions, and it
    is called with `Prompts` as a second argument. A connector that is several parts names them by `parts()`; one that
    takes weights of the LLM does so in `begin(llm)`, once those are there."""

    def __call__(self, features: Features) -> Features: ...


Prompts = Sequence[Tensor]
"""An item: the ids of the words in the user's turn that it stands in, int64[L], in the LLM's own tokens, or in those of
the connector's own tokenizer (`ConnectorConfig.own_words`)."""


@dataclass(frozen=True, kw_only=True)
class ConnectorConfig(PartConfig):
    """Settings of a connector. `layout` maps the encoder's layout to the one that reaches the LLM, without weights."""

    @property
    def sees_prompt(self) -> bool:
        """Whether it reads the instruction."""
        return False

    @property
    def has_words(self) -> bool:
        """Whether it has rows for tokens; then `build` is told the LLM's `vocab` too."""
        return self.sees_prompt

    @property
    def matches(self) -> bool:
        """Whether it also says how well a caption fits a picture (BLIP-2's first stage)."""
        return False

    @property
    def words_source(self) -> str:
        """Whose tokenizer spells the captions that it matches; empty is the LLM's."""
        return ""

    @property
    def own_words(self) -> bool:
        """Whether it reads the instruction in the tokens of a tokenizer of its own (`Tokenizer.reader`)."""
        return False

    def layout(self, layout: Layout) -> Layout:
        """Raises ConfigError where the grid does not fit (3 × 3 patches do not merge 2 × 2)."""
        raise NotImplementedError

    def build(self, *, d_in: int, d_out: int) -> nn.Module:
        raise NotImplementedError


# ---- regions -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class RegionConfig(PartConfig):
    """Settings of what makes an embedding of a region, from the encoder's features of the picture that it is in.

    The module is called with (features, regions, items): `items` numbers the picture of each region. It returns
    float[R, D], which takes the column that the template gives the region (`Template.pointer`).
    """

    def build(self, *, d_in: int, d_out: int) -> nn.Module:
        raise NotImplementedError


# ---- the LLM -----------------------------------------------------------------------------------------------------
class Cache(Protocol):
    """Keys and values of columns that were already read. Append-only; the attention rule decides who sees what."""

    memory: Any
    """What the fusion computed for the prompt (`Fusion.memory`): later columns come without media."""

    @property
    def length(self) -> int:
        """Columns held."""
        ...


class Tally:
    """What a fusion adds up in the blocks of one forward, by name.

    No dict and no dataclass: of those a sharded block (FSDP2) is given copies, and what it added would be lost.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Adds to the sum of that name."""
        self.sums[name] = self.sums[name] + value if name in self.sums else value


@dataclass(frozen=True)
class Context:
    """What every block may know besides its hidden states.

    `enter`, `exit`, `order`, `positions` int64[B, T] are those of the columns being read now; with a `cache` the
    columns before them are in it, with their own vectors. `attention` is set by the LLM once per forward:
    (layer, q float[B, H, T, K], k, v float[B, Hkv, T, K]) → float[B, H, T, K], masked by the rule of `values.visible`.
    `memory` is what the fusion lets these columns see (`Fusion.view`). `targets` is there for encoder–decoders, which
    must know where the answer begins. With `read` int64[P], slots of B·T, nobody will look at the last states of other
    columns, and an LLM may return those alone, float[P, D]. `media` are those among the columns being read now,
    `lengths` the columns of each row that are not padding. What a fusion adds to `extra` comes out in `Output.extra`:
    means over the batch.
    """

    enter: Tensor
    exit: Tensor
    order: Tensor
    positions: Tensor
    targets: Targets | None = None
    read: Tensor | None = None
    memory: Any = None
    cache: Any = None
    attention: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None
    media: Mapping[str, MediaBatch] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    extra: Tally = field(default_factory=Tally)


Around = Callable[[int, nn.Module, Tensor, Context], Tensor]
"""(layer, block, hidden float[B, T, D], ctx) → hidden: how fusion stands around a block."""


def plain(index: int, block: nn.Module, hidden: Tensor, ctx: Context) -> Tensor:
    """The `around` that does nothing: the block alone."""
    return block(hidden, ctx)


class LLM(Protocol):
    """embed → blocks, each called through `around` → hidden → logits."""

    dim: int
    depth: int
    vocab: int

    def embed(self, tokens: Tensor) -> Tensor: ...
    def __call__(self, embeds: Tensor, ctx: Context, around: Around = plain) -> Tensor: ...
    def head(self, hidden: Tensor) -> Tensor: ...
    def tables(self) -> tuple[Tensor, ...]:
        """The weights with a row a token, float[V, D]: the embedding, and the head's unless it is the same.

        Raises:
            ConfigError: a row is not all that becomes of a token (scaled embeddings, a head with a bias).
        """
        ...

    def new_cache(self, rows: int, columns: int) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class LLMConfig(Config):
    """Settings of an LLM."""

    def tiny(self) -> Self:
        """A few thousand random weights in the same shape."""
        raise NotImplementedError

    @property
    def dim(self) -> int:
        raise NotImplementedError

    @property
    def depth(self) -> int:
        raise NotImplementedError

    @property
    def vocab(self) -> int:
        """Rows of the published embedding."""
        raise NotImplementedError

    def build(self, *, vocab: int | None = None) -> nn.Module:
        """The module; `vocab` widens the embedding for added tokens."""
        raise NotImplementedError


# ---- fusion ------------------------------------------------------------------------------------------------------
class Fusion(nn.Module):
    """How connector output enters the LLM: hooks, each doing nothing by default. It owns its layers."""

    def parts(self) -> dict[str, nn.Module]:
        """What trains apart, by name; together all its weights."""
        return {"fusion": self}

    def begin(self, llm: Any) -> None:
        """Takes the weights of the LLM that its own begin as copies of.

        Called when those of the LLM are in place: after a model is made of published parts, and after each stage that
        trained the LLM without it (`Stage.fused`).
        """

    def inputs(self, embeds: Tensor, features: Mapping[str, Features], batch: Batch) -> Tensor:
        """Writes tokens: embeds float[B, T, D] → float[B, T, D]."""
        return embeds

    def memory(self, features: Mapping[str, Features], batch: Batch) -> Any:
        """What the blocks will look at, computed once for the batch that brings media; a cache keeps it."""
        return None

    def view(self, memory: Any, batch: Batch) -> Any:
        """What of the memory (None without media) the columns of this forward see: the `memory` of their `Context`."""
        return memory

    def extra(self, features: Mapping[str, Features], batch: Batch) -> Mapping[str, Tensor]:
        """What it tells the objective of the features (`Output.extra`): means over the batch, in training only."""
        return {}

    def around(self, index: int, block: nn.Module, hidden: Tensor, ctx: Context) -> Tensor:
        """Runs the block, and whatever stands around it."""
        return block(hidden, ctx)

    def rows(self, llm: Any, *, columns: int, media: int, features: int) -> Mapping[nn.Module | Tensor, float]:
        """Rows that go through parts of the LLM and its own, where they are not all columns; 0 is read by nothing.

        A stack of matrices is named itself, with the mean rows of one. `media` columns hold `features` of connectors.
        """
        return {}


@dataclass(frozen=True, kw_only=True)
class FusionConfig(PartConfig):
    """Settings of a fusion. `columns` says how many columns of text an item of n features takes."""

    @property
    def needs_blocks(self) -> bool:
        """Whether it stands around blocks, which only our own decoder offers."""
        return False

    @property
    def has_words(self) -> bool:
        """Whether it has rows for tokens; then `build` is told the LLM's `vocab` too."""
        return False

    def columns(self, num_features: int) -> int:
        raise NotImplementedError

    def d_features(self, dim: int) -> int:
        """Width of the features that it wants from connectors, for an LLM of width `dim`: the LLM's by default."""
        return dim

    def build(self, *, dim: int, depth: int) -> Fusion:
        raise NotImplementedError

    def build_for(self, llm: LLMConfig) -> Fusion:
        """The fusion of this LLM; most need to know its width and depth alone."""
        return self.build(dim=llm.dim, depth=llm.depth)
