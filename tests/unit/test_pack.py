"""Rows and ranks: nothing is cut, nothing is lost, nobody waits. About 2 s."""

from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.data.pack import pack, share

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=30)


def test_rows_are_as_few_as_first_fit_needs_and_level() -> None:
    """Capacity 10: first fit needs three (7 + 3, 6 + 4, 2), the longest 10. Longest first to the shortest row: 7, 6,
    4, then 3 joins 4, 2 joins 6: the longest 8. Rows come in the order of their firsts.
    """
    assert pack([3, 7, 4, 6, 2], capacity=10) == [[0, 2], [1], [3, 4]]


def test_rows_stay_as_first_fit_has_them_where_levelling_is_no_gain() -> None:
    """Capacity 10: 6 + 4 and 5 + 3 + 2 are full; longest first to the shortest gives 6 + 3, 5 + 4 and 2: 11."""
    assert pack([6, 5, 4, 3, 2], capacity=10) == [[0, 2], [1, 3, 4]]


def test_full_pictures_waste_no_quarter() -> None:
    """Eight of about 700 columns in rows of 2,048 need four: of two each, and not of three, two, two and one."""
    rows = pack([680, 700, 690, 720, 660, 710, 700, 730], capacity=2048)
    assert [len(row) for row in rows] == [2, 2, 2, 2]


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
    """First fit leaves at most one row half empty: two such would have been one. Levelling adds no row."""
    assert (len(pack(lengths, capacity=capacity)) - 1) * capacity < 2 * sum(lengths)


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
