"""Things that are told as one token each: `smallredcircle@20,41`.

A thing of a scene, with the place of its middle in sixty-fourths of the picture, is one token of a text, as it will be
one patch of a picture. There are half a million such words, and none has a row of its own: its embedding is the sum of
those of its words (small, red, circle), of its place among nine (top, left), and of marks across and down, between
which it is interpolated; divided by the root of how many. Of its own such a row would be met too rarely to be learnt;
composed, what is learnt of `red` is known of everything red, `0.31` lies between `0.25` and `0.37`, and a picture's
features meet an LLM whose inputs add up in the same way.

The shipped tokenizer and embedding hold only the plain words and the marks; `ToldTokenizer` and `Composed` put the rest
on top of them, to train and to score.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.data.scenes import COLOURS, SHAPES, SIZES, WORDS, Scene, things
from quintet.data.scenes.world import place_of
from quintet.data.tokenizer import Tokenizer

__all__ = ["ACROSS", "DOWN", "FINE", "Composed", "ToldTokenizer", "told_things"]

FINE = 64
"""Places along a side."""
_MARKS = 9
ACROSS, DOWN = (tuple(f"{way}{i}" for i in range(_MARKS)) for way in ("across", "down"))
"""Marks at eighths of the picture, from edge to edge: ordinary words of the vocabulary."""

_NAMES: dict[str, tuple[str, ...]] = {
    **{f"{s}{c}{h}": (s, c, h) for s in SIZES for c in COLOURS for h in SHAPES},
    **{f"digit{i}": ("digit", str(i)) for i in range(10)},
    **{f"word{word}": ("word", word) for word in WORDS},
}
"""Every thing that a picture can hold, and the plain words that it is made of."""
_NUMBERS = {name: i for i, name in enumerate(_NAMES)}
_TOLD = re.compile(r"(?:^| )([a-z]+[0-9]?)@([0-9]+),([0-9]+)")


def told_things(scene: Scene) -> list[tuple[str, tuple[int, int]]]:
    """Each thing as a told word, and the row and column of the 8 × 8 cell that its middle is in."""
    told = []
    for name, (x1, y1, x2, y2) in things(scene):
        x, y = (min(int((a + b) / 2 * FINE), FINE - 1) for a, b in ((x1, x2), (y1, y2)))
        told.append((f"{name}@{x},{y}", (y * 8 // FINE, x * 8 // FINE)))
    return told


class ToldTokenizer(Tokenizer):
    """A tokenizer in which a told word, with the space before it, is one token, whose id is beyond the vocabulary."""

    def __init__(self, plain: Tokenizer) -> None:
        names = {i: s for s, i in plain.specials.items()}
        super().__init__(plain.backend, bos=plain.bos, eos=plain.eos, pad=names[plain.pad_id])

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        at = 0
        for match in [*_TOLD.finditer(text), None]:
            end = match.start() if match else len(text)
            plain, where = super().encode(text[at:end])
            ids += plain
            spans += [(a + at, b + at) for a, b in where]
            if match:
                ids.append(self.vocab + (_NUMBERS[match[1]] * FINE + int(match[2])) * FINE + int(match[3]))
                spans.append(match.span())
                at = match.end()
        return ids, spans


class Composed(nn.Embedding):
    """An embedding whose ids beyond the table are told words. The table is that of `plain`, the same parameter."""

    words: Tensor
    places: Tensor
    marks: Tensor

    def __init__(self, plain: nn.Embedding, tokenizer: Tokenizer) -> None:
        super().__init__(plain.num_embeddings, plain.embedding_dim, _weight=plain.weight)
        self.weight = plain.weight

        def index(word: str) -> int:
            return tokenizer.encode(f" {word}")[0][-1]  # a figure is never one token with the space before it

        names = [place_of(((x + 0.5) / 3, (y + 0.5) / 3)).split() for y in range(3) for x in range(3)]
        self.register_buffer("words", _padded([[index(w) for w in words] for words in _NAMES.values()]), False)
        self.register_buffer("places", _padded([[index(w) for w in words] for words in names]), False)
        self.register_buffer("marks", torch.tensor([[index(w) for w in way] for way in (ACROSS, DOWN)]), False)

    def forward(self, input: Tensor) -> Tensor:
        """int64[…] → float[…, D]."""
        told = input >= self.num_embeddings
        plain = F.embedding(input.masked_fill(told, 0), self.weight)
        return plain.masked_scatter(told[..., None], self._composed(input[told] - self.num_embeddings).to(plain.dtype))

    def _composed(self, code: Tensor) -> Tensor:
        """int64[N] → float[N, D]: the sum of the rows that a told word is made of, over the root of their number."""
        thing, at = code // FINE**2, torch.stack((code // FINE % FINE, code % FINE), -1)  # across, down
        third = (2 * at + 1) * 3 // (2 * FINE)
        words = torch.cat((self.words[thing], self.places[third[:, 1] * 3 + third[:, 0]]), 1)
        present = (words >= 0).to(self.weight.dtype)
        eighths = (at.to(self.weight.dtype) + 0.5) * (_MARKS - 1) / FINE
        low = eighths.floor()
        between = eighths - low
        ways = torch.arange(2, device=code.device)
        marks = torch.cat([self.marks[ways, low.long() + side] for side in (0, 1)], 1)
        rows = torch.cat((words.clamp_min(0), marks), 1)
        share = torch.cat((present, 1 - between, between), 1)
        summed = torch.einsum("nkd,nk->nd", F.embedding(rows, self.weight), share)
        return summed * (present.sum(1, keepdim=True) + 2).rsqrt()


def _padded(rows: list[list[int]]) -> Tensor:
    most = max(map(len, rows))
    return torch.tensor([row + [-1] * (most - len(row)) for row in rows])
