"""Media told in words: experts write of a medium, and what they wrote stands where it stood.

    Media(image) ─► experts ─► "Caption: A dog on a sofa.␤Text: STOP␤Objects: dog [0.10, 0.32, 0.55, 0.90]"

From then on a medium is text: its tokens stand in the user's turn, and packing, trees, padding and the cache are those
of text. Words are kept by the hash of the medium's bytes, as features are; with a folder from run to run:

    FOLDER/EXPERT/NAME.jsonl     a line each: digest of the bytes, words

Lines are only ever added, each writer has a file of its own: a kill loses the last line at most.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from quintet.components.experts.expert import Expert, ExpertConfig
from quintet.data.changes import changed
from quintet.data.features import content_hash
from quintet.data.media import decode_image
from quintet.values import Media, Node, Part, Ref, Sample

__all__ = ["Texts", "Told"]


class Texts:
    """What the experts of a model write, each medium read once by each. An expert is built when it first reads."""

    def __init__(self, experts: Mapping[str, Mapping[str, ExpertConfig]], *, folder: Path | None = None) -> None:
        self.folder = folder
        self._kinds = {kind: {name: _Kept(c) for name, c in each.items()} for kind, each in experts.items()}
        self._words: dict[Ref, str] = {}

    def sample(self, sample: Sample) -> Sample:
        """The sample with words for every medium that experts read; others, and those that have words, stay.

        Raises:
            DataError: a medium cannot be read.
            ConfigError: an expert's program or weights are not here.
        """
        if not self._kinds:
            return sample
        return replace(sample, root=self._node(sample.root), others=tuple(map(self._node, sample.others)))

    def words(self, medium: Media) -> str:
        """A line for each expert that has something to say, after its name."""
        if medium.ref not in self._words:
            lines = {name: kept.words(medium.ref, self.folder) for name, kept in self._kinds[medium.kind].items()}
            self._words[medium.ref] = "\n".join(f"{name}: {words}" for name, words in lines.items() if words)
        return self._words[medium.ref]

    def _node(self, node: Node) -> Node:
        turns = tuple(replace(turn, parts=tuple(self._part(part) for part in turn.parts)) for turn in node.turns)
        return replace(node, turns=turns, children=tuple(map(self._node, node.children)))

    def _part(self, part: Part) -> Part:
        if isinstance(part, Media) and part.text is None and part.kind in self._kinds:
            return replace(part, text=self.words(part))
        return part


class _Kept:
    """One expert, and what it wrote before, by the hash of what it read."""

    def __init__(self, config: ExpertConfig) -> None:
        self.config = config
        self.expert: Expert | None = None
        self.known: dict[str, str] = {}
        self.file: Path | None = None

    def words(self, ref: Ref, folder: Path | None) -> str:
        if folder is not None and self.file is None:
            self._open(folder)
        digest = content_hash(ref)
        if digest not in self.known:
            self.expert = self.expert or self.config.build()
            pixels = torch.from_numpy(np.array(decode_image(ref))).permute(2, 0, 1)
            pixels = changed(pixels, ref.change) if ref.change else pixels
            # A line is a line, whatever it was told of.
            self.known[digest] = " ".join(self.expert(pixels).split())
            if self.file is not None:
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"digest": digest, "words": self.known[digest]}) + "\n")
        return self.known[digest]

    def _open(self, folder: Path) -> None:
        place = folder / hashlib.sha256(self.config.identity().encode()).hexdigest()[:20]
        place.mkdir(parents=True, exist_ok=True)
        for file in sorted(place.glob("*.jsonl")):
            self.known |= dict(_lines(file.read_text(encoding="utf-8").splitlines()))
        self.file = place / f"{uuid.uuid4().hex[:12]}.jsonl"


def _lines(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            return  # the line that a kill cut short is the last
        yield row["digest"], row["words"]


class _Source(Protocol):
    name: str

    def __len__(self) -> int: ...
    def sample(self, index: int) -> Sample: ...


class Told:
    """A source whose media are told in words."""

    def __init__(self, source: _Source, texts: Texts) -> None:
        self.source, self.texts, self.name = source, texts, source.name

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int) -> Sample:
        """The row's sample, told."""
        return self.texts.sample(self.source.sample(index))
