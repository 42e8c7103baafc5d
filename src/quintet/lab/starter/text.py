"""What the starter LLM reads: Scenes as text alone. It never meets a picture or a feature of one.

A scene is told in one of three ways: as a map, cell by cell in the order in which a picture's patches will come later;
as a bag of things; or as a description. In the first two a thing with its place is one token (`told.py`).

Then questions are asked, each in a branch of its own: in one conversation a later answer is mostly there to be copied
from an earlier one, and a model that learns to copy learns to look much later. Some texts are notes: many questions in
as few words as can be, without a conversation around them. They teach looking things up several times as fast
(docs/log.md has both). Boxes are asked for, and pointed with, in the four ways that systems write them as plain text.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import replace

from tokenizers import AddedToken, decoders, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from quintet.data.frame import Frame
from quintet.data.regions import RegionFormat
from quintet.data.scenes import (
    BRIEF,
    COLOURS,
    DETAILED,
    PLACES,
    SHAPES,
    SIZES,
    WORDS,
    Question,
    World,
    ask,
    caption,
    conversation,
    pretrain,
    referring,
)
from quintet.data.scenes import sample_scene as draw
from quintet.data.scenes.questions import REGION
from quintet.data.scenes.world import Scene
from quintet.data.template import DECIMALS, Template
from quintet.data.tokenizer import Tokenizer
from quintet.lab.starter.told import ACROSS, DOWN, told_things
from quintet.recipes._templates import VICUNA_V1
from quintet.recipes._templates_regions import MINIGPT_V2_REGIONS, QWEN_VL_REGIONS, SHIKRA_REGIONS
from quintet.values import Node, Origin, Region, Sample, Text, Turn

__all__ = ["SPELT", "TextScenes", "spelt", "told_in", "train_tokenizer"]

SPELT = Template(name="spelt", answer="", end=VICUNA_V1.end, joint="", user_weight=0.05)
"""Adds nothing but markers: `TextScenes` spells LLaVA's two templates itself, since one text shows both."""

FORMS = (
    ("", DECIMALS),
    ("thousandths ", SHIKRA_REGIONS),
    ("hundredths ", MINIGPT_V2_REGIONS),
    ("pixels ", replace(QWEN_VL_REGIONS, place=Frame(), added=())),
)
"""How notes name the ways to write a box. A conversation uses the first, which is the templates' default."""

BOX_WEIGHT = 0.3
"""Of the tokens of a box: it takes twenty, other answers one or two, and half of its figures cannot be known."""


class TextScenes:
    """A random-access source of `n` texts; `seed` and the number decide each.

    `most` says how many objects the scenes have at most; each text draws its own limit from it. A model that meets
    only crowded scenes stays for long where it answers by frequency alone (docs/log.md). `forms` are the weights of
    map, things and description. `notes` is the share of texts with clipped questions (`What red object` for `What shape
    is the red object?`), `plain` of those that are told and then captioned, with no words around, as in LLaVA's first
    stage.
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int,
        split: str = "train",
        most: tuple[int, ...] = (4,),
        turns: int = 10,
        forms: tuple[float, float, float] = (0.35, 0.5, 0.15),
        notes: float = 0.0,
        plain: float = 0.0,
    ) -> None:
        self.n, self.seed, self.split, self.most, self.turns, self.forms = n, seed, split, most, turns, forms
        self.notes, self.plain = notes, plain
        self.name = f"scenes-text-{split}"

    def __len__(self) -> int:
        return self.n

    def sample(self, index: int) -> Sample:
        """One scene, told, and a branch for each question. To be spelt with `SPELT`."""
        scene, form, told, rng = self._begin(index)
        kind = rng.choices(("notes", "plain", "chat"), (self.notes, self.plain, 1 - self.notes - self.plain))[0]
        start = told[1:]
        children: tuple[Node, ...]
        boxes = form != "words"  # a description does not say where exactly
        if kind == "notes":
            children = tuple(_branch(f"\n{q}", "", a, weight) for q, a, weight in _notes(scene, rng, boxes=boxes))
        elif kind == "plain":
            caption = Turn("assistant", (Text(f"{pretrain(scene, rng)[1]}\n"),))
            children = (Node((caption,)),)
        else:
            start = f"{VICUNA_V1.system} USER:{told}"
            said = conversation(scene, rng, self.turns, captions=0.25, boxes=0.7 if boxes else 0.0)
            said += referring(scene, rng)[:1] if boxes else []
            answers = map(spelt, said)
            children = tuple(_branch(f"\n{q} ", VICUNA_V1.assistant, a, weight) for q, a, weight in answers)
        return Sample(Node((Turn("user", (Text(start, weight=0.0),)),), children), Origin(self.name, index + 1))

    def questions(self, index: int) -> tuple[str, str, list[Question]]:
        """The form of a text, what is told, and what may be asked of it."""
        scene, form, told, rng = self._begin(index)
        return form, told, conversation(scene, rng, self.turns, captions=0.0, boxes=0.0 if form == "words" else 1.0)

    def _begin(self, index: int) -> tuple[Scene, str, str, random.Random]:
        rng = random.Random(f"text/{self.seed}/{self.split}/{index}")
        scene = draw(World(max_objects=rng.choice(self.most)), rng, self.split)
        form = rng.choices(("map", "things", "words"), self.forms)[0]
        return scene, form, told_in(scene, form, rng), rng


def _branch(question: str, header: str, answer: str, weight: float) -> Node:
    said = Text(f" {answer}", weight=weight)
    return Node((Turn("user", (Text(question), Text(header, weight=0.0))), Turn("assistant", (said,))))


Said = tuple[str, str, float]
"""A question, its answer, and the weight of the answer's tokens."""


