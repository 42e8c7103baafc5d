"""What goes wrong on the user's side: one tree of exceptions, each saying what to do.

QuintetError
  ConfigError      a setting is wrong; the message names it
  DataError        a sample cannot be used; the message names file, row and field
  AlignmentError   text and media disagree; the message gives both counts, item by item
  CheckpointError  a folder cannot be loaded
  TrainingError    a run cannot go on (a loss that is not finite, too many dropped samples)

Our own mistakes are `assert`s. Nothing here is raised for them.
"""

import difflib
from collections.abc import Iterable

__all__ = ["AlignmentError", "CheckpointError", "ConfigError", "DataError", "QuintetError", "TrainingError", "nearest"]


class QuintetError(Exception):
    """Everything we raise on purpose. The command line prints it without a traceback and exits with 1."""


class ConfigError(QuintetError, ValueError):
    """A setting is wrong."""


class DataError(QuintetError, ValueError):
    """A sample cannot be used.

    `fault` is a short, stable word for the kind of fault (`missing-file`, `empty-answer`); `row` counts from 1.

    >>> str(DataError("empty-answer", "the answer is empty; write one", file="a.json", row=3, field="value"))
    'a.json, row 3, field value: the answer is empty; write one'
    """

    def __init__(
        self, fault: str, message: str, *, file: str | None = None, row: int | None = None, field: str | None = None
    ) -> None:
        super().__init__(fault, message, file, row, field)
        self.fault, self.message, self.file, self.row, self.field = fault, message, file, row, field

    def __reduce__(self) -> tuple[object, ...]:
        """Travels between processes whole: the keywords are not in `args` order by default."""
        return _data_error, (self.fault, self.message, self.file, self.row, self.field)

    def at(self, *, file: str | None = None, row: int | None = None, field: str | None = None) -> "DataError":
        """The same fault with its place; what is known already is kept."""
        return DataError(
            self.fault, self.message, file=self.file or file, row=self.row or row, field=self.field or field
        )

    def __str__(self) -> str:
        place = [self.file] if self.file else []
        place += [f"row {self.row}"] if self.row is not None else []
        place += [f"field {self.field}"] if self.field else []
        return f"{', '.join(place)}: {self.message}" if place else self.message


def _data_error(fault: str, message: str, file: str | None, row: int | None, field: str | None) -> DataError:
    return DataError(fault, message, file=file, row=row, field=field)


class AlignmentError(QuintetError, ValueError):
    """The text reserves a number of columns that the model does not fill."""


class CheckpointError(QuintetError, ValueError):
    """A folder cannot be loaded."""


class TrainingError(QuintetError, RuntimeError):
    """A run cannot go on."""


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean …?' and the list: the end of every message about a name that is not known.

    >>> nearest("conector", ["connectors", "llm"])
    "; did you mean 'connectors'? Known: connectors, llm"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(names) or 'none'}"
