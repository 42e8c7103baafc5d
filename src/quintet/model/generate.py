"""Answers, token by token: every leaf of every tree in a batch is continued, over one shared cache.

The prompt is read once, packed or not; then each step appends one column per leaf, which carries its leaf's interval,
so the attention rule alone decides what it sees. Five questions on one picture decode side by side in one row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.model.mllm import MLLM
from quintet.values import Batch, Targets

__all__ = ["Leaf", "Sampling", "generate", "leaves", "open_ends"]

ALONE = 1 << 40
"""Intervals from here on belong to columns that nobody sees: leaves that have ended."""


@dataclass(frozen=True)
class Leaf:
    """The last column of a prompt, where the answer begins, and the node that the answer belongs to."""

    row: int
    column: int
    node: int


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 takes the most likely one."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def leaves(batch: Batch) -> list[Leaf]:
    """The leaves of all trees, row by row in the order of their nodes."""
    found: list[Leaf] = []
    for row, length in enumerate(batch.lengths):
        ends = open_ends(batch.enter[row, :length].tolist(), batch.exit[row, :length].tolist())
        found += [Leaf(row, column, node) for node, column in ends]
    return found


def open_ends(enter: list[int], exit: list[int]) -> list[tuple[int, int]]:
    """(node, column) of each leaf: an answer to it begins behind that column.

    A node is a leaf when its interval holds no other: exit = enter + 1. One that adds nothing to what stands above it
    (an answer of several to one prompt, where the template writes no header) has no column, only its number within the
    intervals above; its answer begins behind the last column of the innermost.

    >>> open_ends([0, 0, 1], [2, 2, 2]), open_ends([0, 0], [3, 3])
    ([(1, 2)], [(1, 1), (2, 1)])
    """
    last = {node: column for column, node in enumerate(enter)}
    found: list[tuple[int, int]] = []
    for node in range(min(enter, default=0), max(exit, default=0)):
        if node in last:
            found += [(node, last[node])] if exit[last[node]] == node + 1 else []
        elif above := [each for each in last if each < node < exit[last[each]]]:
            found.append((node, last[max(above)]))
    return found


def generate(
    model: MLLM,
    batch: Batch,
    *,
    stop: Callable[[list[int]], bool],
    sampling: Sampling | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Token ids of each leaf's answer, in the order of `leaves(batch)`, the token that `stop` stopped at included.

    `stop` is asked with a leaf's ids after each token; `on_token(leaf, id)` is told of every other token as it comes.
    """
    sampling = sampling or Sampling()
    with model.inference():
        return _Run(model, batch, sampling).finish(stop, on_token)


class _Run:
    def __init__(self, model: MLLM, batch: Batch, sampling: Sampling) -> None:
        self.model, self.sampling = model, sampling
        self.leaves = leaves(batch)
        self.device = batch.tokens.device
        rows, width = batch.tokens.shape
        per_row = [0] * rows
        self.place: list[tuple[int, int]] = []
        for leaf in self.leaves:
            self.place.append((leaf.row, per_row[leaf.row]))
            per_row[leaf.row] += 1
        self.shape = (rows, max(per_row))
        at = ([leaf.row for leaf in self.leaves], [leaf.column for leaf in self.leaves])
        self.position = batch.positions[at].tolist()
        self.column = width
        self.cache = model.llm.new_cache(rows, width + sampling.max_tokens * max(per_row))
        self.random = torch.Generator().manual_seed(sampling.seed)
        self.logits = model.logits(model(batch, cache=self.cache).hidden[at])

    def finish(self, stop: Callable[[list[int]], bool], on_token: Callable[[int, int], None] | None) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in self.leaves]
        running = set(range(len(self.leaves)))
        for step in range(self.sampling.max_tokens):
            chosen = self._choose(self.logits)
            for i in sorted(running):
                answers[i].append(chosen[i])
                if stop(answers[i]):
                    running.discard(i)
                elif on_token:
                    on_token(i, chosen[i])
            if not running or step == self.sampling.max_tokens - 1:
                break
            self._step(chosen, running)
        return answers

    def _choose(self, logits: Tensor) -> list[int]:
        if self.sampling.temperature == 0:
            return logits.argmax(-1).tolist()
        probs = (logits.cpu() / self.sampling.temperature).softmax(-1)
        ranked, index = probs.sort(-1, descending=True)
        # Keep the smallest set whose mass reaches top_p; the first token always stays.
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= self.sampling.top_p, 0.0)
        return index.gather(-1, torch.multinomial(ranked, 1, generator=self.random)).squeeze(-1).tolist()

    def _step(self, chosen: list[int], running: set[int]) -> None:
        shape = self.shape
        enter = torch.arange(shape[0] * shape[1]).view(shape) + ALONE
        exit = enter + 1
        tokens, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        for i, (row, slot) in enumerate(self.place):
            self.position[i] += 1
            if i in running:
                enter[row, slot], exit[row, slot] = self.leaves[i].node, self.leaves[i].node + 1
                tokens[row, slot], positions[row, slot] = chosen[i], self.position[i]
        order = (torch.arange(shape[1]) + self.column).expand(shape)
        self.column += shape[1]
        batch = Batch(tokens, enter, exit, order.contiguous(), positions, _no_targets(), {}, (shape[1],) * shape[0])
        hidden = self.model(batch.to(self.device), cache=self.cache).hidden
        self.logits = self.model.logits(torch.stack([hidden[row, slot] for row, slot in self.place]))


def _no_targets() -> Targets:
    empty = torch.zeros(0, dtype=torch.int64)
    return Targets(empty, empty, empty.float(), empty)
