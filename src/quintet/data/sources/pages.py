"""Interleaved documents: web pages whose pictures stand among their words, in the two published layouts.

MMC4      `text_list`: sentences; `image_info`: pictures by `image_name` and `raw_url`, with the sentence that each
          belongs to (`matched_text_index`) and how much (`matched_sim`). Zhu et al. 2023, arXiv:2304.06939
OBELICS   `texts` and `images`, of one length: at every position there is one of the two, the other is null.
          Laurençon et al. 2023, arXiv:2306.16527

A row becomes one turn of the role `document`. A picture of MMC4 stands before its sentence (`Pages.place`); sentences
side by side are joined by a blank, texts of OBELICS by an empty line.

Neither set comes with its pictures. They lie under the root: by name (`image_name`; a path in `images`), else, where
the row has an address, under the SHA-256 of that address in hexadecimal, with one of `ENDINGS`: MMC4's names are given,
for OBELICS' addresses no rule is published. `images` may also hold structs of bytes and path. Where a picture is in
neither place, `Pages.missing` says what becomes of the document.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from quintet.config.base import Config
from quintet.data.sources.base import Faults, Reading, Source
from quintet.data.sources.keys import unread
from quintet.data.sources.root import Root, is_text
from quintet.errors import ConfigError, DataError
from quintet.values import Media, Origin, Part, Text, Turn

__all__ = ["ENDINGS", "Documents", "Pages", "RowTable", "address_name"]

ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp", ".gif")
"""What may follow the hash of an address in a picture's file name."""

_MMC4 = frozenset({"text_list", "image_info"})
_MMC4_NOTES = frozenset({"similarity_matrix", "could_have_url_duplicate"})
_MMC4_IMAGE = frozenset({"image_name", "raw_url", "matched_text_index", "matched_sim"})
_MMC4_IMAGE_NOTES = frozenset({"face_detections"})
_OBELICS = frozenset({"images", "texts"})
_OBELICS_NOTES = frozenset({"general_metadata"})


