"""What stands behind every answer that a reward model reads: a request for its quality, and the facts of the picture.

As LLaVA-RLHF does (Sun et al. 2023, arXiv:2309.14525, section 2.2; its release's reward prompts), in words of our own:
a turn that asks for a score of quality by four criteria, of which the first, accuracy, has the facts. These are Scenes'
truth, or a file of captions: {"000000123456": ["A dog on a sofa.", …], …}, by the picture's name with or without its
folder and ending, as LLaVA-RLHF publishes `image_to_caption.json`. What that file has under `aok_` and the name, the
reasons of A-OKVQA, is told of questions with choices (`caption_type` 2 to 5); where there is none, the captions are.
The release begins the reply, too, and reads the reward off that; here it is read off the end of the request.
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
from quintet.training.symbolic import CHOICES
from quintet.values import Node, Sample, Text, Turn

__all__ = ["CRITERIA", "FACTS", "Asking", "Facts", "Request", "asking", "known_facts"]

FACTS = "Everything that is said must be supported by: {}"
CRITERIA = """Rate your last answer by how it is
1. accurate: it says what the picture shows and nothing else.{}
2. helpful: it gives what was asked for.
3. natural: it reads well and does not repeat itself.
4. concise: it says so in few words.
How good is it?"""
HOW = "name captions by picture: --facts FILE, or judge without facts: --set stages.reward.reward.facts=false"

CHOOSES = "aok_"
"""Before the names of pictures whose questions have choices, in LLaVA-RLHF's file."""

LOOKED = 50
"""Rows that are looked at before a stage begins."""


@dataclass(frozen=True)
class Facts:
    """What is true of pictures: name → sentences."""

    known: Mapping[str, tuple[str, ...]]
    file: str

    def of(self, sample: Sample, answer: str) -> str:
        """What is known of the sample's first picture.

        In an order that is shuffled for every answer, as the source does; it follows from the answer, so a run that
        goes on reads the same.

        Raises:
            DataError: there is no picture, or nothing is known of it.
        """
        media = sample.media()
        if not media:
            message = "there is no picture whose facts could be told"
            raise DataError("no-facts", message, file=sample.origin.file, row=sample.origin.row)
        path = PurePosixPath(media[0].ref.name)
        names = [str(path), path.name, path.stem]
        if _kind(sample) in CHOICES:
            names = [*(CHOOSES + name for name in names), *names]
        found = next((self.known[name] for name in names if name in self.known), None)
        if found is None:
            message = f"nothing is known of {str(path)!a:.80}; {self.file} holds {len(self.known):,} pictures"
            raise DataError("no-facts", message, file=sample.origin.file, row=sample.origin.row)
        return " ".join(random.Random(f"facts/{path.stem}/{answer}").sample(found, len(found)))


def _kind(sample: Sample) -> int:
    """The `caption_type` of a prompt of LLaVA-RLHF; 1, an open question, where a row says none."""
    said = (node.answer.numbers for node in sample.root.walk() if node.answer)
    return int(next((numbers["caption_type"] for numbers in said if "caption_type" in numbers), 1))


@dataclass(frozen=True)
class Request:
    """What a reward model is asked and told behind every answer."""

    asked: bool
    facts: Facts | None

    def behind(self, sample: Sample, answer: str) -> tuple[Turn, ...]:
        """The turn behind an answer to a sample's prompt; none where nothing is asked or told.

        Raises:
            DataError: nothing is known of the sample's picture.
        """
        told = FACTS.format(self.facts.of(sample, answer)) if self.facts else ""
        said = CRITERIA.format(f" {told}" if told else "") if self.asked else told
        return (Turn("user", (Text(said),)),) if said else ()


class Asking:
    """A source behind whose compared answers stands a request."""

    def __init__(self, source: Source, request: Request) -> None:
        self.source, self.request, self.name = source, request, source.name

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int) -> Sample:
        """One row.

        Raises:
            DataError: what the source raises; nothing is known of the picture; or an answer goes on to another one.
        """
        sample = self.source.sample(index)
        others = tuple(self._behind(sample, node) for node in sample.others)
        return replace(sample, root=self._behind(sample, sample.root), others=others)

    def _behind(self, sample: Sample, node: Node) -> Node:
        if node.answer is not None and node.children:
            raise DataError(
                "nested-answer", "an answer goes on to another one; a reward model compares those of one prompt"
            )
        turns = node.turns
        if node.answer is not None:
            said = "".join(part.text for turn in turns for part in turn.parts if isinstance(part, Text))
            turns = (*turns, *self.request.behind(sample, said))
        return replace(node, turns=turns, children=tuple(self._behind(sample, child) for child in node.children))


def asking(source: Source, request: Request) -> Asking:
    """The source with a request behind its answers.

    Raises:
        ConfigError: nothing is known of the pictures of its first rows.
    """
    made, why = Asking(source, request), ""
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
