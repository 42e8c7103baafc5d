"""The values that travel from a source's row to the loss.

    row ─► Sample ─► Tokens ─► Batch ─► Features ─► hidden ─► (sum, count)

A `Sample` is a tree of turns. Every token carries the interval that its node takes in a depth-first walk over the row
(`enter`, `exit`) and its rank for causal attention (`order`); one rule (`quintet.components.visible`) is all there is:

    t may look at u   ⇔   enter[u] ≤ enter[t] < exit[u]   and   order[u] ≤ order[t]

Samples packed in a row are disjoint intervals, siblings are disjoint, ancestors contain. Letters in shapes: B rows,
T columns, N media items, S packed features, P supervised tokens, D width, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from quintet.answers import Answer, Answers

__all__ = [
    "Batch", "Features", "Item", "Layout", "Media", "MediaBatch", "Node", "Origin", "Part", "Ref", "Region", "Sample",
    "Spot", "Spots", "Targets", "Text", "Tokens", "Turn",
]  # fmt: skip


# ---- what a source makes: a tree of turns ------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Ref:
    """Where the bytes of a medium are: a file, a slice of a file (a tar member), or the bytes themselves."""

    name: str
    path: Path | None = None
    offset: int = 0
    length: int | None = None
    data: bytes | None = None
    change: str = ""
    """How the picture is made worse once it is read (`quintet.data.changes`); empty: it is shown as it is."""

    def read(self) -> bytes:
        """The bytes; raises OSError when the file is not there."""
        if self.data is not None:
            return self.data
        assert self.path is not None, f"{self.name}: neither a path nor bytes"
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(-1 if self.length is None else self.length)


@dataclass(frozen=True, slots=True)
class Text:
    """Words of a turn. `weight` multiplies the turn's; `mark` names a span for objectives that need one."""

    text: str
    weight: float = 1.0
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class Media:
    """A medium at its place in a turn. `kind` is a modality: image, video, audio … `text` stands for it if there is."""

    kind: str
    ref: Ref
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A place in a medium, in shares of its width and height.

    `points` are of a box (left, top, right, bottom), of one point (x, y) or several along a scribble, or of the
    corners of a mask's outline.
    """

    kind: Literal["box", "points", "mask"]
    points: tuple[float, ...]
    phrase: str = ""
    """The words that name it. Regions side by side without words between are places of the first one's phrase."""
    of: int = 0
    """Which medium of its path through the sample, counted from 0."""

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """The box around it."""
        xs, ys = self.points[::2], self.points[1::2]
        return min(xs), min(ys), max(xs), max(ys)


Part = Text | Media | Region


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says (user, assistant, system), or a document, a page of words and media, which nobody says.

    An assistant's turns and documents are learnt, `weight` times.
    """

    role: str
    parts: tuple[Part, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Node:
    """A straight run of turns, then continuations that must not see each other."""

    turns: tuple[Turn, ...]
    children: tuple["Node", ...] = ()
    answer: "Answer | None" = None
    """What this branch is in a comparison of answers; None: it is not compared."""

    def walk(self) -> Iterator["Node"]:
        """This node and all below it, depth first."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a sample comes from, for every message about it. `row` counts from 1."""

    file: str = "<memory>"
    row: int = 0
    id: str = ""

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}"


@dataclass(frozen=True, slots=True)
class Sample:
    """A tree of turns and where it comes from. A conversation is a tree of one node."""

    root: Node
    origin: Origin = Origin()
    left_out: tuple[str, ...] = ()
    """The rule, for each picture of a document that one left out (`quintet.data.sources.pages`)."""
    others: tuple[Node, ...] = ()
    """Further trees that must not see the first, for objectives that compare across them (`quintet.data.contrast`)."""

    def turns(self) -> Iterator[Turn]:
        """All turns, depth first."""
        for node in (node for root in (self.root, *self.others) for node in root.walk()):
            yield from node.turns

    def media(self) -> list[Media]:
        """All media in the order of the text."""
        return [part for turn in self.turns() for part in turn.parts if isinstance(part, Media)]


