"""Intervals: what they cover, and that corpus measures are resampled as corpus measures."""

import numpy as np
import pytest

from quintet.evaluation.bootstrap import interval
from quintet.evaluation.metrics.pope import Pope


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def coins(ones: int, n: int) -> np.ndarray:
    return np.stack([np.arange(n) < ones, np.ones(n)], axis=1).astype(float)


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    """30 of 100: 0.3 ± 1.96·√(0.3·0.7/100) = 0.210 … 0.390. Shares are 0.01 apart: one step of tolerance.

    (90 % would be 0.225 … 0.375.)
    """
    assert interval(coins(30, 100), mean, resamples=4000) == pytest.approx((0.21, 0.39), abs=0.0101)


def test_equal_items_leave_no_doubt() -> None:
    assert interval(coins(7, 7), mean) == (1, 1)
    assert interval(coins(0, 1), mean) == (0, 0)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    sums = np.random.default_rng(0).random((50, 2)) + 0.1
    assert interval(sums, mean, seed=3) == interval(sums, mean, seed=3)
    assert interval(sums, mean, seed=3) != interval(sums, mean, seed=4)


def test_more_confidence_is_wider() -> None:
    low, high = interval(coins(30, 100), mean, level=0.8)
    wide_low, wide_high = interval(coins(30, 100), mean, level=0.99)
    assert wide_low < low < high < wide_high


def test_f1_is_resampled_as_a_corpus_measure() -> None:
    """Against drawing the items one by one and scoring each resample afresh, in plain Python.

    4,000 resamples on both sides; the ends of an interval then scatter by about 0.004.
    """
    rng = np.random.default_rng(5)
    truths = rng.choice(["yes", "no"], size=60)
    outputs = [t if rng.random() < 0.8 else ("no" if t == "yes" else "yes") for t in truths]
    slow = []
    for _ in range(4000):
        drawn = rng.integers(0, 60, size=60)
        both = [(outputs[i], truths[i]) for i in drawn]
        tp, wrong = both.count(("yes", "yes")), both.count(("yes", "no")) + both.count(("no", "yes"))
        slow.append(2 * tp / (2 * tp + wrong))
    fast = interval(Pope().judge(outputs, list(truths)).sums, Pope().value, resamples=4000)
    assert fast == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])), abs=0.015)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """200 samples of 80 coins with p = 0.7: 95 % ± 3 standard errors (0.015) and a little for the percentile method."""
    rng = np.random.default_rng(11)
    covered = 0
    for i in range(200):
        low, high = interval(coins(int(rng.binomial(80, 0.7)), 80), mean, resamples=400, seed=i)
        covered += low <= 0.7 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_large_sets_are_resampled_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = np.random.default_rng(0).random((30, 2)) + 0.1
    whole = interval(sums, mean)
    monkeypatch.setattr("quintet.evaluation.bootstrap._CELLS", 30 * 7)
    assert interval(sums, mean) == whole
