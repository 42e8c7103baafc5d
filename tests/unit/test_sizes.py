"""Few sizes: never less than what is asked, little more, and not many."""

import pytest

from quintet.sizes import rounded


@pytest.mark.parametrize("per_octave", [1, 4, 8, 16])
def test_sizes_are_close_above_and_few(per_octave: int) -> None:
    sizes = [rounded(n, per_octave=per_octave) for n in range(1, 4097)]
    assert all(n <= size <= n + max(0, (n - 1) / per_octave) for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert len(set(s for s in sizes if 2048 < s <= 4096)) == per_octave


def test_nothing_stays_nothing() -> None:
    assert rounded(0) == 0
