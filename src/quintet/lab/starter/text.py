"""What the starter LLM reads: Scenes as text alone. It never meets a picture or a feature of one.

A scene is told in one of three ways: as a map, cell by cell in the order in which a picture's patches will come later;
as a bag of things; or as a description. In the first two a thing with its place is one token
(`digitseventopleft`), as it will be one patch, and the embedding of that token is the sum of those of its words.

Then questions are asked, each in a branch of its own: in one conversation a later answer is mostly there to be copied
from an earlier one, and a model that learns to copy learns to look much later. Some texts are notes: many questions in
as few words as can be, without a conversation around them. They teach looking things up several times as fast
(docs/log.md has both).
"""

import random
import re
from collections.abc import Iterator

import torch
from tokenizers import AddedToken, decoders, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from torch import Tensor, nn

from quintet.data.scenes import (
    BRIEF,
    COLOURS,
    DETAILED,
    PLACES,
    SHAPES,
    SIZES,
    WORDS,
    World,
    ask,
    caption,
    cell_map,
    conversation,
    pretrain,
)
from quintet.data.scenes import sample_scene as draw
from quintet.data.scenes.world import Scene, place_of
from quintet.data.template import Template
from quintet.data.tokenizer import Tokenizer
from quintet.recipes._templates import VICUNA_V1
from quintet.values import Node, Origin, Sample, Text, Turn

__all__ = ["SPELT", "ComposedRows", "TextScenes", "train_tokenizer"]

SPELT = Template(name="spelt", answer="", end=VICUNA_V1.end, joint="", user_weight=0.05)
"""Adds nothing but markers: `TextScenes` spells LLaVA's two templates itself, since one text shows both."""


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
        turns: int = 14,
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
        scene, _, told, rng = self._begin(index)
        kind = rng.choices(("notes", "plain", "chat"), (self.notes, self.plain, 1 - self.notes - self.plain))[0]
        start = told[1:]
        children: tuple[Node, ...]
        if kind == "notes":
            children = tuple(_branch(f"\n{note}", "", answer) for note, answer in _notes(scene, rng))
        elif kind == "plain":
            caption = Turn("assistant", (Text(f"{pretrain(scene, rng)[1]}\n"),))
            children = (Node((caption,)),)
        else:
            start = f"{VICUNA_V1.system} USER:{told}"
            said = conversation(scene, rng, self.turns, captions=0.25, boxes=0.0)
            children = tuple(_branch(f"\n{each.text} ", VICUNA_V1.assistant, each.said) for each in said)
        return Sample(Node((Turn("user", (Text(start, weight=0.0),)),), children), Origin(self.name, index + 1))

    def questions(self, index: int) -> tuple[str, str, list[tuple[str, str]]]:
        """The form of a text, what is told, and questions with their answers."""
        scene, form, told, rng = self._begin(index)
        asked = conversation(scene, rng, self.turns, captions=0.0, boxes=0.0)
        return form, told, [(each.text, each.said) for each in asked]

    def _begin(self, index: int) -> tuple[Scene, str, str, random.Random]:
        rng = random.Random(f"text/{self.seed}/{self.split}/{index}")
        scene = draw(World(max_objects=rng.choice(self.most)), rng, self.split)
        form = rng.choices(("map", "things", "words"), self.forms)[0]
        return scene, form, _told(scene, form, rng), rng


def _branch(question: str, header: str, answer: str) -> Node:
    return Node((Turn("user", (Text(question), Text(header, weight=0.0))), Turn("assistant", (Text(f" {answer}"),))))


_NOTED = {"existence": 2.0, "count": 1.5, "colour": 3.0, "shape": 2.5, "size": 1.5, "place": 3.0, "object": 3.0,
          "relation": 0.4, "digit": 0.7, "word": 0.7}  # fmt: skip
"""How often a kind of question is noted: looking up one thing among several is hardest, so mostly that."""

_CLIPPED = frozenset(
    [
        "the",
        "a",
        "an",
        "does",
        "have",
        "is",
        "are",
        "in",
        "picture",
        "there",
        "do",
        "you",
        "see",
        "can",
        "show",
        "at",
        "on",
        "of",
        "part",
        "to",
        "which",
        "what",
    ]
)