# ---- what encoders and connectors speak about --------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Layout:
    """How the features of one item are laid out: `extra` tokens (a class token), then a grid in raster order.

    An item that is divided, as a picture in a view of the whole and tiles of it, has further views in `more`; their
    features follow those of the first.

    >>> Layout((24, 24)).count, Layout((24, 24), extra=1).count, Layout((24, 24), more=(Layout((48, 36)),)).count
    (576, 577, 2304)
    """

    grid: tuple[int, ...]
    extra: int = 0
    more: tuple["Layout", ...] = ()

    @property
    def count(self) -> int:
        return self.extra + prod(self.grid) + sum(view.count for view in self.more)

    @property
    def views(self) -> tuple["Layout", ...]:
        """Each view as a layout of its own; of an item that is not divided, itself."""
        return replace(self, more=()), *self.more

    @staticmethod
    def of(views: Sequence["Layout"]) -> "Layout":
        """The inverse of `views`."""
        return replace(views[0], more=tuple(views[1:]))


@dataclass(frozen=True)
class Features:
    """Packed features of N items: `values` float[S, D], one `Layout` an item; S is the sum of their counts."""

    values: Tensor
    layouts: tuple[Layout, ...]

    @property
    def counts(self) -> list[int]:
        return [layout.count for layout in self.layouts]

    def split(self) -> tuple[Tensor, ...]:
        """One float[count, D] an item."""
        return self.values.split(self.counts)

    def apart(self) -> "Features":
        """The same features, every view an item of its own."""
        return Features(self.values, tuple(view for layout in self.layouts for view in layout.views))

    def together(self, like: Sequence[Layout]) -> "Features":
        """The inverse of `apart`: as many views to an item as those of `like` have."""
        views = iter(self.layouts)
        return Features(self.values, tuple(Layout.of([next(views) for _ in layout.views]) for layout in like))

    def groups(self) -> Iterator[tuple[Layout, list[int], Tensor]]:
        """Items of equal layout together: the layout, their indices, float[n, count, D]."""
        pieces = self.split()
        by_layout: dict[Layout, list[int]] = {}
        for index, layout in enumerate(self.layouts):
            by_layout.setdefault(layout, []).append(index)
        for layout, indices in by_layout.items():
            yield layout, indices, torch.stack([pieces[i] for i in indices])

    @staticmethod
    def join(pieces: list[tuple[Layout, list[int], Tensor]]) -> "Features":
        """The inverse of `groups`: items go back to their order, whatever their new layouts are."""
        placed = {
            i: (layout, value) for layout, indices, values in pieces for i, value in zip(indices, values, strict=True)
        }
        order = [placed[i] for i in range(len(placed))]
        return Features(torch.cat([value for _, value in order]), tuple(layout for layout, _ in order))


# ---- what the template makes -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Item:
    """A medium in a row of tokens, in the columns `start … start + columns - 1`.

    `size` is what the encoder will see (for an image height, width in pixels). `columns` is the number of features
    for token-level fusion, and fewer for feature-level fusion (the marker alone). `words` are the columns of what its
    user's turn says beside it, frames left out: what a connector that reads the instruction reads. `prompt` are the
    same words as ids of that connector's own tokenizer, if it has one.
    """

    kind: str
    ref: Ref
    size: tuple[int, ...]
    start: int
    columns: int
    words: tuple[int, ...] = ()
    prompt: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Spot:
    """A region whose feature takes the column `column` of its sample; `item` numbers its medium in `Tokens.items`."""

    region: Region
    item: int
    column: int


