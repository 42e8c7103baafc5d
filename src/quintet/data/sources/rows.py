"""The rows of JSON files by number: an index of byte offsets is all that stays in memory.

Works the same for JSON lines and for one JSON list: the list is parsed once, to check it and to find where its
elements begin and end. So the 665 thousand rows of LLaVA-1.5 cost 10 MB in every worker, not 2 GB.
"""

import json
import mmap
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quintet.errors import DataError

__all__ = ["Rows", "Zipped", "decode", "json_lines", "json_list", "parse", "read_text"]

_BOM = b"\xef\xbb\xbf"
_SPACE = " \t\n\r"


@dataclass(frozen=True)
class Rows:
    """Rows of a file at known places: row i is the bytes `starts[i]` to `ends[i]`, JSON."""

    file: Path
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def row(self, index: int) -> Any:
        """The value of one row.

        Raises:
            DataError: `not-utf8`, `invalid-json`, `duplicate-key`, or `missing-file` when the file went away.
        """
        return parse(decode(self.data(index)))

    def data(self, index: int) -> bytes:
        """One row as it stands in the file.

        Raises:
            DataError: `missing-file` when the file went away.
        """
        start, end = int(self.starts[index]), int(self.ends[index])
        try:
            with self.file.open("rb") as file:
                file.seek(start)
                return file.read(end - start)
        except OSError as error:
            raise DataError("missing-file", f"cannot be read ({error.strerror})") from None


class Zipped:
    """The JSON lines of the one file in a zip, as MMC4 is published.

    What is compressed has no random access: the text is unpacked into memory, once in every process that reads it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file}

    @cached_property
    def lines(self) -> list[bytes]:
        """Raises DataError: it is no zip, broken, or holds another number of files than one."""
        try:
            with zipfile.ZipFile(self.file) as packed:
                names = [name for name in packed.namelist() if not name.endswith("/")]
                if len(names) != 1:
                    message = f"a zip of {len(names)} files; expected one of JSON lines, so unpack it"
                    raise DataError("unknown-format", message, file=str(self.file))
                data = packed.read(names[0])
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
            message = f"the zip cannot be read ({error}); download it again"
            raise DataError("corrupt-archive", message, file=str(self.file)) from None
        return data.removeprefix(_BOM).rstrip(b" \t\r\n").split(b"\n")

    def __len__(self) -> int:
        return len(self.lines)

    def row(self, index: int) -> Any:
        """As `Rows.row`."""
        return parse(decode(self.lines[index]))


def json_lines(path: Path) -> Rows:
    """The lines of a file. A line is a row even if it is broken or blank; blank lines at the end are none."""
    starts: list[int] = []
    ends: list[int] = []
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        # An empty file cannot be mapped.
        if size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                at = len(_BOM) if text[: len(_BOM)] == _BOM else 0
                while at < size:
                    end = text.find(b"\n", at)
                    end = size if end < 0 else end
                    starts.append(at)
                    ends.append(end)
                    at = end + 1
                while ends and not text[starts[-1] : ends[-1]].strip():
                    starts.pop()
                    ends.pop()
    return Rows(path, np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64))


def json_list(path: Path) -> Rows:
    """The elements of a file that is one JSON list.

    Raises:
        DataError: the file is not UTF-8 or not a JSON list; it is refused as a whole, with the byte of the fault.
    """
    text, offset = read_text(path)
    starts: list[int] = []
    ends: list[int] = []
    at = char = 0
    for begin, end in _elements(text, lambda message, row: _refuse(path, message, row=row)):
        # Bytes are counted piece by piece, because offsets in the file are in bytes and those of the parser are not.
        at += len(text[char:begin].encode())
        starts.append(offset + at)
        at += len(text[begin:end].encode())
        ends.append(offset + at)
        char = end
    return Rows(path, np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64))


def read_text(path: Path) -> tuple[str, int]:
    """A whole file as text, and the length of its byte order mark.

    Raises:
        DataError: `not-utf8`, with the byte, or `missing-file`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError("missing-file", f"cannot be read ({error.strerror})", file=str(path)) from None
    offset = len(_BOM) if data.startswith(_BOM) else 0
    try:
        return decode(data[offset:]), offset
    except DataError as error:
        raise error.at(file=str(path)) from None


def decode(data: bytes) -> str:
    """Bytes as UTF-8.

    Raises:
        DataError: `not-utf8`, with the byte.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            "not-utf8", f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; convert the text"
        ) from None


def parse(text: str) -> Any:
    """One JSON value. A key that stands twice in an object is refused: the parser would drop the first in silence.

    Raises:
        DataError: `invalid-json` or `duplicate-key`.
    """
    if not text.strip():
        raise DataError("invalid-json", "the line is empty; delete it")
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise DataError("invalid-json", f"{error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise DataError("invalid-json", "nested too deeply") from None
    except DataError:
        raise
    except ValueError as error:  # an integer of more digits than Python converts
        raise DataError("invalid-json", str(error)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise DataError("duplicate-key", f"{', '.join(map(ascii, twice))} stands twice in one object; keep one")
    return made


def _constant(name: str) -> Any:
    raise DataError("invalid-json", f"{name} is not JSON")


def _elements(text: str, refuse: Callable[[str, int], DataError]) -> Iterator[tuple[int, int]]:
    """Where the elements of a JSON list begin and end, in characters; each is parsed, and dropped again."""
    decoder = json.JSONDecoder()
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        raise refuse("expected a list", 0)
    at = _skip(text, at + 1)
    row = 0
    while text[at : at + 1] != "]" or row:
        row += 1
        try:
            _, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise refuse(f"{error.msg} at byte {len(text[: error.pos].encode())}", row) from None
        except RecursionError:
            raise refuse("nested too deeply", row) from None
        except ValueError as error:
            raise refuse(str(error), row) from None
        yield at, end
        at = _skip(text, end)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise refuse(f"expected a comma or the end of the list at byte {len(text[:at].encode())}", row)
        at = _skip(text, at + 1)
    if text[_skip(text, at + 1) :]:
        raise refuse("text after the end of the list", row)


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACE and at < len(text):
        at += 1
    return at


def _refuse(path: Path, message: str, *, row: int) -> DataError:
    message = f"{message}; the whole file is refused, since where its rows end is unknown"
    return DataError("invalid-json", message, file=str(path), row=row or None)
