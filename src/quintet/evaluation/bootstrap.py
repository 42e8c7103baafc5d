"""Bootstrap intervals of any score that is a function of sums over items.

Items are drawn with replacement; the score of each resample is computed from that resample's total, as the score
itself is, so corpus measures (F1, CHAIR) are resampled as corpus measures. Percentile method: Efron and Tibshirani
1993, An Introduction to the Bootstrap, section 13.3.
"""

from collections.abc import Callable

import numpy as np

from quintet.evaluation.metrics.metric import Floats

__all__ = ["interval"]

_CELLS = 4_000_000  # counts held at a time: 32 MB


def interval(
    sums: Floats,
    value: Callable[[Floats], Floats],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of `value(total)` when the N items of `sums` float[N, K] are drawn again.

    `value` maps totals float[R, K] to scores float[R]. The rows' order matters only through the seed's luck; give
    them in a fixed order.

    >>> interval(np.array([[1.0, 1.0]] * 8), lambda total: total[..., 0] / total[..., 1])
    (1.0, 1.0)
    """
    num_items = len(sums)
    assert num_items > 0, "no items to resample"
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS // num_items)
    scores: list[Floats] = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        # How often each item is drawn, int[size, N]: a resample's total is then one row of a matrix product.
        counts = rng.multinomial(num_items, np.full(num_items, 1 / num_items), size=size)
        scores.append(value(counts.astype(np.float64) @ sums))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(np.concatenate(scores), [tail, 100 - tail])
    return float(low), float(high)
