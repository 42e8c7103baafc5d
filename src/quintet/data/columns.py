"""From pieces of a spelt conversation to the columns of a sample: ids, weights, and the walk that places them.

A template says which pieces there are (`template.py`); here they are encoded run by run and numbered node by node.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from quintet.answers import Answer
from quintet.data.tokenizer import Tokenizer
from quintet.errors import ConfigError, DataError
from quintet.values import Item, Media, Region, Sample, Spot, Tokens

__all__ = ["START", "Measure", "Piece", "Rows", "Tail", "Words"]

Measure = Callable[[Media], tuple[tuple[int, ...], int]]
"""Medium → (the size that the encoder will see, columns of text)."""


@dataclass(frozen=True, slots=True)
class Words:
    """What a user's turn says: its columns, once they are written, and the text."""

    columns: list[int] = field(default_factory=list)
    text: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run's raw material: text or a medium. `control`: special tokens in it count. `learnt`: part of an answer."""

    text: str = ""
    medium: Media | None = None
    spot: tuple[Region, Media] | None = None
    weight: float = 0.0
    control: bool = False
    learnt: bool = False
    words: Words | None = None
    """Shared by a user's words and media."""
    mark: str | None = None
    """The span that it is."""


@dataclass(frozen=True, slots=True)
class Tail:
    """A run that goes on in branches, and how many of its tokens are written."""

    run: tuple[Piece, ...] = ()
    written: int = 0


START = Tail()
"""Nothing is begun."""


