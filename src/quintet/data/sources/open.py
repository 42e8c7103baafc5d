"""Which format a file is in, told by its content, and the source that reads it."""

import json
from pathlib import Path
from typing import Any

from quintet.data.sources.annotations import CocoCaptions, Vqa
from quintet.data.sources.base import Source
from quintet.data.sources.files import Conversations
from quintet.data.sources.pages import Documents, Pages, RowTable
from quintet.data.sources.preference_layouts import SIDES, near
from quintet.data.sources.preference_layouts import layout_of as compares
from quintet.data.sources.preferences import Preferences
from quintet.data.sources.rows import Rows, Zipped, json_lines, json_list
from quintet.data.sources.shards import Shards
from quintet.data.sources.table import Parquet, Table
from quintet.errors import ConfigError, DataError, nearest

__all__ = ["FORMATS", "detect", "open_source"]

FORMATS = {
    "llava": "JSON list or lines of {conversations, image}",
    "sharegpt": "JSON list or lines of {conversations, images, system}",
    "messages": "JSON list or lines of {messages, images} (OpenAI, ms-swift)",
    "webdataset": "a tar file, or a folder of them",
    "coco": "a JSON object of images and annotations with captions",
    "vqav2": "a JSON object of questions, and one of annotations beside it",
    "parquet": "a parquet table with a column conversations or messages, or with images and texts, or of preferences",
    "mmc4": "JSON lines of {text_list, image_info}, or a zip of them",
    "obelics": "JSON lines or parquet of {images, texts}",
    "preferences": "rows with a better and a worse answer (TRL, LLaMA-Factory, ms-swift, and the papers' own)",
}

_LOOK = 100  # lines looked at before a file of JSON lines is given up
_LOOK_TABLE = 10  # rows of a table; they may have pictures in them
_HEAD = 2**20  # bytes


def open_source(
    path: Path | str,
    *,
    root: Path | str | None = None,
    format: str | None = None,
    extra: tuple[str, ...] = (),
    pages: Pages | None = None,
) -> Source:
    """The rows of a file (or a folder of tar files) as a source.

    `root` is the folder that media are named from and must not leave; by default the file's own. `format` is one of
    `FORMATS`; by default it is told by the content. `extra` are keys of rows that are known to be only notes. `pages`
    says what is taken of interleaved documents.

    Raises:
        DataError: the file is missing, broken as a whole, or of no format that is known.
        ConfigError: an unknown `format`, or an extra package is needed.
    """
    path = Path(path)
    if not path.exists():
        raise DataError("missing-file", "no such file", file=str(path))
    kind = detect(path) if format is None else format
    if kind not in FORMATS:
        raise ConfigError(f"no data format {kind!r}{nearest(kind, FORMATS)}")
    folder = Path(root) if root is not None else path if path.is_dir() else path.parent
    notes = frozenset(extra)
    if kind == "webdataset":
        return Shards(_shards(path), extra=notes)
    if kind in ("mmc4", "obelics"):
        return Documents(_pages(path), root=folder, pages=pages, extra=notes)
    if kind == "parquet":
        if {"images", "texts"} <= set(Table(path).columns):
            return Documents(Table(path), root=folder, pages=pages, extra=notes)
        if any(map(compares, _first(Table(path), _LOOK_TABLE))):
            return Preferences(Table(path), root=folder, extra=notes)
        return Parquet(path, root=folder, extra=notes)
    if kind == "preferences":
        return Preferences(_pages(path), root=folder, extra=notes)
    if kind == "coco":
        return CocoCaptions(path, root=folder)
    if kind == "vqav2":
        return Vqa(*_vqa_pair(path), root=folder)
    return Conversations(_rows(path), root=folder, extra=notes)


def detect(path: Path | str) -> str:
    """The format of a file: a key of `FORMATS`.

    Raises:
        DataError: `unknown-format`, with what was tried; or `missing-file`.
    """
    path = Path(path)
    if path.is_dir():
        if any(path.glob("*.tar")):
            return "webdataset"
        raise _unknown(path, "a folder without .tar files")
    head = _head(path)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[257:262] == b"ustar":
        return "webdataset"
    if head.startswith(b"PK\x03\x04"):
        rows = Zipped(path).lines[:_LOOK]
        kind = _by_rows(path, [row for line in rows if isinstance(row := _parsed(line), dict)])
        if kind not in ("mmc4", "obelics"):
            raise _unknown(path, f"{kind} in a zip; unpack it first, since compressed data has no random access")
        return kind
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise _unknown(path, "a compressed file; unpack it first, since compressed data has no random access")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("not-utf8", "the text is UTF-16; convert it to UTF-8", file=str(path))
    return _detect_json(path, head)


def _detect_json(path: Path, head: bytes) -> str:
    text = head.decode(errors="replace").lstrip("\ufeff \t\r\n")
    if not text or "".join(text.split()) in ("[]", "{}"):
        raise DataError("empty-file", "there is nothing in it" if not text else "there is no row in it", file=str(path))
    if text.startswith("["):
        # A list that does not even begin well is parsed whole, for the byte where it breaks.
        return _by_rows(path, _elements(text) or _first(json_list(path)))
    lines = _lines(path)
    kinds = [kind for row in lines if (kind := _row_kind(row))]
    if kinds:
        return _agree(path, kinds)
    whole = _whole(path, lines) if text.startswith("{") else {}
    if {"images", "annotations"} <= whole.keys():
        return "coco"
    if "questions" in whole or "annotations" in whole:
        return "vqav2"
    raise _unknown(path, _keys(lines or [whole]) if lines or whole else f"a beginning of {text[:20]!a}")


