"""Conversations about a scene: what a model is tuned on.

The caption's turn is anywhere or missing. With the caption always first a model learns to read its own caption instead
of the picture, and fails on a question that is asked first.
"""

import random

from quintet.data.scenes.language import (
    BRIEF,
    DETAILED,
    KINDS,
    Question,
    ask,
    caption,
    grounding,
    questions,
    referring,
)
from quintet.data.scenes.world import Scene

__all__ = ["conversation", "describe", "pointing", "pretrain", "reading", "told"]


def conversation(
    scene: Scene, rng: random.Random, turns: int = 8, *, captions: float = 0.5, boxes: float = 0.35
) -> list[Question]:
    """At most `turns` different questions with their answers, in random order.

    `captions` and `boxes` are the probabilities that one asks for a description, and one for an object's box. A kind
    comes twice only after every kind came once.
    """
    said: dict[str, Question] = {}
    if rng.random() < captions:
        text, answer = describe(scene, rng)
        said[text] = Question("caption", text, answer)
    kinds = rng.sample(KINDS, len(KINDS))
    if rng.random() < boxes:
        kinds.insert(0, "grounding")
    for kind in kinds * 2:
        question = ask(kind, scene, rng) if len(said) < turns else None
        if question:
            said.setdefault(question.text, question)
    return rng.sample(list(said.values()), len(said))


def pointing(scene: Scene, rng: random.Random, turns: int = 8) -> list[Question]:
    """At most `turns` questions of which at least half have a region in them or in their answer, in random order.

    Each object is pointed at once, by the question or by the answer: with both, one could be copied from the other.
    None where nothing is to be pointed at.
    """
    where = {each.about: each for each in grounding(scene, rng)}
    pointed = [each if rng.random() < 0.5 else where[each.about] for each in referring(scene, rng)][:turns]
    room = min(len(pointed), turns - len(pointed))
    others = conversation(scene, rng, room, boxes=0.0) if room else []
    return rng.sample([*pointed, *others], len(pointed) + len(others))


def reading(scene: Scene, rng: random.Random) -> list[Question]:
    """What is written, in random order: a question each about the word and the digit. None where nothing is."""
    return questions(scene, rng, ("word", "digit"))


def describe(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """One instruction and the caption that it asks for, short or long."""
    return (rng.choice(BRIEF), caption(scene, rng, "short")) if rng.random() < 0.5 else pretrain(scene, rng)


def pretrain(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """One instruction and its long caption: the data a connector is aligned on.

    Always long: plain pre-training drops the instruction, and a caption whose length nothing tells is half noise.
    """
    return rng.choice(DETAILED), caption(scene, rng, "long")


def told(scene: Scene, rng: random.Random) -> tuple[str, list[Question]]:
    """A scene in words, and a conversation about it for which nobody need look: instructions without a picture."""
    return caption(scene, rng, "long"), conversation(scene, rng, captions=0.0, boxes=0.0)
