"""Grounding: share of boxes that overlap the true one by at least half (Acc@IoU 0.5).

Source: the measure of referring-expression comprehension since Yu et al. 2016, arXiv:1608.00272, section 5.
"""

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from quintet.evaluation.metrics.metric import Floats, Judged, Metric, ratio
from quintet.values import Region

__all__ = ["Box", "BoxAccuracy", "iou", "read_box", "write_boxes"]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in the same units as the truth's."""

_NUMBER = r"\s*(-?(?:\d+(?:\.\d*)?|\.\d+))\s*"
_BOX = re.compile(r"\[" + ",".join([_NUMBER] * 4) + r"\]")
_HALF = 0.5 - 1e-9  # decimals such as 0.1 are not exact: an overlap of one half by the digits written counts


def read_box(text: str) -> Box | None:
    """The first `[x1, y1, x2, y2]` in `text`; None if there is none, or it has no area.

    >>> read_box("It is at [0.1, 0.2, 0.5, 0.6]."), read_box("[0.5, 0.2, 0.1, 0.6]"), read_box("left")
    ((0.1, 0.2, 0.5, 0.6), None, None)
    """
    found = _BOX.search(text)
    if found is None:
        return None
    x1, y1, x2, y2 = map(float, found.groups())
    fine = x1 < x2 and y1 < y2 and all(map(math.isfinite, (x1, y1, x2, y2)))
    return (x1, y1, x2, y2) if fine else None


def write_boxes(regions: Iterable[Region]) -> str:
    """The boxes among `regions` as `read_box` reads them, whole.

    >>> write_boxes([Region("points", (0.5, 0.5)), Region("box", (0.125, 0.2, 0.5, 0.6))])
    '[0.125, 0.2, 0.5, 0.6]'
    """
    return " ".join(f"[{', '.join(f'{v:.12g}' for v in each.points)}]" for each in regions if each.kind == "box")


def iou(a: Box, b: Box) -> float:
    """Intersection over union.

    >>> iou((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (_area(a) + _area(b) - shared)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


class BoxAccuracy(Metric):
    """Share of outputs whose box has an IoU of at least 0.5, with the mean IoU. A truth is [x1, y1, x2, y2].

    An output without a box is wrong, has IoU 0, and is counted in `unread`.
    """

    name = "accuracy at IoU 0.5"
    of_regions = True

    def judge(self, outputs: Sequence[str], truths: Sequence[Sequence[float]]) -> Judged:
        sums = np.zeros((len(outputs), 4))
        how = []
        for row, output, truth in zip(sums, outputs, truths, strict=True):
            box = read_box(output)
            x1, y1, x2, y2 = truth
            overlap = 0.0 if box is None else iou(box, (x1, y1, x2, y2))
            row[:] = overlap >= _HALF, 1, overlap, box is None
            how.append({"correct": overlap >= _HALF, "iou": overlap, "read_as": None if box is None else list(box)})
        return Judged(sums, how)

    def guesses(self, truths: Sequence[Sequence[float]]) -> list[str]:
        """The median box and the mean box: exact boxes hardly repeat."""
        centre = [np.median(truths, axis=0), np.mean(truths, axis=0)]
        return ["[" + ", ".join(f"{x:.4f}" for x in box) + "]" for box in centre]

    def measures(self, sums: Floats) -> dict[str, float]:
        """Mean IoU, and share of outputs without a box."""
        _, count, overlap, unread = sums
        return {"mean_iou": float(ratio(overlap, count)), "unread": float(ratio(unread, count))}
