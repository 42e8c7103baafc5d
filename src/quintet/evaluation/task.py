"""A task is data, a metric and a version: what is asked, what is right, and how answers become one score.

items ──(a model answers)──► outputs ──score──► Score: the headline, each kind, how every item was judged
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from quintet.errors import DataError
from quintet.evaluation.metrics.metric import Floats, Metric
from quintet.values import Media, Node, Origin, Part, Region, Sample, Text, Turn

__all__ = ["Item", "Score", "Task"]


@dataclass(frozen=True)
class Item:
    """One prompt with its right answer."""

    id: str
    """Unique within the task."""
    parts: tuple[Part, ...]
    """What the user says: media and text, in order."""
    truth: Any
    """JSON data, as the task's metric defines it."""
    kind: str = "all"
    """The group its score is also reported in."""
    origin: Origin = field(default_factory=Origin)
    system: str = ""
    """A system message of the data's own; the template's stands if it is empty."""
    context: tuple[Turn, ...] = ()
    """Turns before the question: solved examples."""

    @property
    def prompt(self) -> str:
        """The words of the prompt, those of its examples first."""
        parts = [*(part for turn in self.context for part in turn.parts), *self.parts]
        return "\n".join(part.text for part in parts if isinstance(part, Text))

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions of the prompt, in order."""
        return tuple(part for part in self.parts if isinstance(part, Region))

    @property
    def media(self) -> tuple[Media, ...]:
        """The media of the prompt, those of its examples first, in order."""
        parts = [*(part for turn in self.context for part in turn.parts), *self.parts]
        return tuple(part for part in parts if isinstance(part, Media))

    def showing(self, media: Sequence[Media]) -> "Item":
        """The same with other media in the places of its own."""
        assert len(media) == len(self.media), f"{len(media)} media for {len(self.media)} places"
        fresh = iter(media)

        def put(parts: tuple[Part, ...]) -> tuple[Part, ...]:
            return tuple(next(fresh) if isinstance(part, Media) else part for part in parts)

        context = tuple(replace(turn, parts=put(turn.parts)) for turn in self.context)
        return replace(self, context=context, parts=put(self.parts))

    def sample(self) -> Sample:
        """The prompt as the model side takes it: what comes before, a user's turn, and no answer."""
        system = (Turn("system", (Text(self.system),)),) if self.system else ()
        return Sample(Node((*system, *self.context, Turn("user", self.parts))), self.origin)


@dataclass(frozen=True)
class Score:
    """The outcome of one set of outputs. `score`, `n`, `sums` and `measures` are of the headline's items."""

    score: float
    n: int
    kinds: dict[str, float]
    details: list[dict[str, Any]]
    """How each item was judged, headline or not, in the items' order."""
    measures: dict[str, float] = field(default_factory=dict)
    sums: Floats = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    """float[n, K]: what `metric.value` makes the score of; rows are what a bootstrap draws."""


@dataclass(frozen=True)
class Task:
    """Named data with a metric. `version` is raised when equal outputs would no longer give equal scores."""

    name: str
    version: str
    metric: Metric
    load: Callable[[], Iterable[Item]]
    headline: str = ""
    """The kind that the score is of; empty for all items together."""
    together: bool = False
    """Whether items are each other's candidates: all are asked at once, and an answer is a ranking (retrieval)."""
    learnt_from: str = ""
    """The kind of data (`Data.kind`) that teaches what is asked; empty if any does."""

    @property
    def higher_is_better(self) -> bool:
        return self.metric.higher_is_better

    def items(self) -> list[Item]:
        """All items, ordered by id.

        Raises:
            DataError: there are none, two have one id, or a file cannot be read as this task's data.
        """
        items = sorted(self.load(), key=lambda item: item.id)
        for one, two in pairwise(items):
            if one.id == two.id:
                origin = two.origin
                message = f"the id {two.id!r} is used twice; {self.name} needs one an item"
                raise DataError("duplicate-id", message, file=origin.file, row=origin.row)
        if not items:
            raise DataError("no-items", f"{self.name} has nothing to ask in this data")
        return items

    def score(self, items: Sequence[Item], outputs: Sequence[str]) -> Score:
        """Judges `outputs`, one for each of `items`, all together."""
        judged = self.metric.judge(outputs, [item.truth for item in items])
        kinds: dict[str, list[int]] = {}
        for i, item in enumerate(items):
            kinds.setdefault(item.kind, []).append(i)
        sums = judged.sums[kinds.get(self.headline, [])] if self.headline else judged.sums
        total = sums.sum(axis=0)
        return Score(
            score=float(self.metric.value(total)),
            n=len(sums),
            kinds={kind: float(self.metric.value(judged.sums[kinds[kind]].sum(axis=0))) for kind in sorted(kinds)},
            details=judged.how,
            measures=self.metric.measures(total),
            sums=sums,
        )

    def majority(self, items: Sequence[Item]) -> tuple[Score, dict[str, str]]:
        """The control that sees no picture: for each kind the one answer that scores best, and those answers.

        The answer is chosen on the very items it is scored on, so it is a little better than it could be elsewhere.
        """
        truths: dict[str, list[Any]] = {}
        for item in items:
            truths.setdefault(item.kind, []).append(item.truth)
        answers = {kind: self.metric.best_guess(truths[kind]) for kind in sorted(truths)}
        return self.score(items, [answers[item.kind] for item in items]), answers
