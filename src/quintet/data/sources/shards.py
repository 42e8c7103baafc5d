"""WebDataset shards with random access: an index of where each member of a tar file lies.

Layout of img2dataset: members of one sample stand together and share a key, the name up to its first dot; a picture,
and `key.txt` with the caption, or `key.json` with `caption`, `conversations` or `messages` (the rows of LLaVA and
others). With both, the text file is the caption and the JSON is metadata. Since a member is a slice of the shard, no
shuffle buffer is needed and resuming costs nothing. Compressed tars have no random access and are refused.

Source of the layout: rom1504/img2dataset, README ("webdataset" output format).
"""

import tarfile
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from quintet.data.sources.base import Faults, Reading, Source
from quintet.data.sources.conversation import NOWHERE, Conversation, identity, read_conversation
from quintet.data.sources.root import Root, is_text
from quintet.data.sources.rows import decode, parse
from quintet.errors import DataError
from quintet.values import Media, Origin, Ref, Text, Turn

__all__ = ["PICTURES", "Shards"]

PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "img"})

_TURNS = frozenset({"conversations", "messages"})
_TEXTS = frozenset({"txt", "caption", "json"})

Member = tuple[str, int, int]
"""Ending (what follows the key's dot, lower case), offset and length in bytes; offset -1: not a regular file."""


class Shards(Source):
    """The samples of one or more tar files, shard after shard. Rows count within a shard."""

    def __init__(self, shards: tuple[Path, ...], *, extra: frozenset[str] = frozenset(), name: str = "") -> None:
        self.shards, self.extra = shards, extra
        self.file = str(shards[0] if len(shards) == 1 else shards[0].parent)
        self.name = name or Path(self.file).name
        self.index = tuple(_index(shard) for shard in shards)
        self.starts = (0, *accumulate(len(groups) for groups in self.index))

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, index: int) -> Reading:
        shard = bisect_right(self.starts, index) - 1
        row = index - self.starts[shard]
        key, members = self.index[shard][row]
        path = self.shards[shard]
        faults = Faults(str(path), row + 1)
        said = _Group(path, key, members, faults, self.extra).read()
        return Reading(Origin(str(path), row + 1, key), said.turns, tuple(faults.found), said.ignored)


def _index(path: Path) -> list[tuple[str, tuple[Member, ...]]]:
    """Key and members of every sample of a shard, in order; only headers are read.

    Raises:
        DataError: `invalid-tar`.
    """
    groups: list[tuple[str, list[Member]]] = []
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                # A sparse member is not a slice of the shard.
                if member.isdir():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                whole = member.isreg() and not member.issparse() and member.offset_data + member.size <= size
                if not groups or groups[-1][0] != key:
                    groups.append((key, []))
                groups[-1][1].append((ending.lower(), member.offset_data if whole else -1, member.size))
            _check_end(path, tar.offset)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise DataError("invalid-tar", f"not a plain tar file that can be indexed ({error})", file=str(path)) from None
    return [(key, tuple(members)) for key, members in groups]


def _check_end(path: Path, offset: int) -> None:
    """`tarfile` takes a broken header in the middle for the end, and would lose all that follows."""
    with path.open("rb") as file:
        file.seek(offset)
        if len(file.read(512)) < 512:
            raise tarfile.ReadError(f"cut off at byte {offset}: the end marker is missing")
        file.seek(offset)
        while piece := file.read(2**20):
            if piece.strip(b"\0"):
                raise tarfile.ReadError(f"a broken header, or a second archive, after byte {offset}")


