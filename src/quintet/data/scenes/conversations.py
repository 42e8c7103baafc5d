"""Conversations about a scene: what a model is tuned on.

The caption's turn is anywhere or missing. With the caption always first a model learns to read its own caption instead
of the picture, and fails on a question that is asked first.
"""

import random

from quintet.data.scenes.language import BRIEF, DETAILED, KINDS, ask, caption
from quintet.data.scenes.world import Scene

__all__ = ["conversation", "pretrain"]

_WITH_CAPTION = 0.5
_WITH_BOX = 0.35


def conversation(scene: Scene, rng: random.Random, turns: int = 8) -> list[tuple[str, str]]:
    """At most `turns` different questions with their answers, in random order.

    A kind comes twice only after every kind came once.
    """
    said: dict[str, str] = {}
    if rng.random() < _WITH_CAPTION:
        said.update([pretrain(scene, rng)])
    kinds = rng.sample(KINDS, len(KINDS))
    if rng.random() < _WITH_BOX:
        kinds.insert(0, "grounding")
    for kind in kinds * 2:
        question = ask(kind, scene, rng) if len(said) < turns else None
        if question:
            said.setdefault(question.text, question.answer)
    return rng.sample(list(said.items()), len(said))


def pretrain(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """One instruction and its caption, short or long: the data a connector is aligned on."""
    if rng.random() < 0.5:
        return rng.choice(BRIEF), caption(scene, rng, "short")
    return rng.choice(DETAILED), caption(scene, rng, "long")
