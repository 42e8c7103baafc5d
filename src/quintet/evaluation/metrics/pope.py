"""POPE: is there a …? Yes or no, with "yes" as the positive class.

Source: Li et al. 2023, arXiv:2305.10355; RUCAIBox/POPE, evaluate.py. Its rule for reading an answer is kept:
whatever is not a no is a yes, so a silent model has recall 1. Look at `unread` beside the score.
"""

import re
from collections.abc import Sequence

import numpy as np

from quintet.evaluation.metrics.metric import Floats, Judged, Metric, ratio

__all__ = ["Pope", "read_answer"]

_NO = {"No", "no", "not"}
_CELLS = {("yes", "yes"): 0, ("yes", "no"): 1, ("no", "no"): 2, ("no", "yes"): 3}  # (read as, label): TP FP TN FN


def read_answer(text: str) -> str:
    """'no' if a word before the first full stop is exactly No, no or not, and 'yes' otherwise.

    >>> read_answer("No, there is none."), read_answer("nothing"), read_answer("")
    ('no', 'yes', 'yes')
    """
    words = text.strip().split(".")[0].replace(",", "").split(" ")
    return "no" if _NO & set(words) else "yes"


class Pope(Metric):
    """F1 of "yes", with accuracy, precision, recall and the share of yes. A truth is 'yes' or 'no'."""

    name = "F1"

    def judge(self, outputs: Sequence[str], truths: Sequence[str]) -> Judged:
        sums = np.zeros((len(outputs), 5))
        how = []
        for row, output, label in zip(sums, outputs, truths, strict=True):
            answer = read_answer(output)
            unread = answer == "yes" and re.search(r"\byes\b", output, re.IGNORECASE) is None
            row[_CELLS[answer, label]] = 1
            row[4] = unread
            how.append({"correct": answer == label, "read_as": answer, "unread": unread})
        return Judged(sums, how)

    def guesses(self, truths: Sequence[str]) -> list[str]:
        return ["yes", "no"]

    def value(self, sums: Floats) -> Floats:
        tp, fp, fn = sums[..., 0], sums[..., 1], sums[..., 3]
        return ratio(2 * tp, 2 * tp + fp + fn)

    def measures(self, sums: Floats) -> dict[str, float]:
        """Accuracy, precision, recall, share of yes among the answers, and share of answers that were neither."""
        tp, fp, tn, fn, unread = sums
        count = tp + fp + tn + fn
        return {
            "accuracy": float(ratio(tp + tn, count)),
            "precision": float(ratio(tp, tp + fp)),
            "recall": float(ratio(tp, tp + fn)),
            "yes_ratio": float(ratio(tp + fp, count)),
            "unread": float(ratio(unread, count)),
        }
