"""What a frozen encoder makes of a medium, kept: addressed by the encoder's content and the medium's bytes.

    FOLDER/ENCODER/NAME.bin      features one after the other
    FOLDER/ENCODER/NAME.jsonl    a line each: digest of the bytes, offset, layout

An index line is written after its features, each writer has files of its own, and nothing is ever rewritten: a kill
loses the last item at most, and two runs may fill the same cache.
"""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from quintet.data.collate import Loaded
from quintet.errors import DataError
from quintet.values import Features, Item, Layout, Media, Ref

__all__ = ["FeatureCache", "content_hash", "fingerprint"]


def content_hash(ref: Ref) -> str:
    """What addresses a medium: the hash of its bytes, and of what is done to it.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return hashlib.sha256(ref.read() + ref.change.encode()).hexdigest()[:32]
    except OSError as error:
        raise DataError(
            "missing-file", f"{ref.name} cannot be read ({error.strerror}); is the data root right?"
        ) from None


def fingerprint(module: torch.nn.Module, settings: str, dtype: torch.dtype) -> str:
    """Changes when a weight, a setting or the number format does."""
    digest = hashlib.sha256(f"{settings}/{dtype}".encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]


@dataclass(frozen=True)
class _Place:
    path: str
    offset: int
    layout: Layout


class FeatureCache:
    """Features of one modality's frozen encoder on disk. Safe to send to workers."""

    def __init__(self, folder: Path, *, kind: str, encoder: str, dim: int, dtype: torch.dtype) -> None:
        self.folder, self.kind, self.dim, self.dtype = folder / encoder, kind, dim, dtype
        self.folder.mkdir(parents=True, exist_ok=True)
        self.size = torch.empty(0, dtype=dtype).element_size()
        self.places: dict[str, _Place] = {}
        self.digests: dict[Ref, str] = {}
        self.reload()

    def reload(self) -> None:
        """Reads the indexes again: other ranks may have added to them."""
        for index in sorted(self.folder.glob("*.jsonl")):
            self._read_index(index)

    def _read_index(self, index: Path) -> None:
        data = index.with_suffix(".bin")
        held = data.stat().st_size if data.exists() else 0
        for line in index.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break  # the line that a kill cut short is the last
            layout = _layout(row)
            if row["offset"] + layout.count * self.dim * self.size <= held:
                self.places[row["digest"]] = _Place(str(data), row["offset"], layout)

    def digest(self, ref: Ref) -> str:
        """The medium's content hash, computed once."""
        if ref not in self.digests:
            self.digests[ref] = content_hash(ref)
        return self.digests[ref]

    def __contains__(self, ref: Ref) -> bool:
        return self.digest(ref) in self.places

    def lookup(self, item: Item) -> Loaded | None:
        """The features of an item, if they are here."""
        if item.kind != self.kind:
            return None
        place = self.places.get(self.digest(item.ref))
        if place is None:
            return None
        count = place.layout.count * self.dim
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            data = bytearray(file.read(count * self.size))
        value = torch.frombuffer(data, dtype=self.dtype).view(place.layout.count, self.dim)
        return Loaded(value, place.layout)

    def missing(self, media: Iterable[Media]) -> list[Ref]:
        """The media that are not here yet, each once; unreadable ones are left for the loop to report."""
        found: dict[str, Ref] = {}
        for medium in media:
            if medium.kind != self.kind:
                continue
            try:
                digest = self.digest(medium.ref)
            except DataError:
                continue
            if digest not in self.places:
                found.setdefault(digest, medium.ref)
        return list(found.values())

    def fill(self, refs: list[Ref], encode: Callable[[list[Ref]], Iterator[tuple[list[Ref], Features]]]) -> int:
        """Encodes media and keeps what comes out; returns how many were added."""
        name = uuid.uuid4().hex[:12]
        added = 0
        with (self.folder / f"{name}.bin").open("wb") as data, (self.folder / f"{name}.jsonl").open("w") as index:
            for done, features in encode(refs):
                for ref, value, layout in zip(done, features.split(), features.layouts, strict=True):
                    offset = data.tell()
                    data.write(value.to("cpu", self.dtype).contiguous().view(torch.uint8).numpy().tobytes())
                    data.flush()
                    row = {"digest": self.digest(ref), "offset": offset} | asdict(layout)
                    index.write(json.dumps(row) + "\n")
                    index.flush()
                    self.places[row["digest"]] = _Place(data.name, offset, layout)
                    added += 1
        return added


def _layout(row: Mapping[str, Any]) -> Layout:
    """A layout as an index line has it; without `more` in those of before items were divided."""
    return Layout(tuple(row["grid"]), row["extra"], tuple(_layout(view) for view in row.get("more", ())))
