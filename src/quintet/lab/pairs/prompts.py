"""Rows for reward models and policies: prompts with their true answers, and answers that are compared."""

import random
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from quintet.data.scenes import caption
from quintet.data.scenes.claims import claims, severity
from quintet.lab.pairs.work import Work

__all__ = ["descriptions", "preferred", "questions"]


def questions(work: Work) -> Iterator[dict[str, Any]]:
    """One question of each picture with its answer."""
    for number, truth in enumerate(work.truths):
        question = truth.questions[number % len(truth.questions)]
        yield _row(truth.image.stem, work.name(truth), question.text, question.answer)


def descriptions(work: Work) -> Iterator[dict[str, Any]]:
    """A description of each picture."""
    for truth in work.truths:
        rng = random.Random(f"{work.seed}/descriptions/{truth.image.stem}")
        yield _row(truth.image.stem, work.name(truth), work.question, caption(truth.scene, rng, "long"))


def preferred(work: Work) -> Iterator[dict[str, Any]]:
    """Two answers of the model, of which the one with fewer and lesser errors is preferred.

    By the truth alone: a reward model is to learn what is true, and is told the truth's facts.
    """
    for truth, answers in work.answers(work.truths, 4, temperature=1.0):
        distinct = [each for each in dict.fromkeys(answers) if claims(each)]
        wrong = {each: sum(severity(claim, truth.scene) for claim in claims(each)) for each in distinct}
        pairs = [(a, b) for a, b in combinations(sorted(distinct, key=lambda a: wrong[a]), 2) if wrong[a] < wrong[b]]
        if pairs:
            yield work.row(truth, *random.Random(f"{work.seed}/preferred/{truth.image.stem}").choice(pairs))


def _row(name: str, image: str, question: str, answer: str) -> dict[str, Any]:
    said = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": image, "conversations": said}
