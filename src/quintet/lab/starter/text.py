"""What the starter LLM reads: Scenes as text alone. It never meets a picture or a feature of one.

A scene is told in one of three ways: as a map, cell by cell in the order in which a picture's patches will come later;
as a bag of things with their places; or as a description. Then questions are asked about it. In the first two a thing
is one token (`smallredcircle`, `digitseventopleft`), as it will be one patch, and the embedding of that token begins as
the sum of those of its words.
"""

import random
from collections.abc import Iterator

import torch
from tokenizers import AddedToken, decoders, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from torch import Tensor

from quintet.data.scenes import (
    BRIEF,
    COLOURS,
    DETAILED,
    PLACES,
    SHAPES,
    SIZES,
    WORDS,
    World,
    caption,
    cell_map,
    conversation,
)
from quintet.data.scenes import sample_scene as draw
from quintet.data.scenes.world import Scene, place_of
from quintet.data.tokenizer import Tokenizer
from quintet.values import Node, Origin, Sample, Text, Turn

__all__ = ["TextScenes", "compose_embeddings", "train_tokenizer"]


class TextScenes:
    """A random-access source of `n` texts; `seed` and the number decide each.

    `most` says how many objects the scenes have at most; each text draws its own limit from it. A model that meets
    only crowded scenes stays for long where it answers by frequency alone (docs/log.md).
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int,
        split: str = "train",
        most: tuple[int, ...] = (4,),
        turns: int = 10,
        forms: tuple[float, float, float] = (0.8, 0.0, 0.2),
    ) -> None:
        self.n, self.seed, self.split, self.most, self.turns, self.forms = n, seed, split, most, turns, forms
        self.name = f"scenes-text-{split}"

    def __len__(self) -> int:
        return self.n

    def sample(self, index: int) -> Sample:
        """One scene as a conversation about its map or its description."""
        rng = random.Random(f"text/{self.seed}/{self.split}/{index}")
        scene = draw(World(max_objects=rng.choice(self.most)), rng, self.split)
        told = self._told(scene, rng)
        turns: list[Turn] = []
        for i, (question, answer) in enumerate(conversation(scene, rng, self.turns)):
            # What is told is given; everything said about it is learnt.
            asked = (Text(told, weight=0.0), Text(f"\n{question}")) if i == 0 else (Text(question),)
            turns += [Turn("user", asked), Turn("assistant", (Text(answer),))]
        return Sample(Node(tuple(turns)), Origin(self.name, index + 1))

    def _told(self, scene: Scene, rng: random.Random) -> str:
        form = rng.choices(("map", "things", "words"), self.forms)[0]
        if form == "words":
            return caption(scene, rng, "long")
        cells = [_cell(word) for word in cell_map(scene)]
        if form == "map":
            return "".join(f" {word}" for word in cells)
        placed = [f"{word}{place_of(_middle(i)).replace(' ', '')}" for i, word in enumerate(cells) if word != "."]
        gaps = ["."] * rng.randint(0, 6)
        return "".join(f" {word}" for word in rng.sample(placed + gaps, len(placed) + len(gaps)))


def _middle(cell: int, cells: int = 8) -> tuple[float, float]:
    return (cell % cells + 0.5) / cells, (cell // cells + 0.5) / cells


def _compounds() -> dict[str, tuple[str, ...]]:
    """Every word of a map, and of a list of things with their places, with the plain words that it is made of."""
    things = {f"{s}{c}{h}": (s, c, h) for s in SIZES for c in COLOURS for h in SHAPES}
    things |= {f"digit{name}": ("digit", str(number)) for number, name in enumerate(_DIGITS)}
    things |= {f"word{word}": ("word", word) for word in WORDS}
    placed = {f"{w}{p.replace(' ', '')}": (*parts, *p.split()) for w, parts in things.items() for p in PLACES}
    return things | placed


def _texts(n: int, seed: int) -> Iterator[str]:
    """What the tokenizer is trained on: the same texts, and every word of Scenes in every form it takes."""
    source = TextScenes(n, seed=seed, forms=(0.0, 0.0, 1.0))
    for i in range(n):
        for turn in source.sample(i).turns():
            words = "".join(part.text for part in turn.parts if isinstance(part, Text))
            # An answer follows its header with a space; tokens should begin with that space.
            yield f" {words}" if turn.role == "assistant" else words
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


@torch.no_grad()
def compose_embeddings(table: Tensor, tokenizer: Tokenizer) -> None:
    """Starts the embedding of each word of a map, in place, as the sum of those of the words that it is made of.

    `smallredcircle` is one token, as a picture's patch will be one; composed like this it is near `red` and `circle`
    from the first step. With random rows instead the LLM stayed for long where it answers by frequency (docs/log.md).
    """

    def row(word: str) -> Tensor:
        (index,) = tokenizer.encode(f" {word}")[0]
        return table[index]

    for word, parts in _compounds().items():
        row(word).copy_(torch.stack([row(part) for part in parts]).sum(0) / len(parts) ** 0.5)
