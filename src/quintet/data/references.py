"""Log-probabilities of answers under a model that does not change any more: computed once, kept beside the data.

    FOLDER/MODEL/NAME.bin     float32 of each sample's learnt tokens, one sample after the other
    FOLDER/MODEL/NAME.jsonl   a line each: digest of the sample's columns and pictures, offset, count

MODEL is a fingerprint of the weights. A sample is found by what it is, not by where it stands: its ids, its tree, what
is learnt and its pictures' bytes. What was kept for other rows, another template or another model is never found.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from quintet.data.features import content_hash
from quintet.errors import DataError
from quintet.values import Ref, Tokens

__all__ = ["References"]


@dataclass(frozen=True)
class _Place:
    path: str
    offset: int
    count: int


class References:
    """Log-probabilities on disk, by sample. Safe to send to workers."""

    def __init__(self, folder: Path, *, model: str) -> None:
        self.folder = folder / model
        self.folder.mkdir(parents=True, exist_ok=True)
        self.places: dict[str, _Place] = {}
        self.digests: dict[Ref, str] = {}
        self.reload()

    def reload(self) -> None:
        """Reads the indexes again: other ranks may have added to them."""
        for index in sorted(self.folder.glob("*.jsonl")):
            data = index.with_suffix(".bin")
            held = data.stat().st_size if data.exists() else 0
            for line in index.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    break  # the line that a kill cut short is the last
                if row["offset"] + 4 * row["count"] <= held:
                    self.places[row["digest"]] = _Place(str(data), row["offset"], row["count"])

    def digest(self, tokens: Tokens) -> str:
        """What the sample is.

        Raises:
            DataError: a picture cannot be read.
        """
        made = hashlib.sha256()
        for name in ("ids", "weight", "enter", "exit", "order", "position", "parent"):
            made.update(getattr(tokens, name).contiguous().view(torch.uint8).numpy().tobytes())
        for item in tokens.items:
            if item.ref not in self.digests:
                self.digests[item.ref] = content_hash(item.ref)
            made.update(f"{item.kind} {item.start} {item.size} {item.words} {self.digests[item.ref]}".encode())
        made.update(repr([(spot.item, spot.column, spot.region) for spot in tokens.spots]).encode())
        return made.hexdigest()[:32]

    def __contains__(self, tokens: Tokens) -> bool:
        return self.digest(tokens) in self.places

    def give(self, tokens: Tokens) -> Tokens:
        """The sample with the log-probabilities of its learnt tokens.

        Raises:
            DataError: they are not here, or of another number of tokens.
        """
        place, learnt = self.places.get(self.digest(tokens)), tokens.learnt
        if place is None or place.count != len(learnt):
            raise DataError("no-reference", "the reference model has not seen this sample; it changed during the run")
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            values = torch.frombuffer(bytearray(file.read(4 * place.count)), dtype=torch.float32)
        reference = torch.zeros(len(tokens))
        reference[learnt] = values
        return replace(tokens, known={**tokens.known, "reference": reference})

    def keep(self, made: Iterable[tuple[Tokens, Tensor]]) -> int:
        """Keeps float32[P] for each sample's learnt tokens, in their order; returns how many samples there were."""
        name, added = uuid.uuid4().hex[:12], 0
        with (self.folder / f"{name}.bin").open("wb") as data, (self.folder / f"{name}.jsonl").open("w") as index:
            for tokens, logps in made:
                row = {"digest": self.digest(tokens), "offset": data.tell(), "count": len(logps)}
                assert len(logps) == len(tokens.learnt), "one number for each learnt token"
                data.write(logps.to("cpu", torch.float32).contiguous().view(torch.uint8).numpy().tobytes())
                data.flush()
                index.write(json.dumps(row) + "\n")
                index.flush()
                self.places[row["digest"]] = _Place(data.name, row["offset"], row["count"])
                added += 1
        return added
