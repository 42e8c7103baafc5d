"""Parquet tables, read by row groups: of conversations, one row a sample, or of documents (`pages.py`).

Columns of conversations are the keys of `conversation.py` (`conversations` or `messages`, `image` or `images` as struct
{bytes, path} or as paths, `id`); turns may also be JSON text.

The last row groups read are kept as Arrow has them, and a row becomes Python only when asked for. In random order every
step may touch another group, so write them small (100 rows, not a million).
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from quintet.data.sources.files import Conversations
from quintet.data.sources.rows import parse
from quintet.errors import ConfigError, DataError

__all__ = ["Parquet", "Table"]

_KEPT = 4  # row groups in memory

T = TypeVar("T")


class Parquet(Conversations):
    """The conversations of one parquet file. Paths in it are relative to `root`."""

    def __init__(self, path: Path, *, root: Path, extra: frozenset[str] = frozenset(), name: str = "") -> None:
        super().__init__(Table(path), root=root, extra=extra, name=name)


class Table:
    """The rows of one parquet file by number."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._groups: OrderedDict[int, Any] = OrderedDict()
        sizes, self.columns = _call(partial(_shape, file), str(file))
        self.starts = (0, *accumulate(sizes))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_groups": OrderedDict()}

    def __len__(self) -> int:
        return self.starts[-1]

    def row(self, index: int) -> dict[str, Any]:
        """The value of one row.

        Raises:
            DataError: `invalid-parquet`, or what is wrong with turns that are JSON text.
        """
        group = bisect_right(self.starts, index) - 1
        if group not in self._groups:
            self._groups[group] = _call(partial(_read_group, self.file, group), str(self.file))
            while len(self._groups) > _KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        table = self._groups[group]
        row = _call(lambda: table.slice(index - self.starts[group], 1).to_pylist()[0], str(self.file))
        for key in ("conversations", "messages"):
            if isinstance(row.get(key), str):
                row[key] = parse(row[key])
        return row


def _shape(path: Path) -> tuple[list[int], tuple[str, ...]]:
    """Rows of each group, and the names of the columns."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        return sizes, tuple(file.schema_arrow.names)


def _read_group(path: Path, group: int) -> Any:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        return file.read_row_group(group)


def _call(read: Callable[[], T], file: str) -> T:
    """Calls into pyarrow, whose errors derive from ValueError, KeyError, OSError and others, besides their own base."""
    try:
        import pyarrow
    except ImportError:
        raise ConfigError("parquet files need pyarrow: pip install 'quintet[parquet]'") from None
    try:
        return read()
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        message = " ".join(str(error).split())[:200]
        raise DataError("invalid-parquet", f"cannot be read ({message}); write the file again", file=file) from None
