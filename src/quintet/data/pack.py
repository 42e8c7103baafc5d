"""Which samples share a row. No sample is ever cut; what is too long is refused or dropped by the stated policy."""

from collections.abc import Sequence

__all__ = ["pack", "share"]


def pack(lengths: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Rows of sample numbers, none longer than `capacity` columns: as few as first fit needs, and level.

    A batch is as wide as its longest row, so one full row beside half-empty ones is padding in all of them. Within a
    row, and among rows, samples keep their given order, so the result depends on lengths alone.

    >>> pack([600, 300, 500, 400], capacity=1000)
    [[0, 1], [2, 3]]
    """
    assert all(n <= capacity for n in lengths), "a sample longer than the row must be refused before packing"
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    tight: list[list[int]] = []
    room: list[int] = []
    for i in longest_first:
        at = next((r for r, free in enumerate(room) if free >= lengths[i]), None)
        if at is None:
            tight.append([])
            room.append(capacity)
            at = len(tight) - 1
        tight[at].append(i)
        room[at] -= lengths[i]
    level: list[list[int]] = [[] for _ in tight]
    load = [0] * len(tight)
    for i in longest_first:
        at = load.index(min(load))
        level[at].append(i)
        load[at] += lengths[i]
    rows = level if max(load, default=0) < capacity - min(room, default=0) else tight
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
