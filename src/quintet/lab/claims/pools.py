"""Pools of pairs that only the claims need: those of the methods with one thing changed."""

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

from quintet.data.scenes.claims import claims, severity
from quintet.lab.pairs import BUILDERS, Work
from quintet.lab.pairs.balance import balanced

__all__ = ["NOISE", "POOLS"]

NOISE = 0.2
"""Share of a labeler's verdicts that are turned round (P14)."""
ANSWERS = 6

Rows = Iterator[dict[str, Any]]


def _blind(work: Work) -> Rows:
    """The pairs without their pictures (P2); an `id` would name one, as HSA-DPO's does."""
    for row in BUILDERS["truth"](work):
        yield {key: value for key, value in row.items() if key not in ("id", "image")}


def _equal(work: Work) -> Rows:
    """Every error as severe as any (P7)."""
    for row in BUILDERS["truth"](work):
        yield row | {"rejected_score": 1.0}


def _shuffled(work: Work) -> Rows:
    """The severities of other pairs (P7)."""
    rows = [row for row, _ in zip(BUILDERS["truth"](work), range(work.rows), strict=False)]
    scores = [row["rejected_score"] for row in rows]
    random.Random(work.seed).shuffle(scores)
    for row, score in zip(rows, scores, strict=True):
        yield row | {"rejected_score": score}


def _weakened(work: Work) -> Rows:
    """Against the prior's answer about a noisy picture alone (P8)."""
    for row in BUILDERS["biased"](work):
        said = [each for each in row["completions"] if each["type"] != "llm-hal"]
        if len(said) > 1:
            yield row | {"completions": said}


def _noisy(work: Work, *, whole: bool) -> Rows:
    """The model's own answers, told apart by a labeler that is wrong about so many of the things that it is asked.

    It is asked about every claim, and refused claims are counted; or, with `whole`, once whether all of it is true.
    """
    for truth, answers in work.answers(work.truths, ANSWERS, temperature=1.0):
        rng = random.Random(f"{work.seed}/noisy/{truth.image.stem}")
        scores: dict[str, int] = {}
        for answer in dict.fromkeys(each for each in answers if claims(each)):
            wrong = [severity(each, truth.scene) > 0 for each in claims(answer)]
            verdicts = [any(wrong)] if whole else wrong
            scores[answer] = -sum(verdict != (rng.random() < NOISE) for verdict in verdicts)
        pairs = [(a, b) for a, b in combinations(sorted(scores, key=lambda a: -scores[a]), 2) if scores[a] > scores[b]]
        if pairs:
            yield work.row(truth, *rng.choice(pairs))


def _found(work: Work) -> Rows:
    """Pairs of its own answers by the number of their false claims, of any lengths."""
    for truth, answers in work.answers(work.truths, ANSWERS, temperature=1.0):
        distinct = list(dict.fromkeys(each for each in answers if claims(each)))
        scores = {a: sum(severity(each, truth.scene) > 0 for each in claims(a)) for a in distinct}
        better = [
            (a, b) for a, b in combinations(sorted(distinct, key=lambda a: scores[a]), 2) if scores[a] < scores[b]
        ]
        if better:
            yield work.row(truth, *random.Random(f"{work.seed}/{truth.image.stem}").choice(better))


def _longer(work: Work) -> Rows:
    """As they are found (P16): what is wrong is longer."""
    yield from _found(work)


def _longer_balanced(work: Work) -> Rows:
    """The same without those whose rejected side is too long (P16)."""
    yield from balanced(list(_found(work)))


def _priced(work: Work) -> Rows:
    """Prompts whose answers cost something by their length (P13): all that may be said costs as much as 1 of reward."""
    for row in BUILDERS["descriptions"](work):
        yield row | {"length_bonus": 0.1}


def _good(work: Work) -> Rows:
    """Good answers alone, without feedback (P19)."""
    for row in _bare(work):
        if row.pop("good"):
            yield row


def _bare(work: Work) -> Rows:
    """All answers, without feedback (P19)."""
    for row in BUILDERS["feedback"](work):
        asked, said = row["interaction"][:2]
        turns = [{"from": "human", "value": f"<image>\n{asked['user']}"}, {"from": "gpt", "value": said["model"]}]
        yield {"id": row["id"], "image": row["image_id"], "conversations": turns, "good": said["rating"] == "4"}


POOLS: Mapping[str, Callable[[Work], Rows]] = {
    **BUILDERS,
    "blind": _blind,
    "truth-equal": _equal,
    "truth-shuffled": _shuffled,
    "weakened": _weakened,
    "noisy-claims": lambda work: _noisy(work, whole=False),
    "noisy-whole": lambda work: _noisy(work, whole=True),
    "longer": _longer,
    "longer-balanced": _longer_balanced,
    "priced": _priced,
    "feedback-good": _good,
    "feedback-bare": lambda work: ({k: v for k, v in row.items() if k != "good"} for row in _bare(work)),
}
"""Name → what makes the rows: those of the methods, and these."""
