"""Conversations about a scene: what a model is tuned on.

The caption's turn is anywhere or missing. With the caption always first a model learns to read its own caption instead
of the picture, and fails on a question that is asked first.
"""

import random

from quintet.data.scenes.language import BRIEF, DETAILED, KINDS, ask, caption
from quintet.data.scenes.world import Scene

__all__ = ["conversation", "describe", "pretrain"]


def conversation(
    scene: Scene, rng: random.Random, turns: int = 8, *, captions: float = 0.5, boxes: float = 0.35
) -> list[tuple[str, str]]:
    """At most `turns` different questions with their answers, in random order.

    `captions` and `boxes` are the probabilities that one asks for a description, and one for an object's box. A kind
    comes twice only after every kind came once.
    """
    said: dict[str, str] = {}
    if rng.random() < captions:
        said.update([describe(scene, rng)])
    kinds = rng.sample(KINDS, len(KINDS))
    if rng.random() < boxes:
        kinds.insert(0, "grounding")
    for kind in kinds * 2:
        question = ask(kind, scene, rng) if len(said) < turns else None
        if question:
            said.setdefault(question.text, question.answer)
    return rng.sample(list(said.items()), len(said))


def describe(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """One instruction and the caption that it asks for, short or long."""
    return (rng.choice(BRIEF), caption(scene, rng, "short")) if rng.random() < 0.5 else pretrain(scene, rng)


def pretrain(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """One instruction and its long caption: the data a connector is aligned on.

    Always long: plain pre-training drops the instruction, and a caption whose length nothing tells is half noise.
    """
    return rng.choice(DETAILED), caption(scene, rng, "long")
