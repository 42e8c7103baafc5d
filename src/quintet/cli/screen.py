"""The terminal that commands write to. Into a pipe or a file, lines are wide enough that nothing is folded or cut."""

from rich.console import Console

__all__ = ["screen"]

_PIPE = 160


def screen(*, stderr: bool = False) -> Console:
    """A console on stdout, or on stderr."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=_PIPE)
