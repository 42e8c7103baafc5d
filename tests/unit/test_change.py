"""What an alignment changed: every difference has the interval of its items, drawn the same before and after."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from quintet.evaluation.metrics.chair import Chair
from quintet.lab.change import _beside, _guarded, _row, perplexity, text
from quintet.model.checkpoint import write_json


def test_perplexity_is_paired_picture_by_picture(tmp_path: Path) -> None:
    """Half a nat a token before and a whole one after, in every picture: e - sqrt(e) whatever is drawn."""
    for name, nats in (("before", 0.5), ("after", 1.0)):
        (tmp_path / name / "eval").mkdir(parents=True)
        write_json(tmp_path / name / "eval" / "text.json", {"items": [[nats * n, n] for n in (2, 5, 9)]})
    row = _row("perplexity of text", text(tmp_path / "before"), text(tmp_path / "after"), perplexity, False)
    assert (row.before, row.after) == pytest.approx((math.exp(0.5), math.e))
    assert row.interval == pytest.approx((math.e - math.exp(0.5),) * 2)
    assert _guarded(row, 0.05).lost
    assert not _guarded(row, 0.7).lost, "1.65 may become 2.80"


def test_what_stands_beside_a_score_has_an_interval_as_the_score_has() -> None:
    """Recall falls from 2/2 to 1/2 in half of the pictures: 0.75 of what is there is left, and not surely so."""
    chair = Chair(lambda output: output.split())
    truths = [{"objects": ["cat", "dog"], "captions": []}] * 40
    one = chair.judge(["cat dog"] * 40, truths).sums
    two = chair.judge(["cat dog", "cat"] * 20, truths).sums
    rows = {key: _row(key, one, two, partial(_beside, chair, key), True) for key in ("recall", "words")}
    assert (rows["recall"].before, rows["recall"].after) == (1.0, 0.75)
    assert (rows["words"].before, rows["words"].after) == (2.0, 1.5)
    low, high = rows["recall"].interval
    assert -0.35 < low < -0.25 < high < -0.15
    # A binomial's: 1.96 * sqrt(0.25 / 40) / 2 to each side.
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 40) / 2, rel=0.15)
    assert np.allclose(_beside(chair, "words", np.stack([one.sum(axis=0), two.sum(axis=0)])), [2.0, 1.5])
