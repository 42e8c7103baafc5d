"""`quintet data check`: everything that is wrong with a data file, row by row, before a run finds out.

All that a source refuses (wrong types, missing, unknown and unsupported keys, roles and their order, empty answers,
counts of `<image>`, paths that leave the root, broken JSON, bytes that are not UTF-8, boxes outside the picture; what
must hold of answers that are compared, `quintet.data.sources.preferences`) and all that loading refuses
(`quintet.data.media`), and besides:

| fault | rule |
|---|---|
| `duplicate-id` | an id that an earlier row has; rows without an id are not compared |
| `late-image` | the first picture stands after an answer, and an earlier turn of the user already asks (below) |
| `missing-file` | also with `media=False`, which opens no picture |
| `unequal-counts` | VQA questions without annotation, and annotations without question |

To ask is to name a picture ("image", "photo", "figure" …), or to put a question mark and speak of no person ("you",
"I", "we" …): small talk before the picture is shown is no fault, and a second picture is never late.

A row counts as faulty once, however many faults it has: rows = good + faulty. A file that cannot be read at all (a
JSON list that breaks off, a tar without its end) has no rows and one fault that refuses it.
"""

import hashlib
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quintet.data.media import decode_image
from quintet.data.sources import Reading, Source, open_source
from quintet.errors import DataError
from quintet.values import Media, Node, Origin, Ref, Text, Turn

__all__ = ["Fault", "Report", "check", "check_source", "is_late_image"]

_PICTURE = re.compile(
    r"\b(images?|pictures?|photos?|photographs?|figures?|diagrams?|charts?|screenshots?|paintings?|drawings?|scene|shown)\b",
    re.IGNORECASE,
)
_PERSON = re.compile(r"\b(you|your|yours|yourself|i|me|my|we|us|our)\b", re.IGNORECASE)

