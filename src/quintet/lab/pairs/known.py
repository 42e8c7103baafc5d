"""Pairs from the truth alone: a right description, and the same with errors put into it."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from quintet.data.scenes.claims import Claim
from quintet.data.scenes.pairs import pair_of
from quintet.lab.pairs.work import Work

__all__ = ["injected", "phrases", "truth"]


def truth(work: Work) -> Iterator[dict[str, Any]]:
    """One or two errors: a sentence left out, one changed, one about what is not there; scores are severities.

    Half of them are left out: with as many added as left out a model learns to say less (docs/log.md).
    """
    for truth in work.truths:
        rng = random.Random(f"{work.seed}/truth/{truth.image.stem}")
        if pair := pair_of(truth.scene, rng, edits=rng.randint(1, 2), added=1 / 5, omitted=1 / 2):
            severity = round(pair.severity(truth.scene), 4)
            yield work.row(truth, pair.chosen, pair.rejected, chosen_score=0.0, rejected_score=severity)


def injected(work: Work) -> Iterator[dict[str, Any]]:
    """POVID's: objects that go together, wrong attributes and wrong relations are put into the right answer."""
    for truth in work.truths:
        rng = random.Random(f"{work.seed}/injected/{truth.image.stem}")
        if pair := pair_of(truth.scene, rng, edits=2, added=1 / 3):
            yield work.row(truth, pair.chosen, pair.rejected)


def phrases(work: Work) -> Iterator[dict[str, Any]]:
    """HALVA's: phrases swapped one for one, marked on both sides, and beside them a conversation to be kept."""
    for number, truth in enumerate(work.truths):
        rng = random.Random(f"{work.seed}/phrases/{truth.image.stem}")
        pair = pair_of(truth.scene, rng, edits=2, added=0.0)
        # Two sentences that were changed into the same one cannot be told apart by their words.
        if pair is None or None in pair.right or len(set(pair.wrong)) < len(pair.wrong):
            continue
        right, wrong = (_masked(text, said) for text, said in ((pair.chosen, pair.right), (pair.rejected, pair.wrong)))
        question = truth.questions[number % len(truth.questions)]
        yield {
            "id": truth.image.stem,
            "image": work.name(truth),
            "question": work.question,
            "correct_answer_masked": right,
            "hallucinated_answer_masked": wrong,
            "kept": [
                {"from": "human", "value": f"<image>\n{question.text}"},
                {"from": "gpt", "value": question.answer},
            ],
        }


def _masked(text: str, said: Sequence[Claim | None]) -> str:
    """The text with these claims between tags."""
    for claim in said:
        assert claim is not None, "a phrase stands on both sides"
        text = text.replace(claim.text, f"<MASK>{claim.text}</MASK>", 1)
    return text
