"""Few sizes instead of many: what a new shape costs is paid once.

Matrix libraries build a kernel for every shape they meet and keep it (oneDNN: about 60 kB each), and memory that was
freed fits the next tensor only if that is no larger. A training whose every step has shapes of its own pays for both
at every step: a third of its time, and 20 MB a step that never come back (docs/log.md, "shapes that never repeat").
"""

__all__ = ["rounded"]


def rounded(n: int, *, per_octave: int = 8) -> int:
    """The next of `per_octave` sizes between two powers of two: at most 1 / `per_octave` more than `n`.

    >>> [rounded(n) for n in (5, 90, 129, 1000, 2801)]
    [5, 96, 144, 1024, 2816]
    """
    grid = max(1, (1 << (n - 1).bit_length()) // (2 * per_octave))
    return -(-n // grid) * grid