class Rows:
    """The growing columns of one sample: a depth-first walk that numbers nodes and remembers who predicts whom."""

    def __init__(self, tokenizer: Tokenizer, measure: Measure, *, shared: bool) -> None:
        self.tokenizer, self.measure, self.shared = tokenizer, measure, shared
        self.ids: list[int] = []
        self.weight: list[float] = []
        self.node: list[int] = []
        self.position: list[int] = []
        self.parent: list[int] = []
        self.mark: dict[int, str] = {}
        """Column → its span."""
        self.items: list[tuple[Item, list[int]]] = []
        self.shown: list[Media] = []
        self.spots: list[Spot] = []
        self.answers: list[tuple[int, Answer]] = []
        self.exits: list[int] = [0]
        self._here, self._last = 0, -1
        self._seen = 0
        """Media on the path so far."""

    def put(self, tokens: Sequence[int], weights: Sequence[float], *, steps: Sequence[int] | None = None) -> None:
        """Columns that follow each other in the current node; `steps` are their positions, counted from the first's."""
        first, count = len(self.ids), len(tokens)
        self.ids += tokens
        self.weight += weights
        self.node += [self._here] * count
        place = self.position[self._last] + 1 if self._last >= 0 else 0
        self.position += (place + step for step in (range(count) if steps is None else steps))
        self.parent += [self._last, *range(first, first + count - 1)]
        self._last = first + count - 1

    def write(self, pieces: Sequence[Piece], *, skip: int = 0, branches: Sequence[Sequence[Piece]] = ()) -> "Tail":
        """Pieces as columns. Neighbouring plain text is one run for the tokenizer; answers begin a run of their own.

        Where `branches` follow, each with its pieces, a run goes on in them, and a token may reach across: then it is
        theirs. What is handed back stands before a branch's pieces, and of its first run so many tokens are skipped,
        which are written: so each path is spelt as if it were alone.
        """
        for found in self._runs(pieces, last := list[Piece]()):
            if isinstance(found, list):
                self._flush(found, skip)
                skip = 0
            elif found.medium:
                self._medium(found.medium, found.words or Words())
            else:
                if found.spot:
                    self._spot(*found.spot)
                self.put([self.tokenizer.specials[found.text]], [found.weight])
        if not branches:
            self._flush(last, skip)
            return START
        return self._part(last, skip, branches)

    def _runs(self, pieces: Sequence[Piece], last: list[Piece]) -> Iterator[list[Piece] | Piece]:
        """Runs of plain text, and between them media and special tokens; the run at the end is put into `last`."""
        run: list[Piece] = []
        learnt = False
        for piece in pieces:
            if piece.medium and piece.medium.text is not None:
                # Told in words, it is a piece of the user's text like any other.
                piece = replace(piece, text=piece.medium.text, medium=None)
                self._seen += 1
            if run and (piece.learnt != learnt or piece.medium):
                yield run
                run = []
            learnt = piece.learnt
            if piece.medium:
                yield piece
                continue
            spelt = piece.text.replace("{n}", str(self._seen + 1)) if piece.control else piece.text
            for text in self.tokenizer.split(spelt) if piece.control else [spelt]:
                if piece.control and text in self.tokenizer.specials:
                    if run:
                        yield run
                    run = []
                    yield replace(piece, text=text)
                elif text:
                    run.append(piece if text == piece.text else replace(piece, text=text))
        last += run

    def _part(self, run: list[Piece], skip: int, branches: Sequence[Sequence[Piece]]) -> "Tail":
        """Writes the tokens of a run that are the same whatever branch follows."""
        if not run:
            return START
        length = sum(len(piece.text) for piece in run)
        spelt: list[tuple[list[int], list[tuple[int, int]]]] = []
        for branch in branches:
            seen, head = self._seen, list[Piece]()
            first = next(self._runs([*run, *branch], head), head)
            self._seen = seen
            assert isinstance(first, list), "a run of text comes before what ends it"
            ids, offsets = self.tokenizer.encode("".join(piece.text for piece in first))
            inside = sum(stop <= length for _, stop in offsets)
            spelt.append((ids[:inside], offsets[:inside]))
        places = zip(*(ids for ids, _ in spelt), strict=False)
        shortest = min(len(ids) for ids, _ in spelt)
        same = next((n for n, ids in enumerate(places) if len(set(ids)) > 1), shortest)
        ids, offsets = spelt[0]
        self._spell(run, ids[:same], offsets[:same], skip)
        return Tail(tuple(run), same)

    def _flush(self, run: list[Piece], skip: int) -> None:
        if run:
            self._spell(run, *self.tokenizer.encode("".join(piece.text for piece in run)), skip)

    def _spell(self, run: list[Piece], ids: list[int], offsets: list[tuple[int, int]], skip: int) -> None:
        """The tokens of a run from number `skip` on."""
        ends: list[int] = []
        for piece in run:
            ends.append((ends[-1] if ends else 0) + len(piece.text))
        span, weights = 0, []
        for number, (_, stop) in enumerate(offsets):
            # A token belongs to the span of its last character: a leading space goes with its word.
            while span < len(ends) - 1 and stop > ends[span]:
                span += 1
            if number < skip:
                continue
            if (words := run[span].words) is not None:
                words.columns.append(len(self.ids) + len(weights))
            if (mark := run[span].mark) is not None:
                self.mark[len(self.ids) + len(weights)] = mark
            weights.append(run[span].weight)
        if weights:
            self.put(ids[skip:], weights)

    def _medium(self, medium: Media, words: Words) -> None:
        size, columns = self.measure(medium)
        if columns < 1:
            raise ConfigError(f"a {medium.kind} of size {size} takes {columns} columns; it must take at least one")
        self.shown.append(medium)
        prompt = tuple(self.tokenizer.reader.ids(words.text)) if self.tokenizer.reader else ()
        self.items.append((Item(medium.kind, medium.ref, size, len(self.ids), columns, prompt=prompt), words.columns))
        steps = [min(n, 1) + (n == columns - 1 > 1) for n in range(columns)] if self.shared else None
        self.put([self.tokenizer.pad_id] * columns, [0.0] * columns, steps=steps)
        self._seen += 1

    def _spot(self, region: Region, medium: Media) -> None:
        """The next column is the region's."""
        item = next((i for i, shown in enumerate(self.shown) if shown is medium), None)
        if item is None:
            raise DataError("bad-region", f"a region of {medium.ref.name} stands before it; show the picture first")
        self.spots.append(Spot(region, item, len(self.ids)))

    def compare(self, answer: Answer) -> None:
        """The current node is this answer."""
        self.answers.append((self._here, answer))

    def branch(self) -> "_Branch":
        """A context in which columns belong to a new child of the current node."""
        return _Branch(self)

    def tokens(self, sample: Sample) -> Tokens:
        """All columns as tensors."""
        node = torch.tensor(self.node, dtype=torch.int64)
        return Tokens(
            ids=torch.tensor(self.ids, dtype=torch.int64),
            weight=torch.tensor(self.weight, dtype=torch.float32),
            enter=node,
            exit=torch.tensor(self.exits, dtype=torch.int64)[node] + 1,
            order=torch.arange(len(self.ids)),
            position=torch.tensor(self.position, dtype=torch.int64),
            parent=torch.tensor(self.parent, dtype=torch.int64),
            items=tuple(replace(item, words=tuple(words)) for item, words in self.items),
            origin=sample.origin,
            spots=tuple(self.spots),
            answers=tuple(self.answers),
            mark=self._marks(),
        )

    def _marks(self) -> Tensor | None:
        """Spans by number, in the order in which they are met; the same span of two branches has one number."""
        if not self.mark:
            return None
        number = {name: n for n, name in enumerate(dict.fromkeys(self.mark.values()), start=1)}
        return torch.tensor([number[self.mark[c]] if c in self.mark else 0 for c in range(len(self.ids))])


class _Branch:
    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __enter__(self) -> None:
        rows = self.rows
        self.saved = (rows._here, rows._last, rows._seen)
        rows._here = len(rows.exits)
        rows.exits.append(rows._here)

    def __exit__(self, *_: object) -> None:
        rows = self.rows
        last_below = len(rows.exits) - 1
        rows.exits[rows._here] = last_below
        rows._here, rows._last, rows._seen = self.saved
        rows.exits[rows._here] = last_below
