"""Rows and ranks: nothing is cut, nothing is lost, nobody waits. About 2 s."""

from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.data.pack import pack, share

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=30)


def test_first_fit_longest_first_by_hand() -> None:
    """Capacity 10: 7 opens row A, 6 row B, 4 goes to B, 3 to A, 2 opens C. Rows come in the order of their firsts."""
    assert pack([3, 7, 4, 6, 2], capacity=10) == [[0, 1], [2, 3], [4]]


@given(LENGTHS, st.integers(100, 200))
@settings(deadline=None)
def test_every_sample_is_in_exactly_one_row_and_no_row_is_too_long(lengths: list[int], capacity: int) -> None:
    rows = pack(lengths, capacity=capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity for row in rows)
    assert all(row == sorted(row) for row in rows)


@given(LENGTHS, st.integers(100, 200))
@settings(deadline=None)
def test_packing_wastes_less_than_half(lengths: list[int], capacity: int) -> None:
    """First fit leaves at most one row half empty: two such would have been one."""
    half_empty = [row for row in pack(lengths, capacity=capacity) if sum(lengths[i] for i in row) * 2 <= capacity]
    assert len(half_empty) <= 1


@given(LENGTHS, st.integers(1, 5))
@settings(deadline=None)
def test_ranks_get_every_row_once_and_as_many_as_each_other(lengths: list[int], parts: int) -> None:
    dealt = share(lengths, parts=parts)
    assert sorted(i for part in dealt for i in part) == list(range(len(lengths)))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_tokens_balance_by_hand() -> None:
    """Longest first to whoever has fewest rows, then fewest tokens: 9 | 8, then 7 joins 8's rank? No: rows are equal,
    and 8 < 9, so 7 goes to the second; then 1 to the first, which has fewer rows.
    """
    assert share([9, 8, 7, 1], parts=2) == [[0, 3], [1, 2]]
