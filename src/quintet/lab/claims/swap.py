"""Whether a model looks: how much less likely the true description gets when the picture is another one.

The margin that mDPO's conditional term trains (Wang et al. 2024, arXiv:2406.11839, section 3): log p(right answer |
picture) less log p(right answer | another picture). Two others are tried: the picture of the next scene, which no
method trains against, and a small piece of the same picture, as mDPO has it; a piece could be told by its blur alone.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import torch

from quintet.answers import Answer
from quintet.data.contrast import Contrast
from quintet.data.scenes import DETAILED, Truth, caption, read_truth
from quintet.data.scenes.pairs import spoilt
from quintet.serving.engine import Engine
from quintet.values import Media, Node, Ref, Sample, Text, Turn

__all__ = ["margins"]


def margins(engine: Engine, scenes: Path, *, limit: int) -> Iterator[tuple[float, float, int]]:
    """Of each held-out picture: the margin to another one, the margin to a piece of it, in nats; and the tokens."""
    truths = read_truth(scenes / "test.truth.jsonl")[:limit]
    for number, truth in enumerate(truths):
        said = caption(truth.scene, random.Random(truth.image.stem), "long")
        wrong = spoilt(truth.scene, random.Random(truth.image.stem))
        asked = _asked(truth)
        other = _asked(truths[(number + 1) % len(truths)])
        piece = _piece(asked, said, wrong, number)
        seen, swapped, cropped = (_logps(engine, turn, said) for turn in (asked, other, piece))
        yield float(seen.sum() - swapped.sum()), float(seen.sum() - cropped.sum()), len(seen)


def _asked(truth: Truth) -> Turn:
    picture = Media("image", Ref(truth.image.name, path=truth.image))
    return Turn("user", (picture, Text(DETAILED[0])))


def _piece(asked: Turn, said: str, wrong: str, number: int) -> Turn:
    """The question about a piece of its picture, as the second tree of mDPO's rows asks it."""
    answers = (
        Node((Turn("assistant", (Text(text),)),), answer=Answer(score=score)) for text, score in ((said, 1), (wrong, 0))
    )
    drawn = Contrast().draw(Sample(Node((asked,), tuple(answers))), seed=(number,))
    return drawn.others[-1].turns[0]


@torch.no_grad()
def _logps(engine: Engine, asked: Turn, said: str) -> torch.Tensor:
    """Of the answer's tokens, float32[P], in nats."""
    sample = Sample(Node((asked, Turn("assistant", (Text(said),)))))
    batch = engine.processor.batch([sample]).to(engine.device)
    return engine.model.target_logps(engine.model(batch, only_targets=True), batch.targets)
