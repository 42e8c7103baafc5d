"""What the starter LLM reads: Scenes as text alone. It never meets a picture or a feature of one.

A scene is told in one of three ways: as a map, cell by cell in the order in which a picture's patches will come later;
as a description; or not at all, for captions and plain sentences. Then questions are asked about it, in one of several
published spellings.
"""

import random
from collections.abc import Iterator

from tokenizers import AddedToken, decoders, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from quintet.data.scenes import BRIEF, COLOURS, DETAILED, SHAPES, SIZES, WORDS, World, caption, cell_map, conversation
from quintet.data.scenes import sample_scene as draw
from quintet.data.tokenizer import Tokenizer
from quintet.values import Node, Origin, Sample, Text, Turn

__all__ = ["TextScenes", "train_tokenizer"]


class TextScenes:
    """A random-access source of `n` texts; `seed` and the number decide each."""

    def __init__(self, n: int, *, seed: int, split: str = "train", world: World | None = None, turns: int = 10) -> None:
        self.n, self.seed, self.split, self.world, self.turns = n, seed, split, world or World(), turns
        self.name = f"scenes-text-{split}"

    def __len__(self) -> int:
        return self.n

    def sample(self, index: int) -> Sample:
        """One scene as a conversation about its map or its description."""
        rng = random.Random(f"text/{self.seed}/{self.split}/{index}")
        scene = draw(self.world, rng, self.split)
        if rng.random() < 0.85:
            told = "".join(f" {_cell(word)}" for word in cell_map(scene))
        else:
            told = caption(scene, rng, "long")
        turns: list[Turn] = []
        for i, (question, answer) in enumerate(conversation(scene, rng, self.turns)):
            asked = f"{told}\n{question}" if i == 0 else question
            turns += [Turn("user", (Text(asked),)), Turn("assistant", (Text(answer),))]
        return Sample(Node(tuple(turns)), Origin(self.name, index + 1))


def _texts(n: int, seed: int) -> Iterator[str]:
    """What the tokenizer is trained on: the same texts, and every word of Scenes in every form it takes."""
    source = TextScenes(n, seed=seed)
    for i in range(n):
        yield from (part.text for turn in source.sample(i).turns() for part in turn.parts if isinstance(part, Text))
    for _ in range(200):
        yield " ".join(("", *(f"{s}{c}{h}" for s in SIZES for c in COLOURS for h in SHAPES)))
        yield " ".join(("", *(f"digit{d}" for d in _DIGITS), *(f"word{w}" for w in WORDS), *WORDS))
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
    "Answer the question using a single word or phrase. Answer with the option's letter from the given choices directly.",
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
    return Tokenizer(backend, bos="<s>", eos="</s>", pad="<pad>")