Key = tuple[str, int, int | None] | bytes


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. `row` counts from 1 within `file`; None if the whole file is meant."""

    row: int | None
    field: str
    fault: str
    message: str
    file: str = ""

    @staticmethod
    def of(error: DataError) -> "Fault":
        """A `DataError` as a line of the report."""
        return Fault(error.row, error.field or "", error.fault, error.message, error.file or "")


@dataclass
class Report:
    """What a check found."""

    rows: int = 0
    faulty: int = 0
    """Rows with at least one fault."""
    faults: list[Fault] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    """Rows by the file that they stand in."""
    media: int = 0
    """Different media that were opened, or only looked for."""
    without: list[Origin] = field(default_factory=list)
    """Good rows that show nothing: no fault, but a surprise where all others do."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Keys that were left unread on purpose, by the number of rows."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Pictures of documents that a rule left out, by the rule."""

    @property
    def good(self) -> int:
        return self.rows - self.faulty

    @property
    def counts(self) -> dict[str, int]:
        """Faults by kind, the most frequent first."""
        return dict(Counter(fault.fault for fault in self.faults).most_common())

    def to_json(self) -> dict[str, Any]:
        """The report as plain data, as `quintet data check --json` prints it."""
        faults = [
            {"row": f.row, "field": f.field, "fault": f.fault, "message": f.message, "file": f.file}
            for f in self.faults
        ]
        return {
            "rows": self.rows,
            "faults": faults,
            "good": self.good,
            "faulty": self.faulty,
            "counts": self.counts,
            "sources": dict(self.sources),
            "media": self.media,
            "without_media": len(self.without),
            "ignored": dict(self.ignored),
            "left_out": dict(self.left_out),
        }


def check(
    path: Path | str,
    *,
    root: Path | str | None = None,
    format: str | None = None,
    extra: tuple[str, ...] = (),
    media: bool = True,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """All faults of a data file; `root`, `format` and `extra` are those of `open_source`.

    With `media` every picture is decoded, each once, on all cores; without, only its file is looked for. `limit` is the
    number of rows looked at, `progress` is called with rows done and rows in all. What is in the file raises nothing.

    Raises:
        ConfigError: an unknown format, or an extra package is needed.
    """
    try:
        source = open_source(path, root=root, format=format, extra=extra)
    except DataError as error:
        return Report(faults=[Fault.of(error.at(file=str(path)))])
    return check_source(source, media=media, limit=limit, progress=progress)


def check_source(
    source: Source,
    *,
    media: bool = True,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """As `check`, for a source that is open already."""
    total = len(source) if limit is None else min(limit, len(source))
    report = Report(rows=total)
    faults: list[list[Fault]] = []
    ids: dict[str, tuple[int, Origin]] = {}
    with ExitStack() as stack:
        pictures = _Pictures(stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 1)), decode=media)
        for index in range(total):
            reading = source.read(index)
            found = [Fault.of(error) for error in reading.faults]
            found += _of_row(reading, index, ids)
            faults.append(found)
            report.sources[reading.origin.file] += 1
            report.ignored.update(reading.ignored)
            report.left_out.update(reading.left_out)
            turns = _turns(reading)
            pictures.want(index, reading.origin.file, reading.origin.row, turns)
            if not found and not any(isinstance(part, Media) for turn in turns for part in turn.parts):
                report.without.append(reading.origin)
            if progress:
                progress(index + 1, total)
        for index, fault in pictures.faults():
            faults[index].append(fault)
    report.media = len(pictures.seen)
    report.faulty = sum(map(bool, faults))
    report.faults = [fault for found in faults for fault in found] + [Fault.of(error) for error in source.loose]
    return report


def is_late_image(turns: tuple[Turn, ...]) -> bool:
    """Whether the first picture comes after a question that needs it was answered; the rule stands at the top.

    >>> from quintet.values import Ref
    >>> picture, words = Media("image", Ref("a.png")), lambda text: Turn("user", (Text(text),))
    >>> end = (Turn("assistant", (Text("Red."),)), Turn("user", (picture,)), Turn("assistant", (Text("Yes."),)))
    >>> is_late_image((words("What colour is the car?"), *end)), is_late_image((words("How are you?"), *end))
    (True, False)
    """
    first = next((i for i, turn in enumerate(turns) if any(isinstance(p, Media) for p in turn.parts)), 0)
    asked = (
        " ".join(part.text for part in turn.parts if isinstance(part, Text))
        for i, turn in enumerate(turns[:first])
        if turn.role == "user" and any(later.role == "assistant" for later in turns[i + 1 : first])
    )
    return any(_PICTURE.search(text) or ("?" in text and not _PERSON.search(text)) for text in asked)


def _of_row(reading: Reading, index: int, ids: dict[str, tuple[int, Origin]]) -> Iterator[Fault]:
    here = reading.origin
    first, other = ids.setdefault(here.id, (index, here)) if here.id else (index, here)
    if first != index:
        place = f"row {other.row}" if other.file == here.file else str(other)
        message = f"{here.id!a:.80} is the id of {place} already; give each its own"
        yield Fault(here.row, "id", "duplicate-id", message, here.file)
    if is_late_image(reading.turns):
        message = "the first picture stands after an answer that needs it; move <image> into the question"
        yield Fault(here.row, "conversations", "late-image", message, here.file)


def _turns(reading: Reading) -> tuple[Turn, ...]:
    """All of a row: the answers that are compared too, and what stands beside."""
    trees = (Node(reading.turns, reading.children), *reading.others)
    return tuple(turn for tree in trees for node in tree.walk() for turn in node.turns)


class _Pictures:
    """Looks at every different medium once, a bounded number at a time, and says which rows it hurts."""

    def __init__(self, pool: ThreadPoolExecutor, *, decode: bool) -> None:
        self.pool, self.decode = pool, decode
        self.seen: dict[Key, DataError | None] = {}
        self.users: list[tuple[int, str, int, Key]] = []
        self.running: deque[tuple[Key, Future[DataError | None]]] = deque()

    def want(self, index: int, file: str, row: int, turns: tuple[Turn, ...]) -> None:
        for ref in dict.fromkeys(part.ref for turn in turns for part in turn.parts if isinstance(part, Media)):
            if ref.path is None and ref.data is None:
                continue  # it could not be named, which the source has reported
            key = _key(ref)
            self.users.append((index, file, row, key))
            if key not in self.seen:
                self.seen[key] = None
                self.running.append((key, self.pool.submit(_look, ref, decode=self.decode)))
            while len(self.running) > 64:
                self._finish()

    def faults(self) -> Iterator[tuple[int, Fault]]:
        """(index of the row, fault), by rows."""
        while self.running:
            self._finish()
        for index, file, row, key in self.users:
            if error := self.seen[key]:
                yield index, Fault(row, "image", error.fault, error.message, file)

    def _finish(self) -> None:
        key, future = self.running.popleft()
        self.seen[key] = future.result()


def _key(ref: Ref) -> Key:
    return hashlib.sha256(ref.data).digest() if ref.data is not None else (str(ref.path), ref.offset, ref.length)


def _look(ref: Ref, *, decode: bool) -> DataError | None:
    try:
        if decode:
            decode_image(ref)
        elif ref.path is not None and not ref.path.is_file():
            return DataError("missing-file", f"{ref.name}: no such file ({ref.path})")
    except DataError as error:
        return error
    return None
