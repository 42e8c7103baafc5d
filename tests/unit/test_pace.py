"""Where there is no bar, long work says how far it is. Milliseconds."""

from pathlib import Path

import pytest
from rich.console import Console

from quintet import pace
from quintet.cli.progress import Bars


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def test_a_line_comes_every_half_minute_with_what_is_left(clock: list[float]) -> None:
    """By hand: a tenth in 40 s leaves 360 s; nine tenths in 80 s leave 8.9 s."""
    said: list[str] = []
    told = pace.Pace(said.append, "pairs")
    for seconds, done in ((20, 100), (40, 200), (60, 1000), (80, 1800)):
        clock[0] = 100.0 + seconds
        told(done, 2000)
    assert said == ["pairs: 200 of 2,000, about 6 min left", "pairs: 1,800 of 2,000, about 9 s left"]


def test_a_bar_that_nobody_sees_says_it_in_lines(clock: list[float], tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file, Bars(Console(file=file)) as bars:
        bars.update("a [b]", 1, 4)
        clock[0] += 31
        bars.update("a [b]", 2, 4)
    assert (tmp_path / "log").read_text() == "a [b]: 2 of 4, about 31 s left\n"
