"""Sources whose rows are conversations in a JSON file: LLaVA, ShareGPT, ms-swift, OpenAI messages."""

from pathlib import Path

from quintet.data.sources.base import Faults, Reading, Source
from quintet.data.sources.conversation import read_conversation
from quintet.data.sources.pages import RowTable
from quintet.data.sources.root import Root
from quintet.errors import DataError
from quintet.values import Origin

__all__ = ["Conversations"]


class Conversations(Source):
    """Conversations in a table of rows: a JSON list, JSON lines, parquet. Media are named relative to `root`."""

    def __init__(self, rows: RowTable, *, root: Path, extra: frozenset[str] = frozenset(), name: str = "") -> None:
        self.rows, self.root, self.extra = rows, Root.at(root), extra
        self.file, self.name = str(rows.file), name or rows.file.name

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Reading:
        faults = Faults(self.file, index + 1)
        try:
            row = self.rows.row(index)
        except DataError as error:
            faults.take(error)
            return Reading(Origin(self.file, index + 1), faults=tuple(faults.found))
        said = read_conversation(row, faults, root=self.root, extra=self.extra)
        return Reading(Origin(self.file, index + 1, said.id), said.turns, tuple(faults.found), said.ignored)