def spelt(question: Question, form: RegionFormat = DECIMALS) -> Said:
    """With its regions as text."""
    text, answer = question.text, question.answer
    for points in question.regions:
        place = form.format([Region("box" if len(points) == 4 else "points", tuple(points))])
        text, answer = text.replace(REGION, place), answer.replace(REGION, place)
    return text, answer, 1.0 if answer == question.answer else BOX_WEIGHT


_NOTED = {"existence": 2.0, "count": 1.5, "colour": 3.0, "shape": 2.5, "size": 1.5, "place": 3.0, "object": 3.0,
          "relation": 1.0, "digit": 0.7, "word": 0.7, "grounding": 2.0, "referring": 1.0}  # fmt: skip
"""How often a kind of question is noted: looking up one thing among several is hardest, so mostly that."""

_CLIPPED = frozenset(
    re.findall(r"\w+", "the a an does have is are in picture there do you see can show at on of part to which what")
)


def _notes(scene: Scene, rng: random.Random, *, boxes: bool, most: int = 16) -> list[Said]:
    """Clipped questions with their answers: the first word, then what cannot be left out."""
    said: dict[str, Said] = {}
    kinds = {kind: often for kind, often in _NOTED.items() if boxes or kind not in ("grounding", "referring")}
    for kind in rng.choices(list(kinds), list(kinds.values()), k=2 * most):
        if len(said) < most and (found := _note(kind, scene, rng)):
            said.setdefault(found[0], found)
    return list(said.values())


def _note(kind: str, scene: Scene, rng: random.Random) -> Said | None:
    if kind == "referring":
        pointing = referring(scene, rng)
        question = pointing[0] if pointing else None
    else:
        question = ask(kind, scene, rng)
    if question is None:
        return None
    first, *others = re.findall(r"[A-Za-z0-9]+", question.text)
    others = [word for word in others if word not in _CLIPPED]
    name, form = rng.choice(FORMS)
    if kind == "grounding":
        # Where is the red circle? Answer with a box. → Box hundredths red circle
        plain = [word for word in others if word not in ("Answer", "with", "box", "around")]
        return spelt(replace(question, text=f"Box {name}{' '.join(plain)}"), form)
    if kind == "referring":
        asked = next((word for word in ("colour", "shape") if word in others), "thing")
        return spelt(replace(question, text=f"{asked.capitalize()} {REGION}"), form)
    return " ".join((first, *others)), question.answer, 1.0


def told_in(scene: Scene, form: str, rng: random.Random) -> str:
    """A scene as text, with a space before each word."""
    if form == "words":
        return f" {caption(scene, rng, 'long')}"
    told = told_things(scene)
    if form == "map":
        cells = ["."] * 64
        for word, (row, column) in told:
            cells[row * 8 + column] = word
    else:
        cells = [word for word, _ in told] + ["."] * rng.randint(0, 6)
        rng.shuffle(cells)
    return "".join(f" {cell}" for cell in cells)


def _texts(n: int, seed: int) -> Iterator[str]:
    """What the tokenizer is trained on: the same texts, and every word of Scenes in every form it takes."""
    for i in range(n):
        rng = random.Random(f"text/{seed}/train/{i}")
        scene = draw(World(), rng)
        said = conversation(scene, rng, turns=10)
        yield caption(scene, rng, "long")
        yield from (each.text for each in said)
        # An answer follows its header with a space; tokens should begin with that space.
        yield from (f" {each.said}" for each in said)
    for _ in range(200):
        yield " ".join(("", *WORDS, *SIZES, *COLOURS, *SHAPES, *PLACES, *"0123456789", "digit word yes no . Box"))
        yield from (*BRIEF, *DETAILED)
    for system in _SPELLINGS:
        yield from [system] * 50


_SPELLINGS = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions.",
    " USER: ASSISTANT: Human: Assistant: ### User Question: Answer: [INST] [/INST] Output: Instruction: Response:",
    "Answer the question using a single word or phrase. "
    "Answer with the option's letter from the given choices directly.",
)


def train_tokenizer(*, vocab: int = 2048, texts: int = 3000, seed: int = 0) -> Tokenizer:
    """A byte-level BPE: any text can be spelt, numbers figure by figure, and each mark of a place is one token."""
    backend = Backend(BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in ("<pad>", "<s>", "</s>", "<image>")],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(texts, seed), trainer)
    # Marks are no language: each is a token of its own, with the space before it.
    backend.add_tokens([AddedToken(mark, lstrip=True, single_word=True, normalized=False) for mark in (*ACROSS, *DOWN)])
    return Tokenizer(backend, bos="<s>", eos="</s>", pad="<pad>")