# ---- files -------------------------------------------------------------------------------------------------------
def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise DataError("missing-file", f"cannot be read ({error.strerror})", file=str(path)) from None


def _rows(path: Path) -> Rows:
    first = _head(path).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return json_list(path) if first == b"[" else json_lines(path)


def _pages(path: Path) -> RowTable:
    head = _head(path)
    if head.startswith(b"PAR1"):
        return Table(path)
    return Zipped(path) if head.startswith(b"PK\x03\x04") else _rows(path)


def _shards(path: Path) -> tuple[Path, ...]:
    found = tuple(sorted(path.glob("*.tar"))) if path.is_dir() else (path,)
    if not found:
        raise DataError("missing-file", "no .tar file in this folder", file=str(path))
    return found


def _vqa_pair(path: Path) -> tuple[Path, Path]:
    """Questions and annotations, given either: the published names differ in two words."""
    name = path.name
    if "questions" in name:
        bare = name.replace("questions", "annotations")
        others = [bare, bare.replace("OpenEnded_", "")]
    else:
        bare = name.replace("annotations", "questions")
        others = [bare, bare.replace("mscoco", "OpenEnded_mscoco")]
    for other in others:
        if other != name and (beside := path.with_name(other)).is_file():
            return (path, beside) if "questions" in name else (beside, path)
    wanted = (
        " or ".join(dict.fromkeys(other for other in others if other != name))
        or "…_questions.json and …_annotations.json"
    )
    raise DataError("missing-file", f"a VQA set is two files; {wanted} is not beside this one", file=str(path))


# ---- content -----------------------------------------------------------------------------------------------------
def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines that are JSON objects, of the first few; a line may be long, with a picture in it."""
    with path.open("rb") as file:
        values = [_parsed(file.readline().removeprefix(b"\xef\xbb\xbf")) for _ in range(_LOOK)]
    return [value for value in values if isinstance(value, dict)]


def _elements(text: str) -> list[dict[str, Any]]:
    """The first elements of a list, as far as the head of the file holds them whole."""
    found, at, decoder = [], 1, json.JSONDecoder()
    while len(found) < _LOOK:
        at += len(text[at : at + 1000]) - len(text[at : at + 1000].lstrip(" \t\r\n,"))
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        found.append(value)
    return [value for value in found if isinstance(value, dict)]


def _first(rows: RowTable, most: int = _LOOK) -> list[dict[str, Any]]:
    found = []
    for i in range(min(len(rows), most)):
        try:
            value = rows.row(i)
        except DataError:
            continue  # `read` reports it; here only the format is asked for
        if isinstance(value, dict):
            found.append(value)
    return found


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _by_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    kinds = [kind for row in rows if (kind := _row_kind(row))]
    if not kinds:
        raise _unknown(path, _keys(rows))
    return _agree(path, kinds)


def _keys(rows: list[dict[str, Any]]) -> str:
    keys = {key for row in rows for key in row}
    nearest = f" (nearest layouts of preferences: {found})" if (found := near(keys)) else ""
    return f"JSON with the keys {', '.join(sorted(map(ascii, keys))[:8]) or 'none'}{nearest}"


def _row_kind(row: dict[str, Any]) -> str:
    """'' if it cannot be told by this row."""
    if compares(row):
        return "preferences"
    if ("conversations" in row and "messages" in row) or row.keys() & SIDES:
        return ""
    if "text_list" in row or "image_info" in row:
        return "mmc4"
    if "texts" in row:
        return "obelics"
    if "conversations" in row:
        return "sharegpt" if row.keys() & {"images", "system", "tools"} else "llava"
    return "messages" if "messages" in row else ""


def _agree(path: Path, kinds: list[str]) -> str:
    """LLaVA and ShareGPT mix well; other formats in one file are a mistake."""
    found = sorted(set(kinds))
    if len(found) > 1 and not set(found) <= {"llava", "sharegpt"}:
        counts = ", ".join(f"{kinds.count(kind)} of {kind}" for kind in found)
        message = f"rows of two formats ({counts}); split the file or name the format"
        raise DataError("unknown-format", message, file=str(path))
    return found[-1]


def _whole(path: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The file as one object, if it is one: on one line, or on many."""
    if len(lines) == 1:
        return lines[0]
    value = _parsed(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    return value if isinstance(value, dict) else {}


def _unknown(path: Path, found: str) -> DataError:
    if path.suffix.lower() in (".csv", ".tsv", ".xlsx"):
        message = f"a table of the kind {path.suffix} is not read; write its rows as JSON lines, an object a row"
        return DataError("unknown-format", message, file=str(path))
    tried = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    return DataError("unknown-format", f"found {found}. Tried {tried}", file=str(path))
