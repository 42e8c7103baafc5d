"""Pairs from the truth alone: a right description, and the same with errors put into it."""

import random
from collections.abc import Iterator
from typing import Any

from quintet.data.scenes.pairs import pair_of
from quintet.lab.pairs.work import Work

__all__ = ["injected", "phrases", "truth"]


def truth(work: Work) -> Iterator[dict[str, Any]]:
    """One or two errors of any kind, half of them sentences about what is not there; scores are severities."""
    for truth in work.truths:
        rng = random.Random(f"{work.seed}/truth/{truth.image.stem}")
        if pair := pair_of(truth.scene, rng, edits=rng.randint(1, 2)):
            severity = round(pair.severity(truth.scene), 4)
            yield work.row(truth, pair.chosen, pair.rejected, chosen_score=0.0, rejected_score=severity)


def injected(work: Work) -> Iterator[dict[str, Any]]:
    """POVID's: objects that go together, wrong attributes and wrong relations are put into the right answer."""
    for truth in work.truths:
        rng = random.Random(f"{work.seed}/injected/{truth.image.stem}")
        if pair := pair_of(truth.scene, rng, edits=2, added=1 / 3):
            yield work.row(truth, pair.chosen, pair.rejected)


def phrases(work: Work) -> Iterator[dict[str, Any]]:
    """HALVA's: phrases swapped one for one, marked on both sides; every other row is a conversation to be kept."""
    for number, truth in enumerate(work.truths):
        rng = random.Random(f"{work.seed}/phrases/{truth.image.stem}")
        pair = pair_of(truth.scene, rng, edits=2, added=0.0)
        if pair is None or None in pair.right:
            continue
        sides = []
        for text, changed in ((pair.chosen, pair.right), (pair.rejected, pair.wrong)):
            for n, claim in enumerate(changed, start=1):
                assert claim is not None
                text = text.replace(claim.text, f"<MASK{n}>{claim.text}</MASK{n}>", 1)
            sides.append(text)
        yield work.row(truth, *sides)
        question = truth.questions[number % len(truth.questions)]
        kept = {"from": "gpt-ref", "value": question.answer}
        asked = {"from": "human", "value": f"<image>\n{question.text}"}
        yield {"id": f"{truth.image.stem}-kept", "image": work.name(truth), "conversations": [asked, kept]}
