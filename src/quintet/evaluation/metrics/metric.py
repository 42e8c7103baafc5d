"""What every metric is: a row of sums for each item, and a function of their total.

Accuracy, F1 and CHAIR alike are functions of sums over items, so one representation gives the score, the score of any
kind of question, and any bootstrap resample of them: no mean of means is ever taken. Letters in shapes: N items,
K sums, R resamples.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Judged", "Metric", "beside", "commonest", "ratio"]

Floats = NDArray[np.float64]

_MAX_GUESSES = 8


@dataclass(frozen=True)
class Judged:
    """`sums` float[N, K] and, for each item, how it was scored, as JSON data to be read by people."""

    sums: Floats
    how: list[dict[str, Any]]

    @staticmethod
    def mean_of(values: Sequence[float], how: list[dict[str, Any]]) -> "Judged":
        """For a score that is the mean of a value per item: the sums are the value and one."""
        column = np.asarray(values, dtype=np.float64)
        return Judged(np.stack([column, np.ones_like(column)], axis=1), how)


class Metric(ABC):
    """A measure of outputs against truths. What a truth is, each metric says; it is always JSON data.

    `value` and `measures` are the mean of column 0 over column 1 unless a metric says otherwise.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    of_regions: ClassVar[bool] = False
    """Whether it judges the regions of an output, which then come as `[x1, y1, x2, y2]` in shares of the picture."""

    beside: ClassVar[str] = ""
    """The measure without which the score says little: it is printed beside it wherever the score is."""

    @abstractmethod
    def judge(self, outputs: Sequence[str], truths: Sequence[Any]) -> Judged:
        """Judges all items of a task at once: a corpus metric needs them together. No output raises."""

    @abstractmethod
    def guesses(self, truths: Sequence[Any]) -> list[str]:
        """Answers that ignore the picture, likeliest first; never empty where there are truths."""

    def best_guess(self, truths: Sequence[Any]) -> str:
        """The guess that scores best when it is given as every answer: what the majority control says."""
        sign = 1 if self.higher_is_better else -1
        guesses = self.guesses(truths)
        scores = [float(self.value(self.judge([guess] * len(truths), truths).sums.sum(axis=0))) for guess in guesses]
        return guesses[max(range(len(guesses)), key=lambda i: sign * scores[i])]

    def value(self, sums: Floats) -> Floats:
        """The score of total sums float[..., K], as float[...]."""
        return ratio(sums[..., 0], sums[..., 1])

    def measures(self, sums: Floats) -> dict[str, float]:
        """What is reported beside the score, from the total float[K]."""
        return {}


def ratio(part: Floats, whole: Floats) -> Floats:
    """`part / whole`, and 0 where `whole` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole != 0)


def beside(result: Mapping[str, Any]) -> str:
    """` (recall 0.25)`, to stand behind a score: the measure that its metric wants beside it; empty if it wants none.

    `result` is a task's result as JSON has it, or a score of a comparison; older files say nothing of it.
    """
    name = result.get("beside", "")
    return f" ({name} {result['measures'][name]:.2f})" if name else ""


def commonest(answers: Iterable[str], *, limit: int = _MAX_GUESSES) -> list[str]:
    """The `limit` most frequent answers; equally frequent ones in alphabetical order, whatever order they came in.

    >>> commonest(["red", "blue", "red", "green"], limit=2)
    ['red', 'blue']
    """
    counts = Counter(answers)
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:limit]
