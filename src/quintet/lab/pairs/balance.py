"""Pairs whose two sides are as long: or a model learns that short answers are good ones.

Source: RLAIF-V (Yu et al. 2024, arXiv:2405.17220), its released filter: of the thresholds 0, 0.02 … 0.98 the one under
which chosen and rejected answers have the most equal mean length, in words.
"""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["balanced"]


def balanced(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without those whose rejected answer is longer than the chosen one by more than the best share."""
    if not rows:
        return []
    lengths = [(len(row["chosen"].split()), len(row["rejected"].split())) for row in rows]
    kept = {
        step: [n for n, (won, lost) in enumerate(lengths) if (lost - won) / max(lost, 1) <= step / 50]
        for step in range(50)
    }
    found = [step for step in kept if kept[step]]
    best = min(found, key=lambda step: _apart([lengths[n] for n in kept[step]])) if found else 0
    return [dict(rows[n]) for n in kept[best]]


def _apart(lengths: Sequence[tuple[int, int]]) -> float:
    """How far the mean lengths are apart, as a share of the rejected ones'."""
    won, lost = (sum(each) / len(lengths) for each in zip(*lengths, strict=True))
    return abs(won - lost) / max(lost, 1e-9)
