"""Rows of tokens and their media → `Batch`. The shift from tokens to targets is here and nowhere else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.answers import Answer, Answers
from quintet.values import Batch, Item, Layout, MediaBatch, Region, Spots, Targets, Tokens

__all__ = ["Loaded", "collate"]


PAD_NODE = 32
"""Columns of a node of padding: attention over one long node would cost what a long sample does."""


@dataclass(frozen=True)
class Loaded:
    """A medium in memory: raw (`layout` None) or as the frozen encoder's features float[count, D] with their layout."""

    value: Tensor
    layout: Layout | None = None


Row = Sequence[Tokens]
"""Samples that share a row."""


@dataclass(frozen=True)
class _Placed:
    """An item with its row, and its sample's column and node offsets."""

    item: Item
    row: int
    column: int
    enter: int
    exit: int


def collate(rows: Sequence[Row], media: Mapping[int, Loaded], *, pad: int, width: int | None = None) -> Batch:
    """Packs each row's samples side by side.

    `media` maps the running number of an item (over rows, samples and items, in that order) to what was loaded.
    `width` pads to a fixed number of columns; the default is the longest row.
    """
    lengths = tuple(sum(len(t) for t in row) for row in rows)
    width = width or max(lengths)
    assert max(lengths) <= width, f"a row of {max(lengths)} columns in a batch of {width}"
    vectors: dict[str, list[Tensor]] = {name: [] for name in ("tokens", "enter", "exit", "order", "positions")}
    targets: list[Targets] = []
    answers: list[tuple[int, int, int, int, Answer]] = []
    placed: list[_Placed] = []
    spots: list[tuple[Region, int, int]] = []
    nodes = samples = 0
    for r, row in enumerate(rows):
        column = enter = 0
        parts: dict[str, list[Tensor]] = {name: [] for name in vectors}
        for t in row:
            parts["tokens"].append(t.ids)
            parts["enter"].append(t.enter + enter)
            parts["exit"].append(t.exit + enter)
            parts["order"].append(t.order + column)
            parts["positions"].append(t.position)
            targets.append(_targets(t, base=r * width + column, nodes=nodes))
            spots += [(s.region, len(placed) + s.item, r * width + column + s.column) for s in t.spots]
            placed += [
                _Placed(i, r, column, int(t.enter[i.start]) + enter, int(t.exit[i.start]) + enter) for i in t.items
            ]
            for node, answer in t.answers:
                at = int((t.enter == node).nonzero()[-1])
                answers.append((node + nodes, int(t.exit[at]) + nodes, samples, r * width + column + at, answer))
            column, enter, nodes, samples = column + len(t), enter + t.nodes, nodes + t.nodes, samples + 1
        _pad(parts, width - column, enter, column, pad)
        for name, pieces in parts.items():
            vectors[name].append(torch.cat(pieces))
    stacked = {name: torch.stack(values) for name, values in vectors.items()}
    return Batch(
        **stacked,
        targets=_merged(targets),
        media=_media(placed, media, width),
        lengths=lengths,
        spots=_spots(spots, placed),
        answers=_answers(answers),
    )


def _targets(t: Tokens, *, base: int, nodes: int) -> Targets:
    """Every learnt token that has a predecessor: predicted from its parent's column."""
    learnt = t.learnt
    known = {name: values[learnt] for name, values in t.known.items()}
    mark = None if t.mark is None else t.mark[learnt]
    return Targets(t.parent[learnt] + base, t.ids[learnt], t.weight[learnt], t.enter[learnt] + nodes, known, mark)


def _merged(pieces: list[Targets]) -> Targets:
    [names] = {frozenset(piece.known) for piece in pieces}  # of all samples of a batch the same is known
    known = {name: torch.cat([piece.known[name] for piece in pieces]) for name in sorted(names)}
    slots, ids, weights, node = (
        torch.cat([getattr(piece, name) for piece in pieces]) for name in ("slots", "ids", "weights", "node")
    )
    marked = any(piece.mark is not None for piece in pieces)
    marks = [torch.zeros_like(piece.ids) if piece.mark is None else piece.mark for piece in pieces]
    return Targets(slots, ids, weights, node, known, torch.cat(marks) if marked else None)


def _answers(found: list[tuple[int, int, int, int, Answer]]) -> Answers | None:
    if not found:
        return None
    node, end, sample, last, told = zip(*found, strict=True)
    return Answers(torch.tensor(node), torch.tensor(end), torch.tensor(sample), torch.tensor(last), told)


def _pad(parts: dict[str, list[Tensor]], n: int, enter: int, column: int, pad: int) -> None:
    """Padding is nodes of its own at the end of the row, short ones: they see themselves, and nobody sees them."""
    columns = torch.arange(n)
    node = enter + columns // PAD_NODE
    fills = {"tokens": torch.full((n,), pad), "positions": columns, "order": columns + column}
    fills |= {"enter": node, "exit": node + 1}
    for name, fill in fills.items():
        parts[name].append(fill)


def _spots(spots: list[tuple[Region, int, int]], placed: list[_Placed]) -> Spots | None:
    """Regions, number of their item among all, slot → the same with the number among pictures."""
    if not spots:
        return None
    pictures = [n for n, p in enumerate(placed) if p.item.kind == "image"]
    regions, items, slots = zip(*spots, strict=True)
    return Spots(regions, tuple(map(pictures.index, items)), torch.tensor(slots))


def _media(placed: list[_Placed], loaded: Mapping[int, Loaded], width: int) -> dict[str, MediaBatch]:
    found: dict[str, MediaBatch] = {}
    for kind in dict.fromkeys(p.item.kind for p in placed):
        numbers = [n for n, p in enumerate(placed) if p.item.kind == kind]
        of = [placed[n] for n in numbers]
        values = [loaded[n] for n in numbers]
        starts = [p.row * width + p.column + p.item.start for p in of]
        spans = [torch.arange(s, s + p.item.columns) for s, p in zip(starts, of, strict=True)]
        layouts = tuple(v.layout for v in values if v.layout is not None)
        assert len(layouts) in (0, len(values)), "cached and raw media in one batch"
        found[kind] = MediaBatch(
            values=tuple(v.value for v in values),
            slots=torch.cat(spans),
            counts=tuple(p.item.columns for p in of),
            row=torch.tensor([p.row for p in of]),
            enter=torch.tensor([p.enter for p in of]),
            exit=torch.tensor([p.exit for p in of]),
            order=torch.tensor([p.column + p.item.start for p in of]),
            layouts=layouts or None,
            words=torch.tensor([p.row * width + p.column + w for p in of for w in p.item.words], dtype=torch.int64),
            word_counts=tuple(len(p.item.words) for p in of),
            prompts=tuple(torch.tensor(p.item.prompt) for p in of) if any(p.item.prompt for p in of) else (),
        )
    return found
