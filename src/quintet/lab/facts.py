"""What a reward model is told of a picture behind every answer (LLaVA-RLHF, section 2.2: factual augmentation).

It is Scenes' truth, or a file of captions: {"000000123456": ["A dog on a sofa.", …], …}, by the picture's name with or
without its folder and ending, as LLaVA-RLHF publishes `image_to_caption.json`.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from quintet.data.pipeline import Source
from quintet.data.scenes import Scene, read_truth
from quintet.data.scenes.claims import told, truths
from quintet.errors import ConfigError, DataError
from quintet.values import Node, Sample, Text, Turn

__all__ = ["FACTS", "Facts", "Factual", "known_facts", "with_facts"]

FACTS = "Everything that is said must be supported by: {}"
"""What is asked behind an answer, in words of our own."""
HOW = "name captions by picture: --facts FILE, or judge without facts: --set stages.reward.reward.facts=false"

LOOKED = 50
"""Rows that are looked at before a stage begins."""


@dataclass(frozen=True)
class Facts:
    """What is true of pictures: name → sentences."""

    known: Mapping[str, tuple[str, ...]]
    file: str

    def turn(self, sample: Sample) -> Turn:
        """What stands behind an answer: the facts of the sample's first picture in random order.

        Raises:
            DataError: there is no picture, or nothing is known of it.
        """
        media = sample.media()
        if not media:
            message = "there is no picture whose facts could be told"
            raise DataError("no-facts", message, file=sample.origin.file, row=sample.origin.row)
        path = PurePosixPath(media[0].ref.name)
        found = next((self.known[key] for key in (str(path), path.name, path.stem) if key in self.known), None)
        if found is None:
            message = f"nothing is known of {str(path)!a:.80}; {self.file} holds {len(self.known):,} pictures"
            raise DataError("no-facts", message, file=sample.origin.file, row=sample.origin.row)
        rng = random.Random(f"facts/{path.stem}")
        return Turn("user", (Text(FACTS.format(" ".join(rng.sample(found, len(found))))),))


class Factual:
    """A source whose compared answers have the facts of their picture behind them."""

    def __init__(self, source: Source, facts: Facts) -> None:
        self.source, self.facts, self.name = source, facts, source.name

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int) -> Sample:
        """One row.

        Raises:
            DataError: what the source raises; nothing is known of the picture; or an answer goes on to another one.
        """
        sample = self.source.sample(index)
        behind = self.facts.turn(sample)
        return replace(
            sample, root=_behind(sample.root, behind), others=tuple(_behind(n, behind) for n in sample.others)
        )


def _behind(node: Node, turn: Turn) -> Node:
    if node.answer is not None and node.children:
        raise DataError(
            "nested-answer", "an answer goes on to another one; a reward model compares those of one prompt"
        )
    turns = (*node.turns, turn) if node.answer is not None else node.turns
    return replace(node, turns=turns, children=tuple(_behind(child, turn) for child in node.children))


def with_facts(source: Source, facts: Facts) -> Factual:
    """The source with facts behind its answers.

    Raises:
        ConfigError: nothing is known of the pictures of its first rows.
    """
    made, why = Factual(source, facts), ""
    for index in range(min(LOOKED, len(source))):
        try:
            made.sample(index)
        except DataError as error:
            why = why or (error.message if error.fault == "no-facts" else "")
        else:
            return made
    if why:
        raise ConfigError(f"{source.name}: {why}; {HOW}")
    return made


def known_facts(file: Path | None, *, scenes: Path) -> Facts:
    """The facts of a file, or Scenes' truth.

    Raises:
        ConfigError: the file is none of captions by picture.
    """
    if file is None:
        return Facts({each.image.stem: _sentences(each.scene) for each in read_truth(_truth(scenes))}, str(scenes))
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: no JSON of captions by picture ({error})") from None
    wrong = "an object of captions by picture is expected"
    if not isinstance(held, dict):
        raise ConfigError(f"{file}: {wrong}, this is a {type(held).__name__}")
    known: dict[str, tuple[str, ...]] = {}
    for name, said in held.items():
        texts = [said] if isinstance(said, str) else said
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise ConfigError(f"{file}, {name!a:.80}: {said!a:.80} is no caption and no list of captions; {wrong}")
        known[name] = tuple(texts)
    return Facts(known, file.name)


def _sentences(scene: Scene) -> tuple[str, ...]:
    return tuple(claim.text for claim in truths(scene)) or (told([]),)


def _truth(scenes: Path) -> Path:
    if not (place := scenes / "train.truth.jsonl").exists():
        raise ConfigError(f"the facts of pictures are not known, {scenes} is no folder of Scenes; {HOW}")
    return place
