"""Trees of one sample that must not see each other, as one: side by side in a row, as packed samples are."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from quintet.answers import Answer
from quintet.values import Item, Spot, Tokens

__all__ = ["beside"]


def beside(trees: Sequence[Tokens]) -> Tokens:
    """The trees as one sample of their origin; spans keep their numbers, which are each tree's own."""
    column = node = 0
    items: list[Item] = []
    spots: list[Spot] = []
    answers: list[tuple[int, Answer]] = []
    placed: list[Tokens] = []
    for tree in trees:
        placed.append(
            replace(
                tree,
                enter=tree.enter + node,
                exit=tree.exit + node,
                order=tree.order + column,
                parent=torch.where(tree.parent < 0, tree.parent, tree.parent + column),
                mark=torch.zeros_like(tree.ids) if tree.mark is None else tree.mark,
            )
        )
        spots += [replace(spot, item=spot.item + len(items), column=spot.column + column) for spot in tree.spots]
        items += [
            replace(i, start=i.start + column, words=tuple(word + column for word in i.words)) for i in tree.items
        ]
        answers += [(at + node, answer) for at, answer in tree.answers]
        column, node = column + len(tree), node + tree.nodes
    vectors: dict[str, Any] = {
        name: torch.cat([getattr(tree, name) for tree in placed])
        for name in ("ids", "weight", "enter", "exit", "order", "position", "parent", "mark")
    }
    if all(tree.mark is None for tree in trees):
        vectors["mark"] = None
    return replace(trees[0], **vectors, items=tuple(items), spots=tuple(spots), answers=tuple(answers))
