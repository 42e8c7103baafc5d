"""Which samples share a row. No sample is ever cut; what is too long is refused or dropped by the stated policy."""

from collections.abc import Sequence

__all__ = ["pack", "share"]


def pack(lengths: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Rows of sample numbers, none longer than `capacity` columns: first fit, longest first.

    Within a row, and among rows, samples keep their given order, so the result depends on lengths alone.

    >>> pack([600, 300, 500, 400], capacity=1000)
    [[0, 3], [1, 2]]
    """
    assert all(n <= capacity for n in lengths), "a sample longer than the row must be refused before packing"
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = next((r for r, free in enumerate(room) if free >= lengths[i]), None)
        if at is None:
            rows.append([])
            room.append(capacity)
            at = len(rows) - 1
        rows[at].append(i)
        room[at] -= lengths[i]
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])


def share(lengths: Sequence[int], *, parts: int) -> list[list[int]]:
    """Deals rows to `parts` ranks so that their tokens balance: longest first, to whoever has least.

    >>> share([100, 90, 20, 10], parts=2)
    [[0, 3], [1, 2]]
    """
    dealt: list[list[int]] = [[] for _ in range(parts)]
    load = [0] * parts
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # Fewest rows first, then fewest tokens: ranks must take the same number of steps.
        at = min(range(parts), key=lambda p: (len(dealt[p]), load[p], p))
        dealt[at].append(i)
        load[at] += lengths[i]
    return [sorted(d) for d in dealt]
