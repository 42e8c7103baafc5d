"""Rows of any source as one LLaVA JSONL file with its pictures beside it: what `quintet data` converts, filters, mixes.

    OUT.jsonl             a row a line, pictures named from OUT.jsonl's folder; the second row of one id is `id~2`
    OUT.media/            pictures that are not under that folder already, named by their bytes
    OUT.dropped.jsonl     what was left out and why: file, row, fault, message; absent if nothing was

Reading OUT.jsonl gives the turns that were written, equal in every part; a row that LLaVA's format cannot say is
dropped with that reason. Both files are written aside and renamed. Interleaved documents are written as MMC4 has them,
with what `Pages` took of them alone; so they do not mix with conversations in one file.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from quintet.data.check import check_source
from quintet.data.media import decode_image
from quintet.data.sources import Reading, Source
from quintet.errors import ConfigError, DataError
from quintet.values import Media, Ref, Region, Text, Turn

__all__ = ["Rules", "Written", "row_of", "write_rows"]

_ROLES = {"user": "human", "assistant": "gpt", "system": "system"}
_LITERALS = ("<image>", "<region>")

Place = Callable[[Ref], str]
"""A picture → its name in the new file."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a row must be to be kept; faulty rows never are."""

    min_answer: int = 0
    """Words that every answer has at least."""
    max_words: int | None = None
    """Words that a row has at most, over all turns."""
    unique: bool = False
    """Whether a row of the same words and pictures as an earlier one is dropped."""
    checked: bool = False
    """Whether everything that `quintet data check` finds is a fault, pictures decoded."""