@dataclass(frozen=True, kw_only=True)
class Pages(Config):
    """What of a document is taken. What is left out by a rule is no fault; it is counted (`Reading.left_out`)."""

    similarity: float = 0.0
    """Pictures whose `matched_sim` is lower are left out; OpenFlamingo's 0.24. MMC4 alone has similarities."""
    pictures: int | None = None
    """At most so many pictures, the first ones; OpenFlamingo's 6, MM1's 16."""
    words: int | None = None
    """The document ends before the sentence (MMC4) or the text (OBELICS) with which it had more words."""
    least: int = 0
    """A document with fewer pictures left is refused (`too-few-images`); with 0 it may be words alone."""
    place: Literal["before", "after"] = "before"
    """Where a picture of MMC4 stands to its sentence: before it, as OpenFlamingo and VILA have it, or after it."""
    missing: Literal["leave", "refuse"] = "leave"
    """A picture that is not there is left out, or its document is refused (`missing-file`)."""

    def __post_init__(self) -> None:
        for name, least in {"pictures": 1, "words": 1, "least": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; use {least} or more{'' if name == 'least' else ', or None'}")
        if self.pictures is not None and self.least > self.pictures:
            raise ConfigError(f"least is {self.least}, and at most {self.pictures} pictures are taken")


class RowTable(Protocol):
    """Rows by number, as `json_lines` and parquet have them."""

    @property
    def file(self) -> Path: ...
    def __len__(self) -> int: ...
    def row(self, index: int) -> Any: ...


class Documents(Source):
    """The documents of one file; which of the two layouts a row has is told by its keys."""

    def __init__(
        self,
        rows: RowTable,
        *,
        root: Path,
        pages: Pages | None = None,
        extra: frozenset[str] = frozenset(),
        name: str = "",
    ) -> None:
        self.rows, self.root, self.extra = rows, Root.at(root), extra
        self.pages = pages or Pages()
        self.file, self.name = str(rows.file), name or rows.file.name

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Reading:
        faults, origin = Faults(self.file, index + 1), Origin(self.file, index + 1)
        try:
            row = self.rows.row(index)
        except DataError as error:
            faults.take(error)
            return Reading(origin, faults=tuple(faults.found))
        page = _Page(self.root, self.pages, self.extra, faults)
        turns = page.read(row)
        return Reading(origin, turns, tuple(faults.found), tuple(page.ignored), tuple(page.left_out))


def address_name(address: str) -> str:
    """The name, without ending, of a picture that was downloaded from `address`.

    >>> address_name("https://example.com/a.png")[:12]
    '494a30704d4f'
    """
    return hashlib.sha256(address.encode(errors="surrogatepass")).hexdigest()


@dataclass
class _Page:
    """Reads one row."""

    root: Root
    pages: Pages
    extra: frozenset[str]
    faults: Faults
    ignored: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """The rule, for each picture that one left out."""

    def read(self, row: object) -> tuple[Turn, ...]:
        if not isinstance(row, dict):
            self.faults.add("wrong-type", f"a row is an object, not {type(row).__name__}")
            return ()
        # In OBELICS' lists a null is a position without a picture; as a value of the row it is an absent key.
        row = {key: value for key, value in row.items() if value is not None}
        layouts = [keys for keys in (_MMC4, _OBELICS) if keys & row.keys()]
        if len(layouts) != 1:
            found = "both" if layouts else f"neither (keys: {', '.join(sorted(map(ascii, row))) or 'none'})"
            wanted = "`text_list` and `image_info`, or `images` and `texts`"
            self.faults.add("missing-key", f"expected {wanted}; found {found}")
            return ()
        [keys] = layouts
        self.ignored += unread(row, self.faults, known=keys, extra=self.extra | _MMC4_NOTES | _OBELICS_NOTES)
        if not all([self._is_list(row, key) for key in sorted(keys)]):
            return ()
        # All of it, also what a limit then leaves out: one look finds every fault.
        pieces = list(self._mmc4(row) if keys is _MMC4 else self._obelics(row))
        parts = self._joined(pieces, " " if keys is _MMC4 else "\n\n")
        if self.faults.found:
            return (Turn("document", tuple(parts)),) if parts else ()
        if not any(isinstance(part, Text) for part in parts):
            self.faults.add("empty-text", "the document has no words; leave it out")
        if (count := sum(isinstance(part, Media) for part in parts)) < self.pages.least:
            reasons = ", ".join(sorted(set(self.left_out)))
            message = f"{count} pictures are left, {self.pages.least} are asked for"
            self.faults.add("too-few-images", f"{message} ({reasons})" if reasons else message)
        return (Turn("document", tuple(parts)),)

    def _is_list(self, row: dict[str, Any], key: str) -> bool:
        if key not in row:
            self.faults.add("missing-key", f"the row has no `{key}`", field=key)
        elif not isinstance(row[key], list):
            self.faults.add("wrong-type", f"`{key}` is a list, not {type(row[key]).__name__}", field=key)
        else:
            return True
        return False

    # ---- the layouts ---------------------------------------------------------------------------------------------
    def _mmc4(self, row: dict[str, Any]) -> Iterator[list[Part]]:
        """What stands together: a sentence with its pictures."""
        sentences = [self._words(value, f"text_list[{i}]") for i, value in enumerate(row["text_list"])]
        at: dict[int, list[Part]] = {}
        for i, info in enumerate(row["image_info"]):
            if (placed := self._image(info, f"image_info[{i}]", len(sentences))) is not None:
                at.setdefault(placed[0], []).append(placed[1])
        for i, words in enumerate(sentences):
            said: list[Part] = [Text(words)] if words else []
            shown = at.get(i, [])
            yield [*shown, *said] if self.pages.place == "before" else [*said, *shown]

    def _image(self, info: object, where: str, sentences: int) -> tuple[int, Part] | None:
        """The sentence of a picture, and the picture; None if a rule leaves it out, or it is at fault."""
        if not isinstance(info, dict):
            self.faults.add("wrong-type", f"a picture is an object, not {type(info).__name__}", field=where)
            return None
        known = len(self.faults.found)
        unread(info, self.faults, known=_MMC4_IMAGE, extra=self.extra | _MMC4_IMAGE_NOTES, where=where)
        index, similarity = info.get("matched_text_index"), info.get("matched_sim")
        if isinstance(index, bool) or not isinstance(index, int):
            message = f"an index is an integer, not {type(index).__name__}"
            fault = "missing-key" if index is None else "wrong-type"
            self.faults.add(fault, message, field=f"{where}.matched_text_index")
        elif not 0 <= index < sentences:
            message = f"{index} is no index into {sentences} sentences, counted from 0"
            self.faults.add("bad-index", message, field=f"{where}.matched_text_index")
        if similarity is None and not self.pages.similarity:
            similarity = 0.0  # nobody asks for it, and only MMC4's own files have it
        if isinstance(similarity, bool) or not isinstance(similarity, int | float):
            fault = "missing-key" if similarity is None else "wrong-type"
            self.faults.add(fault, "a similarity is a number", field=f"{where}.matched_sim")
        elif similarity < self.pages.similarity and len(self.faults.found) == known:
            self.left_out.append("low-similarity")
            return None
        picture = self._picture(info.get("image_name"), info.get("raw_url"), where=where, key="image_name")
        return (int(index), picture) if picture and isinstance(index, int) else None

    def _obelics(self, row: dict[str, Any]) -> Iterator[list[Part]]:
        images, texts = row["images"], row["texts"]
        if len(images) != len(texts):
            message = f"{len(images)} images and {len(texts)} texts; each position has one of the two, the other null"
            self.faults.add("unequal-counts", message, field="texts")
            return
        for i, (image, text) in enumerate(zip(images, texts, strict=True)):
            if (image is None) == (text is None):
                found = "neither an image nor a text" if image is None else "both an image and a text"
                self.faults.add("text-or-image", f"{found}; a position has one of the two", field=f"texts[{i}]")
            elif text is not None:
                words = self._words(text, f"texts[{i}]")
                yield [Text(words)] if words else []
            else:
                is_address = isinstance(image, str) and "://" in image[:16]
                name, address = (None, image) if is_address else (image, None)
                picture = self._picture(name, address, where=f"images[{i}]")
                yield [picture] if picture else []

    # ---- pieces --------------------------------------------------------------------------------------------------
    def _words(self, value: object, where: str) -> str:
        """A sentence without blanks around it; empty where there is none."""
        if not isinstance(value, str):
            self.faults.add("wrong-type", f"a text is text, not {type(value).__name__}", field=where)
        elif not is_text(value):
            self.faults.add("not-unicode", "half a surrogate pair stands in the text; write the character", field=where)
        else:
            return value.strip()
        return ""

    def _picture(self, name: Any, address: Any, *, where: str, key: str = "") -> Media | None:
        """The picture by its name, else by its address; None if it is not there, or at fault."""
        field = f"{where}.{key}" if key else where
        if address is not None and not isinstance(address, str):
            self.faults.add("wrong-type", f"an address is text, not {type(address).__name__}", field=f"{where}.raw_url")
            return None
        if name is None and address is None:
            self.faults.add("missing-key", "a picture has neither a name nor an address", field=field)
            return None
        names = [name] if name is not None else []
        names += [address_name(address) + ending for ending in ENDINGS] if address is not None else []
        try:
            refs = map(self.root.ref, names)
            found = next((ref for ref in refs if ref.data is not None or (ref.path and ref.path.is_file())), None)
        except DataError as error:
            self.faults.take(error, field=field)
            return None
        if found is not None:
            return Media("image", found)
        if self.pages.missing == "leave":
            self.left_out.append("missing-file")
        else:
            said = address if name is None else name
            self.faults.add("missing-file", f"{said!a:.100} is not under {self.root.folder}; download it", field=field)
        return None

    def _joined(self, pieces: list[list[Part]], joint: str) -> list[Part]:
        """Pictures and words in order, within the limits; words side by side are one text."""
        made: list[Part] = []
        words = shown = 0
        for piece in pieces:
            words += sum(len(part.text.split()) for part in piece if isinstance(part, Text))
            if self.pages.words is not None and words > self.pages.words:
                break
            for part in piece:
                if isinstance(part, Media):
                    shown += 1
                    if self.pages.pictures is not None and shown > self.pages.pictures:
                        self.left_out.append("too-many")
                        continue
                    made.append(part)
                elif isinstance(part, Text) and made and isinstance(made[-1], Text):
                    made[-1] = Text(f"{made[-1].text}{joint}{part.text}")
                else:
                    made.append(part)
        return made
