"""ANLS: reading measured by edit distance, which forgives a slip and nothing worse.

Source: Biten et al. 2019, arXiv:1905.13648, section 4, with threshold 0.5.
"""

from collections.abc import Sequence

from quintet.evaluation.metrics.metric import Judged, Metric, commonest

__all__ = ["Anls", "levenshtein", "similarity"]

_THRESHOLD = 0.5


def levenshtein(a: str, b: str) -> int:
    """The fewest insertions, deletions and replacements that turn `a` into `b`.

    >>> levenshtein("hello", "helo"), levenshtein("", "ab")
    (1, 2)
    """
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
        before = row
    return before[-1]


def similarity(answer: str, reference: str) -> float:
    """1 − distance / length of the longer, and 0 when half or more would have to change; case and spaces aside.

    >>> similarity("helo", "hello"), similarity("hxxxx", "hello")
    (0.8, 0.0)
    """
    a, b = _folded(answer), _folded(reference)
    distance = levenshtein(a, b) / max(len(a), len(b), 1)
    return 1 - distance if distance < _THRESHOLD else 0.0


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


class Anls(Metric):
    """Mean over items of the best similarity to any reference. A truth is a list of strings, or one string."""

    name = "ANLS"

    def judge(self, outputs: Sequence[str], truths: Sequence[str | Sequence[str]]) -> Judged:
        values = [
            max(similarity(output, reference) for reference in ([truth] if isinstance(truth, str) else truth))
            for output, truth in zip(outputs, truths, strict=True)
        ]
        return Judged.mean_of(values, [{"similarity": value} for value in values])

    def guesses(self, truths: Sequence[str | Sequence[str]]) -> list[str]:
        return commonest(r for truth in truths for r in ([truth] if isinstance(truth, str) else truth))
