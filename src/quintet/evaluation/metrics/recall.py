"""Recall at 1, 5 and 10: is something right among the first names of a ranking?

Source: the measure of image–text retrieval on COCO and Flickr30K (Karpathy and Fei-Fei 2015, arXiv:1412.2306).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from quintet.evaluation.metrics.metric import Floats, Judged, Metric, commonest, ratio

__all__ = ["DIRECTIONS", "LEVELS", "Recall"]

DIRECTIONS = ("image to text", "text to image")
LEVELS = (1, 5, 10)


class Recall(Metric):
    """R@1 over both directions, with R@1, R@5 and R@10 of each beside it.

    An output is a ranking: a name a line, the best first. A truth is `{"direction": …, "right": [names]}`; one of the
    right names among the first k is enough, as on COCO, where five captions are right for a picture.
    """

    name = "R@1"

    def judge(self, outputs: Sequence[str], truths: Sequence[Any]) -> Judged:
        sums = np.zeros((len(outputs), len(DIRECTIONS), 1 + len(LEVELS)))
        how = []
        for row, output, truth in zip(sums, outputs, truths, strict=True):
            ranked, right = output.splitlines(), set(truth["right"])
            rank = next((n for n, name in enumerate(ranked, start=1) if name in right), None)
            of = row[DIRECTIONS.index(truth["direction"])]
            of[0] = 1
            of[1:] = [rank is not None and rank <= level for level in LEVELS]
            how.append({"correct": rank == 1, "rank": rank})
        return Judged(sums.reshape(len(outputs), -1), how)

    def guesses(self, truths: Sequence[Any]) -> list[str]:
        return ["\n".join(commonest((name for truth in truths for name in truth["right"]), limit=max(LEVELS)))]

    def value(self, sums: Floats) -> Floats:
        by_direction = _apart(sums)
        return ratio(by_direction[..., 1].sum(-1), by_direction[..., 0].sum(-1))

    def measures(self, sums: Floats) -> dict[str, float]:
        """Recall at each level in each direction."""
        by_direction = _apart(sums)
        return {
            f"{direction} R@{level}": float(ratio(of[n], of[0]))
            for direction, of in zip(DIRECTIONS, by_direction, strict=True)
            for n, level in enumerate(LEVELS, start=1)
        }


def _apart(sums: Floats) -> Floats:
    """float[…, K] → float[…, direction, items and hits]."""
    return sums.reshape(*sums.shape[:-1], len(DIRECTIONS), 1 + len(LEVELS))
