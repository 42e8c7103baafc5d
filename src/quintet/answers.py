"""Answers to the same prompt that are compared: branches of a tree, in a sample and in a batch.

A answers, N of them that are asked about.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quintet.errors import DataError

__all__ = ["Answer", "Answers"]

KEYS = {"severity": "`rejected_score` (of the better answer `chosen_score`)", "margin": "`margin`"}
"""What rows call a number of an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A branch that is compared with others of its sample."""

    score: float | None = None
    """How good it is: of two answers of a sample, the one with the higher score won. A preference pair has 1 and 0."""
    name: str = ""
    """What it is besides, for objectives that ask: `unseen` are a winner's words about another picture."""
    of: int = 0
    """With such a name: which answer of its sample has the same words, counted from 0 in the order of the tree."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What else is known about it: `severity`, `margin`."""


@dataclass(frozen=True)
class Answers:
    """The branches of a batch that are compared, int64[A] each.

    `node` as in `Targets.node`, `end` is the first node behind it and all below it, `sample` numbers samples, `last` is
    the column of the answer's last token, flat into B·T: what a reward is read from.
    """

    node: Tensor
    end: Tensor
    sample: Tensor
    last: Tensor
    told: tuple[Answer, ...]

    @classmethod
    def alone(cls, told: Sequence[tuple[int, Answer]], enter: Tensor, exit: Tensor) -> "Answers":
        """Those of one sample: `told`, `enter` and `exit` as in `Tokens`."""
        last = [int((enter == node).nonzero()[-1]) for node, _ in told]
        node, column = (torch.tensor(each, dtype=torch.int64) for each in ([n for n, _ in told], last))
        return cls(node, exit[column], torch.zeros_like(node), column, tuple(answer for _, answer in told))

    def __len__(self) -> int:
        return len(self.told)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Every two answers of a sample of which one is better: indices of the better ones and of the others."""
        found: list[tuple[int, int]] = []
        for group in self._groups().values():
            scored = [(self.told[i].score, i) for i in group]
            known = [(score, i) for score, i in scored if score is not None]
            found += [(i, j) for score, i in known for other, j in known if score > other and self._apart(i, j)]
        won, lost = zip(*found, strict=True) if found else ((), ())
        return self._indices(won), self._indices(lost)

    def beside(self, name: str, of: Tensor) -> Tensor:
        """For answers of these indices, the answer of that name with the same words (`Answer.of`).

        Raises:
            DataError: one has none, or several.
        """
        groups, samples = self._groups(), self.sample.tolist()
        found: list[int] = []
        for i in of.tolist():
            group = groups[samples[i]]
            same = [j for j in group if self.told[j].name == name and group[self.told[j].of] == i]
            if len(same) != 1:
                raise DataError(
                    "no-answer",
                    f"{len(same) or 'nothing'} named {name!r} stands beside a better answer, its words about another "
                    "picture, and the objective needs one; a row without a picture can have none",
                )
            found += same
        return self._indices(found)

    def named(self, name: str) -> list[int]:
        """The answers of that name."""
        return [index for index, answer in enumerate(self.told) if answer.name == name]

    def numbers(self, name: str, of: Tensor) -> Tensor:
        """What is known about answers of these indices, float32[N].

        Raises:
            DataError: it is not known of one of them.
        """
        known = [self.told[i].numbers.get(name) for i in of.tolist()]
        if None in known:
            key = f", the row's key {KEYS[name]}" if name in KEYS else ""
            raise DataError("no-number", f"an answer has no {name!r}{key}, and the objective needs it of each")
        return torch.tensor(known, dtype=torch.float32, device=self.node.device)

    def _apart(self, one: int, two: int) -> bool:
        """Whether neither answer goes on from the other."""
        first, last = sorted((one, two), key=lambda i: int(self.node[i]))
        return int(self.end[first]) <= int(self.node[last])

    def _groups(self) -> dict[int, list[int]]:
        groups: dict[int, list[int]] = {}
        for index, sample in enumerate(self.sample.tolist()):
            groups.setdefault(sample, []).append(index)
        return groups

    def _indices(self, values: Iterable[int]) -> Tensor:
        return torch.tensor([*values], dtype=torch.int64, device=self.node.device)