def _notes(scene: Scene, rng: random.Random, most: int = 24) -> list[tuple[str, str]]:
    """Clipped questions with their answers: the first word, then what cannot be left out."""
    said: dict[str, str] = {}
    for kind in rng.choices(list(_NOTED), list(_NOTED.values()), k=2 * most):
        question = ask(kind, scene, rng) if len(said) < most else None
        if question:
            first, *others = re.findall(r"[A-Za-z0-9]+", question.text)
            said.setdefault(" ".join((first, *(word for word in others if word not in _CLIPPED))), question.answer)
    return list(said.items())


def _told(scene: Scene, form: str, rng: random.Random) -> str:
    """A scene as text, with a space before each word."""
    if form == "words":
        return f" {caption(scene, rng, 'long')}"
    cells = [
        "." if word == "." else f"{_cell(word)}{place_of(_middle(i)).replace(' ', '')}"
        for i, word in enumerate(cell_map(scene))
    ]
    if form == "things":
        few = [cell for cell in cells if cell != "."] + ["."] * rng.randint(0, 6)
        cells = rng.sample(few, len(few))
    return "".join(f" {cell}" for cell in cells)


def _middle(cell: int, cells: int = 8) -> tuple[float, float]:
    return (cell % cells + 0.5) / cells, (cell // cells + 0.5) / cells


def _compounds() -> dict[str, tuple[str, ...]]:
    """Every word of a map, and the plain words that it is made of."""
    things = {f"{s}{c}{h}": (s, c, h) for s in SIZES for c in COLOURS for h in SHAPES}
    things |= {f"digit{name}": ("digit", str(number)) for number, name in enumerate(_DIGITS)}
    things |= {f"word{word}": ("word", word) for word in WORDS}
    return {f"{w}{p.replace(' ', '')}": (*parts, *p.split()) for w, parts in things.items() for p in PLACES}


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
        yield " ".join(("", *WORDS, *SIZES, *COLOURS, *SHAPES, *PLACES, *"0123456789", "digit word yes no ."))
        yield from (*BRIEF, *DETAILED)
    for system in _SPELLINGS:
        yield from [system] * 50


_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _cell(word: str) -> str:
    """A map's word, spelt so that the tokenizer can keep it whole: it never joins letters and figures."""
    return f"digit{_DIGITS[int(word[5:])]}" if word.startswith("digit") else word


_SPELLINGS = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions.",
    " USER: ASSISTANT: Human: Assistant: ### User Question: Answer: [INST] [/INST] Output: Instruction: Response:",
    "Answer the question using a single word or phrase. "
    "Answer with the option's letter from the given choices directly.",
)


def train_tokenizer(*, vocab: int = 2048, texts: int = 3000, seed: int = 0) -> Tokenizer:
    """A byte-level BPE: any text can be spelt, and each word of a map is one token."""
    backend = Backend(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in ("<pad>", "<s>", "</s>", "<image>")],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(texts, seed), trainer)
    # A map's words are no language: each is a token of its own, with the space before it.
    backend.add_tokens([AddedToken(word, lstrip=True, single_word=True, normalized=False) for word in _compounds()])
    return Tokenizer(backend, bos="<s>", eos="</s>", pad="<pad>")


class ComposedRows(nn.Module):
    """A parametrization of the embedding: the row of a map's word is the sum of the rows of its words, over √n.

    `smallredcircletopleft` is one token, as a picture's patch will be one. Of its own each such row would be met too
    rarely to be learnt; composed, what is learnt of `red` is known of everything red, and a picture's features meet an
    LLM whose inputs add up in the same way. `remove_parametrizations` leaves an ordinary table.
    """

    parts: Tensor
    share: Tensor

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()

        def index(word: str) -> int:
            (found,) = tokenizer.encode(f" {word}")[0]
            return found

        made = {index(word): [index(part) for part in parts] for word, parts in _compounds().items()}
        rows = sorted(made)
        assert rows == list(range(rows[0], tokenizer.vocab)), "the words of maps are the last of the vocabulary"
        most = max(len(parts) for parts in made.values())
        padded = [made[row] + [0] * (most - len(made[row])) for row in rows]
        share = [[len(made[row]) ** -0.5] * len(made[row]) + [0.0] * (most - len(made[row])) for row in rows]
        self.first = rows[0]
        self.register_buffer("parts", torch.tensor(padded), persistent=False)
        self.register_buffer("share", torch.tensor(share), persistent=False)

    def forward(self, table: Tensor) -> Tensor:
        """float[V, D] → float[V, D]; the rows of maps' words in `table` are not looked at."""
        return torch.cat((table[: self.first], (table[self.parts] * self.share[..., None]).sum(1)))
