"""The terminal that commands write to. Into a pipe or a file, lines are wide enough that nothing is folded or cut."""

import os

from rich.console import Console

__all__ = ["screen"]

_PIPE = 160


def screen(*, stderr: bool = False) -> Console:
    """A console on stdout, or on stderr; as wide as COLUMNS says, where it says so."""
    console = Console(stderr=stderr)
    told = console.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    return console if told else Console(stderr=stderr, width=_PIPE)
