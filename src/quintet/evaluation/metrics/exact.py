"""Exact match: the answer is one of the right ones, letter for letter after case and outer marks are dropped."""

from collections.abc import Sequence

from quintet.evaluation.metrics.metric import Judged, Metric, commonest

__all__ = ["ExactMatch", "plain"]


def plain(text: str) -> str:
    """`text` in lower case, spaces squeezed, without a full stop at the end.

    >>> plain("  Top   Left. ")
    'top left'
    """
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


class ExactMatch(Metric):
    """Share of outputs equal to their truth. A truth is a string, or a list of strings of which any will do.

    Source: GQA and OCR-VQA match lower-cased answers; that a final full stop is dropped is ours.
    """

    name = "exact match"

    def judge(self, outputs: Sequence[str], truths: Sequence[str | Sequence[str]]) -> Judged:
        answers = [plain(output) for output in outputs]
        right = [a in map(plain, _options(t)) for a, t in zip(answers, truths, strict=True)]
        how = [{"correct": r, "read_as": a} for r, a in zip(right, answers, strict=True)]
        return Judged.mean_of(list(map(float, right)), how)

    def guesses(self, truths: Sequence[str | Sequence[str]]) -> list[str]:
        return commonest(plain(option) for truth in truths for option in dict.fromkeys(_options(truth)))


def _options(truth: str | Sequence[str]) -> Sequence[str]:
    return [truth] if isinstance(truth, str) else truth
