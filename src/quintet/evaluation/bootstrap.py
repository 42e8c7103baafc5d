"""Bootstrap intervals of any score that is a function of sums over items.

Items are drawn with replacement; the score of each resample is computed from that resample's total, as the score
itself is, so corpus measures (F1, CHAIR) are resampled as corpus measures. Percentile method: Efron and Tibshirani
1993, An Introduction to the Bootstrap, section 13.3.
"""

from collections.abc import Callable, Sequence

import numpy as np

from quintet.evaluation.metrics.metric import Floats

__all__ = ["interval", "percentiles", "resampled"]

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
    return percentiles(resampled([[sums]], value, resamples=resamples, seed=seed)[0], level=level)


def resampled(
    systems: Sequence[Sequence[Floats]], value: Callable[[Floats], Floats], *, resamples: int = 1000, seed: int = 0
) -> Floats:
    """The mean score of each system in every resample, float[M, R].

    A system is its runs (one a training seed), each with the sums float[N, K] of the same N items. A resample draws
    items, the same for all systems and runs, and runs, the same for all systems of as many. So systems are paired:
    the difference of two rows is the bootstrap of their difference on the same items and seeds. With few runs their
    spread is underestimated (by a factor of (S - 1) / S in the variance for S of them).
    """
    assert systems, "no systems to resample"
    [num_items] = {len(sums) for runs in systems for sums in runs}
    assert num_items > 0, "no items to resample"
    rng = np.random.default_rng(seed)
    lots = np.random.default_rng((seed, 1)).random((resamples, max(map(len, systems))))
    chunk = max(1, _CELLS // num_items)
    scores = np.empty((len(systems), resamples))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        # How often each item is drawn, int[size, N]: a resample's total is then one row of a matrix product.
        counts = rng.multinomial(num_items, np.full(num_items, 1 / num_items), size=size).astype(np.float64)
        for row, runs in zip(scores, systems, strict=True):
            of_runs = np.stack([value(counts @ sums) for sums in runs], axis=1)
            drawn = (lots[start : start + size, : len(runs)] * len(runs)).astype(int)
            row[start : start + size] = np.take_along_axis(of_runs, drawn, axis=1).mean(axis=1)
    return scores


def percentiles(scores: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of resampled scores float[R]."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(scores, [tail, 100 - tail])
    return float(low), float(high)
