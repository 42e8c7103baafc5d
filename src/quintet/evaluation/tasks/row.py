"""A row of a benchmark's file, read key by key: what is missing or of the wrong type is refused with its place."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintet.data.sources.root import Root
from quintet.data.sources.rows import json_lines, json_list
from quintet.errors import DataError
from quintet.values import Media, Origin

__all__ = ["Row", "rows"]


@dataclass(frozen=True)
class Row:
    """One object of a file; `number` counts from 1."""

    data: dict[str, Any]
    file: Path
    number: int

    def text(self, key: str) -> str:
        """A text that must be there."""
        return self._of(key, str, "text")

    def name(self, key: str) -> str:
        """A text or an integer that must be there, as text."""
        return str(self._of(key, str | int, "text or an integer"))

    def list(self, key: str) -> list[Any]:
        """A list that must be there."""
        return self._of(key, list, "a list")

    def picture(self, root: Root, key: str) -> Media:
        """The picture that `key` names, under the root."""
        try:
            return Media("image", root.ref(self.text(key)))
        except DataError as error:
            raise error.at(file=str(self.file), row=self.number, field=key) from None

    def origin(self, key: str) -> Origin:
        """Where an item with id `key` comes from."""
        return Origin(str(self.file), self.number, key)

    def fault(self, fault: str, message: str, *, field: str) -> DataError:
        """A fault at this place, to be raised."""
        return DataError(fault, message, file=str(self.file), row=self.number, field=field)

    def _of(self, key: str, kind: Any, words: str) -> Any:
        if key not in self.data:
            raise self.fault("missing-key", f"no {key!r}; found {', '.join(sorted(self.data)) or 'nothing'}", field=key)
        value = self.data[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.fault("wrong-type", f"expected {words}, found {type(value).__name__}", field=key)
        return value


def rows(file: Path) -> Iterator[Row]:
    """The objects of a JSON list or of JSON lines, told apart by the first letter: POPE's `.json` files are lines.

    Raises:
        DataError: there is no such file, or a row is not a JSON object.
    """
    if not file.is_file():
        raise DataError("missing-file", "there is no such file", file=str(file))
    with file.open("rb") as opened:
        is_list = opened.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    found = json_list(file) if is_list else json_lines(file)
    for i in range(len(found)):
        try:
            data = found.row(i)
        except DataError as error:
            raise error.at(file=str(file), row=i + 1) from None
        if not isinstance(data, dict):
            message = f"expected an object, found {type(data).__name__}"
            raise DataError("wrong-type", message, file=str(file), row=i + 1)
        yield Row(data, file, i + 1)
