"""Completing a text instead of answering with all of it: objectives of encoder–decoders, as data.

    as it is     ▣ ▣ │ a picture of a red circle </s>
    prefix       ▣ ▣ a picture │ of a red circle </s>
    spans        ▣ ▣ a <extra_id_0> of a red <extra_id_1> │ <extra_id_0> picture <extra_id_1> circle </s>

What stands before the line is given, the rest is learnt. Prefix completion is PaLI's split captioning and UL2's
S-denoiser; completion of masked spans is T5's span corruption (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4) and
UL2's R-denoiser (Tay et al. 2022, arXiv:2205.05131, section 3.1.2). Both work on tokens, so nothing is lost: spans put
in the place of their sentinels give the text. As in T5's code a text begins with words that stay and ends in a span.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from quintet.config.base import Config
from quintet.data.tokenizer import Tokenizer
from quintet.errors import ConfigError
from quintet.values import Media, Sample, Tokens

__all__ = ["Completion"]


@dataclass(frozen=True, kw_only=True)
class Completion(Config):
    """Shares of a stage's samples that are completed; the others are answered whole.

    Only samples with one answer are: a sample whose answer is its whole text, as a caption or plain text is.
    """

    prefix: float = 0.0
    """Share of the samples whose answer is cut in two at random, the first part given."""
    spans: float = 0.0
    """Share of the samples whose answer has spans taken out of it."""
    rate: float = 0.15
    """Share of an answer's tokens that its spans take."""
    span: float = 3.0
    """Mean tokens of a span."""
    one: bool = False
    """Whether a conversation gives one of its turns, drawn, with the media before it: an encoder–decoder encodes what
    stands before each answer anew, and PaLI's samples ask one thing."""
    sentinel: str = "<extra_id_{}>"
    sentinels: int = 100
    """How many there are; an answer has at most as many spans."""

    def __post_init__(self) -> None:
        if min(self.prefix, self.spans) < 0 or self.prefix + self.spans > 1:
            raise ConfigError(f"prefix {self.prefix} and spans {self.spans} are shares of all samples: 0 to 1 together")
        if not 0 < self.rate < 1 or self.span < 1 or self.sentinels < 1 or "{}" not in self.sentinel:
            raise ConfigError(
                f"rate {self.rate} must be between 0 and 1, span {self.span} and sentinels {self.sentinels} at least 1,"
                f" and the sentinel {self.sentinel!r} must say by {{}} where its number stands"
            )

    @property
    def added(self) -> tuple[str, ...]:
        """The sentinels, for `Template.added`."""
        return tuple(self.sentinel.format(n) for n in range(self.sentinels))

    def draw(self, sample: Sample, *, seed: tuple[int, ...]) -> Sample:
        """The sample, or with `one` a turn of it; trees stay as they are."""
        turns = sample.root.turns
        said = [n for n, turn in enumerate(turns) if turn.role == "assistant" and n]
        if not self.one or sample.root.children or len(said) < 2:
            return sample
        at = said[int(np.random.default_rng((*seed, 1)).integers(len(said)))]
        system = tuple(turn for turn in turns[:at] if turn.role == "system")
        # All media before it, so that regions keep the numbers of theirs.
        media = tuple(part for turn in turns[: at - 1] for part in turn.parts if isinstance(part, Media))
        asked = replace(turns[at - 1], parts=(*media, *turns[at - 1].parts))
        return replace(sample, root=replace(sample.root, turns=(*system, asked, turns[at])))

    def __call__(self, tokens: Tokens, tokenizer: Tokenizer, *, seed: tuple[int, ...]) -> Tokens:
        """The sample as its draw wants it. Its end marker, one token, is always learnt and never in a span."""
        start = _answer(tokens)
        # Sentinels and words need two tokens at least, and the end marker is none of them.
        if start is None or len(tokens) - start < 3:
            return tokens
        random = np.random.default_rng(seed)
        drawn = random.random()
        if drawn < self.prefix:
            cut = int(random.integers(start + 1, len(tokens) - 1))
            return replace(tokens, weight=tokens.weight * (torch.arange(len(tokens)) >= cut))
        if drawn < self.prefix + self.spans:
            return self._spans(tokens, start, [tokenizer.id(s) for s in self.added], random)
        return tokens

    def _spans(self, tokens: Tokens, start: int, sentinels: list[int], random: np.random.Generator) -> Tokens:
        words, end = tokens.ids[start:-1].tolist(), int(tokens.ids[-1])
        noise = min(max(round(len(words) * self.rate), 1), len(words) - 1)
        count = min(max(round(noise / self.span), 1), noise, len(words) - noise, len(sentinels))
        stay, taken = _lengths(len(words) - noise, count, random), _lengths(noise, count, random)
        given: list[int] = []
        learnt: list[int] = []
        at = 0
        for sentinel, kept, span in zip(sentinels, stay, taken, strict=False):
            given += [*words[at : at + kept], sentinel]
            learnt += [sentinel, *words[at + kept : at + kept + span]]
            at += kept + span
        return _rewritten(tokens, start, given, [*learnt, end])


def _answer(tokens: Tokens) -> int | None:
    """The first column of the answer, if there is one answer, and nothing behind it."""
    columns = tokens.weight.nonzero().flatten()
    start = int(columns[0])
    one = tokens.nodes == 1 and len(columns) == len(tokens) - start
    shown = any(item.start >= start for item in tokens.items) or any(spot.column >= start for spot in tokens.spots)
    return start if one and not shown else None


def _lengths(total: int, count: int, random: np.random.Generator) -> list[int]:
    """`total` cut into `count` pieces of at least one, every cut as likely as any."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff([0, *cuts, total]).tolist()


def _rewritten(tokens: Tokens, start: int, given: list[int], learnt: list[int]) -> Tokens:
    """The sample with another text from column `start` on, the last part of which is learnt as the old one was."""
    count = len(given) + len(learnt)

    def on(vector: Tensor, new: Tensor) -> Tensor:
        return torch.cat([vector[:start], new.to(vector.dtype)])

    columns = torch.arange(count)
    node = torch.zeros(count)
    weight = torch.zeros(count)
    weight[len(given) :] = tokens.weight[-1]
    return replace(
        tokens,
        ids=on(tokens.ids, torch.tensor(given + learnt)),
        weight=on(tokens.weight, weight),
        enter=on(tokens.enter, node),
        exit=on(tokens.exit, node + 1),
        order=on(tokens.order, columns + tokens.order[start]),
        position=on(tokens.position, columns + tokens.position[start]),
        parent=on(tokens.parent, columns + start - 1),
    )
