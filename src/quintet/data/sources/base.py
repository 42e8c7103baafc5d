"""What every source is: a table of samples with random access, which says of each row all that is wrong with it.

A seeded order is a permutation of the rows and a resume is a cursor into it; both belong to the pipeline. A source
opens no medium, keeps no file open, and can be pickled, so that workers may read it too.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from quintet.data.sources.rows import Rows
from quintet.errors import DataError
from quintet.values import Node, Origin, Sample, Turn

__all__ = ["Faults", "Reading", "Source"]


@dataclass
class Faults:
    """Collects what is wrong with one row; reading goes on, so that one look finds everything."""

    file: str
    row: int
    found: list[DataError] = field(default_factory=list)

    def add(self, fault: str, message: str, *, field: str | None = None) -> None:
        """Notes a fault at this row."""
        self.found.append(DataError(fault, message, file=self.file, row=self.row, field=field))

    def take(self, error: DataError, *, field: str | None = None) -> None:
        """Notes a fault that was raised, with its place."""
        self.found.append(error.at(file=self.file, row=self.row, field=field))


@dataclass(frozen=True)
class Reading:
    """One row as far as it could be understood. It is a sample if there are no faults."""

    origin: Origin
    turns: tuple[Turn, ...] = ()
    faults: tuple[DataError, ...] = ()
    ignored: tuple[str, ...] = ()
    """Keys that were left unread on purpose: known metadata, or declared by the caller."""
    left_out: tuple[str, ...] = ()
    """The rule, for each picture of a document that one left out (`pages.py`)."""
    children: tuple[Node, ...] = ()
    """Answers to the turns that are compared (`preferences.py`)."""
    others: tuple[Node, ...] = ()
    """Trees beside it: answers about other pictures."""


class Source(ABC):
    """A random-access table of samples. `name` is for messages and counts, `file` is where the rows stand."""

    name: str
    file: str
    loose: tuple[DataError, ...] = ()
    """Faults that belong to no row: annotations without a question."""

    @abstractmethod
    def __len__(self) -> int:
        """Rows, good or faulty."""

    @abstractmethod
    def read(self, index: int) -> Reading:
        """The row and all its faults; raises nothing for what is in the file. `index` counts from 0."""

    def text(self, index: int) -> str:
        """The row as it stands in its file, for people to look at; empty where it is no row of JSON text."""
        rows = getattr(self, "rows", None)
        return rows.data(index).decode(errors="replace").strip() if isinstance(rows, Rows) else ""

    def sample(self, index: int) -> Sample:
        """The row as a sample.

        Raises:
            DataError: the first fault, with file, row (counted from 1) and field.
        """
        reading = self.read(index)
        if reading.faults:
            raise reading.faults[0]
        root = Node(reading.turns, reading.children)
        return Sample(root, reading.origin, reading.left_out, reading.others)