@dataclass(frozen=True)
class Tokens:
    """One sample as tokens: int64[T] vectors, float32[T] weights, and its media.

    `weight[t]` says how much token t is learnt (0: not at all), `parent[t]` is the column that predicts it (-1: none).
    """

    ids: Tensor
    weight: Tensor
    enter: Tensor
    exit: Tensor
    order: Tensor
    position: Tensor
    parent: Tensor
    items: tuple[Item, ...]
    origin: Origin = Origin()
    spots: tuple[Spot, ...] = ()
    answers: tuple[tuple[int, Answer], ...] = ()
    """Branches that are compared: the node of each, as in `enter`."""
    known: Mapping[str, Tensor] = field(default_factory=dict)
    """What was computed before of each learnt token, float32[T] by name: `reference`, its log-probability there."""
    mark: Tensor | None = None
    """int64[T]: which marked span a token is in, counted from 1; 0 for none. None where nothing is marked."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nodes(self) -> int:
        """Nodes of its tree, those without a token included: the next sample of a row counts on from here."""
        return int(self.exit.max())

    @property
    def learnt(self) -> Tensor:
        """The columns that are targets, int64[P]: what has a weight and a column to be predicted from."""
        return ((self.weight != 0) & (self.parent >= 0)).nonzero().squeeze(1)

    @property
    def count(self) -> float:
        """Sum of the weights that have a column to be predicted from: what this sample adds to a step's count."""
        return float(self.weight[self.parent >= 0].sum())


# ---- what the model gets -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MediaBatch:
    """The items of one modality in a batch.

    `values` holds one tensor an item (uint8[3, H, W] for an image), or, when `encoded`, what the frozen encoder made
    of it (float[count, D]) with its `layouts`. `slots` int64[S] are flat indices into B·T, `counts` the columns
    of each item. `row`, `enter`, `exit`, `order` int64[N] place the item for feature-level fusion. `words` int64[W]
    are flat indices too, `word_counts` an item: the words of its turn, for connectors that read the instruction;
    `prompts` has them for one that reads in tokens of its own, int64[L] an item.
    """

    values: tuple[Tensor, ...]
    slots: Tensor
    counts: tuple[int, ...]
    row: Tensor
    enter: Tensor
    exit: Tensor
    order: Tensor
    layouts: tuple[Layout, ...] | None = None
    words: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    word_counts: tuple[int, ...] = ()
    prompts: tuple[Tensor, ...] = ()

    @property
    def encoded(self) -> bool:
        return self.layouts is not None

    def features(self) -> Features:
        """The cached features."""
        assert self.layouts is not None, "these values are raw media"
        return Features(torch.cat(self.values), self.layouts)


@dataclass(frozen=True)
class Spots:
    """Regions whose features take the columns `slots`, int64[R] into B·T; `items` number pictures in `Batch.media`."""

    regions: tuple[Region, ...]
    items: tuple[int, ...]
    slots: Tensor


@dataclass(frozen=True)
class Targets:
    """What is learnt: from column `slots` (flat, into B·T) predict `ids`, `weights` times.

    All int64[P] or float32[P]. The shift by one is here and nowhere else. `node` numbers the node of the tree that
    the target belongs to, over the whole batch, so that sums per answer are one `index_add`. A column may stand more
    than once: the last shared token of two branches predicts the first of each.
    """

    slots: Tensor
    ids: Tensor
    weights: Tensor
    node: Tensor
    known: Mapping[str, Tensor] = field(default_factory=dict)
    """What was computed before of each, float32[P] by name, as in `Tokens`."""
    mark: Tensor | None = None
    """int64[P]: which marked span each is in, counted from 1 within its sample; 0 for none."""

    @property
    def count(self) -> float:
        return float(self.weights.sum())


@dataclass(frozen=True)
class Batch:
    """Rows of packed trees. All vectors are int64[B, T]; padding is a node of its own at the end of a row."""

    tokens: Tensor
    enter: Tensor
    exit: Tensor
    order: Tensor
    positions: Tensor
    targets: Targets
    media: Mapping[str, MediaBatch] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    """Columns of each row that are not padding."""
    spots: Spots | None = None
    answers: Answers | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Everything on `device`."""
        return _moved(self, device)


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return tuple(_moved(each, device) for each in value)
    if isinstance(value, Mapping):
        return {name: _moved(each, device) for name, each in value.items()}
    if not is_dataclass(value):
        return value
    return replace(value, **{f.name: _moved(getattr(value, f.name), device) for f in fields(value)})  # pyright: ignore