class _Group:
    """The members of one sample."""

    def __init__(
        self, path: Path, key: str, members: tuple[Member, ...], faults: Faults, extra: frozenset[str]
    ) -> None:
        self.path, self.key, self.faults, self.extra = path, key, faults, extra
        self.files: dict[str, Ref] = {}
        for ending, offset, length in members:
            name = f"{key}.{ending}"
            if offset < 0:
                faults.add("invalid-tar", f"{name!a} is a link, or is cut off at the end of the file", field=ending)
            elif ending in self.files:
                faults.add("duplicate-key", f"{name!a} is in the shard twice", field=ending)
            else:
                self.files[ending] = Ref(name, path, offset, length)

    def read(self) -> Conversation:
        if not is_text(self.key):
            self.faults.add("not-utf8", f"the name {self.key!a} is not UTF-8")
        pictures = {}
        for ending, ref in self.files.items():
            if ending.rpartition(".")[2] in PICTURES:
                pictures[ending] = ref
            elif ending not in _TEXTS:
                message = f"a member .{ending} is not understood; known are pictures, txt, caption and json"
                self.faults.add("unknown-key", message, field=ending)
        row = self._json()
        if row.keys() & _TURNS:
            return self._conversation(row, pictures)
        return self._caption(row, list(pictures.values()))

    def _json(self) -> dict[str, Any]:
        if "json" not in self.files:
            return {}
        value = self._text("json", json=True)
        if value is not None and not isinstance(value, dict):
            self.faults.add("wrong-type", f"the JSON is an object, not {type(value).__name__}", field="json")
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else {}

    def _text(self, ending: str, *, json: bool = False) -> Any:
        try:
            text = decode(self.files[ending].read())
            return parse(text) if json else text
        except DataError as error:
            self.faults.take(error, field=ending)
        except OSError as error:
            self.faults.add("missing-file", f"the shard cannot be read ({error.strerror})", field=ending)
        return None

    def _conversation(self, row: dict[str, Any], pictures: dict[str, Ref]) -> Conversation:
        """A row of LLaVA or others; pictures that it names are looked up in the group, never on disk."""
        named = [key for key in ("image", "images") if key in row]
        media = list(pictures.values())
        for key in named:
            names = row[key] if isinstance(row[key], list) else [row[key]]
            media = [self._named(name, key, pictures, only=len(names) == 1) for name in names]
            if unnamed := [ref.name for ref in pictures.values() if ref not in media]:
                self.faults.add("image-count", f"{', '.join(unnamed)!a:.80} is in the shard but not named", field=key)
        rest = {key: value for key, value in row.items() if key not in named}
        # Only pictures inside OpenAI's parts are then still looked for on disk, beside the shard.
        return read_conversation(
            rest, self.faults, root=Root.at(self.path.parent), extra=self.extra, media=tuple(media)
        )

    def _named(self, name: object, key: str, pictures: dict[str, Ref], *, only: bool) -> Ref:
        """The member that a row means: by its name, by its ending, or since there is one name and one picture."""
        base = name.rpartition("/")[2].lower() if isinstance(name, str) else ""
        for ending, ref in pictures.items():
            if base in (ending, ref.name.rpartition("/")[2].lower()) or (base and only and len(pictures) == 1):
                return ref
        self.faults.add("missing-file", f"{name!a:.80} is not in the shard beside its text", field=key)
        return NOWHERE

    def _caption(self, row: dict[str, Any], pictures: list[Ref]) -> Conversation:
        identity(row, self.faults)
        if (status := row.get("status", "success")) != "success":
            self.faults.add("missing-file", f"the download failed ({status!a:.80})", field="status")
        elif not pictures:
            self.faults.add("missing-file", "the sample has no picture", field="image")
        elif len(pictures) > 1:
            self.faults.add("image-count", f"{len(pictures)} pictures for one caption", field="image")
        source = next((ending for ending in ("txt", "caption") if ending in self.files), "")
        text = self._text(source) if source else row.get("caption")
        field = source or "caption"
        if text is None and not (source and self.faults.found):
            self.faults.add(
                "missing-key", "the sample has no caption: no .txt, and no `caption` in its .json", field=field
            )
        elif text is not None and (not isinstance(text, str) or not is_text(text)):
            self.faults.add("wrong-type", "a caption is text", field=field)
        elif text is not None and not text.strip():
            self.faults.add("empty-answer", "the caption is empty; write one or delete the sample", field=field)
        said = Text(text.strip()) if isinstance(text, str) else Text("")
        turns = (Turn("user", tuple(Media("image", ref) for ref in pictures)), Turn("assistant", (said,)))
        return Conversation(self.key, turns, tuple(k for k in row if k != "caption"))
