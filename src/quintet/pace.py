"""How far long work is, where there is no bar to look at."""

import time
from collections.abc import Callable

__all__ = ["Pace", "minutes"]


class Pace:
    """Says about every half minute how much of something is done and how long the rest will take.

    >>> pace = Pace(print, "pairs", every=0)
    >>> pace(50, 50)
    pairs: 50 of 50
    """

    def __init__(self, say: Callable[[str], None], what: str, *, every: float = 30.0) -> None:
        self.say, self.what, self.every = say, what, every
        self.begun = self.said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Tells that so many are done."""
        now = time.monotonic()
        if now - self.said < self.every:
            return
        self.said = now
        left = (now - self.begun) / done * (total - done) if done else 0.0
        self.say(f"{self.what}: {done:,} of {total:,}" + (f", about {minutes(left)} left" if left > 1 else ""))


def minutes(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> minutes(75), minutes(600)
    ('75 s', '10 min')
    """
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