@dataclass
class Written:
    """What became of the rows: read = kept + dropped."""

    path: Path
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Fault → rows."""

    @property
    def read(self) -> int:
        return self.kept + self.dropped.total()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"path": str(self.path), "rows": self.read, "kept": self.kept, "dropped": dict(self.dropped)}


def write_rows(
    source: Source,
    out: Path,
    *,
    rules: Rules | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """Writes the rows of `source` that keep the rules; says what was dropped and why.

    Raises:
        ConfigError: `out` is there already, or has another ending than .jsonl.
        DataError: no row was left.
    """
    if out.suffix != ".jsonl":
        raise ConfigError(f"{out} is written as JSON lines; name it with the ending .jsonl")
    if out.exists():
        raise ConfigError(f"{out} exists; name another file")
    rules = rules or Rules()
    known = _known_faults(source) if rules.checked else {}
    written, seen = Written(out), set[bytes]()
    out.parent.mkdir(parents=True, exist_ok=True)
    aside, lost = (out.with_name(f".{name}.{os.getpid()}") for name in (out.name, f"{out.stem}.dropped.jsonl"))
    place, ids, layout = _Placer(out), Counter[str](), ""
    with aside.open("w", encoding="utf-8") as rows, lost.open("w", encoding="utf-8") as dropped:
        for index in range(len(source)):
            reading = source.read(index)
            try:
                _judge(reading, rules, known, seen)
                row = row_of(reading, place)
                layout = layout or next(key for key in ("text_list", "conversations") if key in row)
                if layout not in row:
                    raise DataError("mixed-layouts", "documents and conversations do not share a file; write two")
            except DataError as error:
                written.dropped[error.fault] += 1
                _note(dropped, error.at(file=reading.origin.file, row=reading.origin.row))
            else:
                if "id" in row:
                    ids[row["id"]] += 1
                    row["id"] += f"~{ids[row['id']]}" if ids[row["id"]] > 1 else ""
                rows.write(json.dumps(row, ensure_ascii=False) + "\n")
                written.kept += 1
            progress(index + 1, len(source))
    if written.dropped:
        lost.replace(out.with_name(f"{out.stem}.dropped.jsonl"))
    else:
        lost.unlink()
    if not written.kept:
        aside.unlink()
        reasons = ", ".join(f"{count:,} {fault}" for fault, count in written.dropped.most_common())
        raise DataError("no-rows", f"none of {written.read} rows was left ({reasons})", file=source.file)
    aside.replace(out)
    return written


def row_of(reading: Reading, place: Place) -> dict[str, Any]:
    """A LLaVA row of what was read, or an MMC4 row of a document.

    Raises:
        DataError: the row has a fault, or says what the format cannot.
    """
    if reading.faults:
        raise reading.faults[0]
    if reading.children or reading.others:
        raise DataError("unsupported-part", "LLaVA's format has no place for answers that are compared")
    if [turn.role for turn in reading.turns] == ["document"]:
        return _document(reading.turns[0], place)
    pictures: list[str] = []
    regions: list[list[float]] = []
    said = [_turn(turn, place, pictures, regions) for turn in reading.turns]
    row: dict[str, Any] = {"id": reading.origin.id} if reading.origin.id else {}
    if pictures:
        row["image"] = pictures[0] if len(pictures) == 1 else pictures
    if regions:
        row["regions"] = regions
    return row | {"conversations": said}


# ---- rules -------------------------------------------------------------------------------------------------------
def _judge(reading: Reading, rules: Rules, known: dict[tuple[str, int], DataError], seen: set[bytes]) -> None:
    """Raises DataError for a row that is not kept."""
    if fault := known.get((reading.origin.file, reading.origin.row)):
        raise fault
    if reading.faults:
        raise reading.faults[0]
    counts = [(turn.role, len(_words(turn).split())) for turn in reading.turns]
    shortest = min((n for role, n in counts if role == "assistant"), default=0)
    if shortest < rules.min_answer:
        raise DataError("short-answer", f"an answer of {shortest} words; the rule wants {rules.min_answer}")
    total = sum(n for _, n in counts)
    if rules.max_words is not None and total > rules.max_words:
        raise DataError("long-row", f"{total} words; the rule allows {rules.max_words}")
    if rules.unique:
        key = _key(reading)
        if key in seen:
            raise DataError("duplicate-row", "an earlier row has the same words and pictures")
        seen.add(key)


def _known_faults(source: Source) -> dict[tuple[str, int], DataError]:
    """The first fault of each row, pictures included."""
    found: dict[tuple[str, int], DataError] = {}
    for f in check_source(source).faults:
        if f.row is not None:
            found.setdefault((f.file, f.row), DataError(f.fault, f.message, field=f.field or None))
    return found


def _words(turn: Turn) -> str:
    return " ".join(part.text for part in turn.parts if isinstance(part, Text))


def _key(reading: Reading) -> bytes:
    digest = hashlib.sha256()
    for turn in reading.turns:
        digest.update(f"\0{turn.role}\0{_words(turn)}".encode())
        for part in turn.parts:
            if isinstance(part, Media):
                digest.update(hashlib.sha256(_read(part.ref)).digest())
    return digest.digest()


# ---- writing -----------------------------------------------------------------------------------------------------
def _turn(turn: Turn, place: Place, pictures: list[str], regions: list[Any]) -> dict[str, Any]:
    """One turn as text with `<image>` and `<region>`; the line break that the reader takes away is added."""
    text = ""
    for i, part in enumerate(turn.parts):
        if isinstance(part, Media):
            if part.kind != "image":
                raise DataError("unsupported-part", f"LLaVA's format has no place for {part.kind}")
            pictures.append(place(part.ref))
            last = i == len(turn.parts) - 1
            text += ("\n" if last and i else "") + "<image>" + ("" if last else "\n")
        elif isinstance(part, Region):
            plain = not part.phrase and part.kind == {2: "points", 4: "box"}.get(len(part.points), "mask")
            named = {"phrase": part.phrase} if part.phrase else {}
            regions.append(list(part.points) if plain else {part.kind: list(part.points)} | named)
            text += "<region>"
        else:
            if found := next((mark for mark in _LITERALS if mark in part.text), ""):
                raise DataError("literal-placeholder", f"the words hold {found}, which would be read as a place")
            if part.weight != 1 or part.mark is not None:
                raise DataError("unsupported-part", "LLaVA's format has no weights of spans")
            text += part.text
    weight = {"weight": turn.weight} if turn.weight != 1 else {}
    return {"from": _ROLES[turn.role], "value": text} | weight


def _document(turn: Turn, place: Place) -> dict[str, Any]:
    """Pictures belong to the text after them; those after the last text, to an empty one."""
    texts: list[str] = []
    infos: list[dict[str, Any]] = []
    for part in turn.parts:
        if isinstance(part, Text):
            texts.append(part.text)
        elif isinstance(part, Media) and part.kind == "image":
            infos.append({"image_name": place(part.ref), "matched_text_index": len(texts)})
        else:
            raise DataError("unsupported-part", "MMC4's layout has places for words and images alone")
    if infos and infos[-1]["matched_text_index"] == len(texts):
        texts.append("")
    return {"text_list": texts, "image_info": infos}


class _Placer:
    """Names a picture from the new file's folder: as it lies, or linked or copied into OUT.media."""

    def __init__(self, out: Path) -> None:
        self.folder = Path(os.path.realpath(out.parent))
        self.media = self.folder / f"{out.stem}.media"

    def __call__(self, ref: Ref) -> str:
        whole = ref.path is not None and ref.data is None and ref.length is None
        if whole and ref.path is not None:
            path = Path(os.path.realpath(ref.path))
            if path.is_relative_to(self.folder):
                return path.relative_to(self.folder).as_posix()
        data = _read(ref)
        name = f"{hashlib.sha256(data).hexdigest()[:16]}{_ending(ref)}"
        place = self.media / name
        if not place.exists():
            self.media.mkdir(parents=True, exist_ok=True)
            if not (whole and ref.path is not None and _linked(ref.path, place)):
                place.write_bytes(data)
        return f"{self.media.name}/{name}"


def _linked(path: Path, place: Path) -> bool:
    """A hard link costs no space; another file system, or one without links, gets a copy."""
    try:
        os.link(os.path.realpath(path), place)
    except OSError:
        shutil.copyfile(path, place)
    return True


def _ending(ref: Ref) -> str:
    decode_image(ref)  # what cannot be opened is not passed on
    suffix = Path(ref.name).suffix.lower()
    return suffix if suffix[1:].isalnum() and len(suffix) <= 6 else ".img"


def _read(ref: Ref) -> bytes:
    try:
        return ref.read()
    except OSError as error:
        raise DataError("missing-file", f"{ref.name} cannot be read ({error.strerror})", field="image") from None


def _note(file: TextIO, error: DataError) -> None:
    facts = {name: getattr(error, name) for name in ("file", "row", "field", "fault", "message")}
    file.write(json.dumps(facts, ensure_ascii=False) + "\n")
