"""Pairs of the model's own answers, told apart by a judge. Where its verdict cannot be read, an answer is left out."""

import random
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from quintet.data.scenes import DETAILED, Truth, caption
from quintet.data.scenes.claims import claims
from quintet.data.sources.preference_scores import PRAISE
from quintet.evaluation.judge import Asked, sentences
from quintet.lab.pairs.balance import balanced
from quintet.lab.pairs.work import Work

__all__ = ["by_claims", "corrected", "feedback", "graded", "proxy", "rated"]

SAMPLED, CLAIMED = 4, 10
"""Answers a prompt: VLFeedback's four; RLAIF-V's ten."""
EVERYTHING = DETAILED[2]
"""What is asked of a sequence: it speaks of no one picture."""


def rated(work: Work) -> Iterator[dict[str, Any]]:
    """Four answers with the mean of three ratings each: a tree, in which every two of different scores are a pair."""
    for truth, answers in work.answers(work.truths, SAMPLED, temperature=1.0):
        found = dict(zip(answers, work.judge.rate(work.asked(truth), answers), strict=True))
        said = [
            {"response": each, "score": round(rating.mean, 4), "type": "sampled"}
            for each, rating in found.items()
            if each.strip() and rating is not None
        ]
        if len({each["score"] for each in said}) > 1:
            yield {"id": truth.image.stem, "image": work.name(truth), "prompt": work.question, "completions": said}


def proxy(work: Work) -> Iterator[dict[str, Any]]:
    """LLaVA-Hound's: the judge reads a caption and sees nothing; chosen is rated at least 4, rejected at most 3.

    A row is a sequence of pictures, as the paper's are frames of a video: six answers about all of them, and a caption
    that tells of one after the other. Sequences of the same pictures come last.
    """
    for shown, answers in work.answers(_sequences(work), 6, temperature=1.0, question=lambda n: EVERYTHING):
        told = [caption(each.scene, random.Random(each.image.stem), "long") for each in shown]
        if len(told) > 1:
            told = [f"Picture {number}: {each}" for number, each in enumerate(told, start=1)]
        rates = zip(work.judge.rate(Asked(EVERYTHING, caption=" ".join(told)), answers), answers, strict=True)
        known = [(rating.mean, answer) for rating, answer in rates if rating is not None and answer.strip()]
        if not known:
            continue
        best, worst = max(known), min(known)
        if best[0] >= 4 and worst[0] <= 3:
            yield {
                "id": "-".join(each.image.stem for each in shown),
                "images": [work.name(each) for each in shown],
                "prompt": EVERYTHING,
                "chosen": best[1],
                "rejected": worst[1],
                "chosen_score": round(best[0], 4),
                "rejected_score": round(worst[0], 4),
            }


def _sequences(work: Work) -> list[tuple[Truth, ...]]:
    """So many pictures in a row, first those that share none."""
    size, truths = work.frames, work.truths
    starts = (start for first in range(size) for start in range(first, len(truths) - size + 1, size))
    return [tuple(truths[start : start + size]) for start in starts]


def by_claims(work: Work) -> Iterator[dict[str, Any]]:
    """RLAIF-V's: an answer's score is minus its refused claims; at most two pairs a prompt; lengths balanced.

    A claim is a sentence: Scenes' descriptions make one in each. In the paper an LLM divides.
    """
    made: list[dict[str, Any]] = []
    for truth, answers in work.answers(work.truths[: 2 * work.rows], CLAIMED, temperature=0.7):
        asked = work.asked(truth)
        scores: dict[str, int] = {}
        for answer in dict.fromkeys(each for each in answers if each.strip()):
            held = work.judge.holds(asked, sentences(answer))
            if None not in held:
                scores[answer] = -sum(not each for each in held)
        ranked = sorted(scores, key=lambda a: -scores[a])
        pairs = [(a, b) for a, b in combinations(ranked, 2) if scores[a] > scores[b]]
        rng = random.Random(f"{work.seed}/claims/{truth.image.stem}")
        for number, (better, worse) in enumerate(rng.sample(pairs, min(2, len(pairs)))):
            made.append(work.row(truth, better, worse) | {"id": f"{truth.image.stem}-{number}"})
        if len(made) > 2 * work.rows:
            break
    # What is too many goes before the lengths are balanced, not after: the rows as they are written are balanced.
    while len(kept := balanced(made)) > work.rows:
        made = made[: len(made) - (len(kept) - work.rows)]
    yield from kept


def corrected(work: Work) -> Iterator[dict[str, Any]]:
    """RLHF-V's: the model's answer with its errors corrected by the judge, and the answer as it was."""
    for truth, [answer] in work.answers(work.truths, 1, temperature=1.0):
        if found := _mended(work, truth, answer):
            yield work.row(truth, found[0], answer)


def graded(work: Work) -> Iterator[dict[str, Any]]:
    """HSA-DPO's: detected sentence by sentence, graded 1 to 3, rewritten; both sides have a score.

    An answer's score is the mean severity of all its sentences, 0 for those that hold. methods.md knows of the paper
    that a score may be 1.8 against 0.2: a mean over the wrong sentences alone is never below 1.
    """
    for truth, [answer] in work.answers(work.truths, 1, temperature=1.0):
        if not (found := _mended(work, truth, answer)):
            continue
        right, grades = found
        again = work.judge.grade(work.asked(truth), sentences(right))
        known = [each for each in again if each is not None]
        scores = _mean(known), _mean(grades)
        if len(known) == len(again) and scores[0] < scores[1]:
            yield work.row(truth, right, answer, chosen_score=scores[0], rejected_score=scores[1])


def feedback(work: Work) -> Iterator[dict[str, Any]]:
    """DRESS': the answer with its rating and critique; then the refinement, and the improved answer with its own.

    Rows in LVLM_NLF's layout: how feedback is spelt as a condition is the reader's (`preference_scores.condition`). The
    rating is 4 less one for each wrong sentence, 1 at least; of the first of them critique and refinement speak.
    """
    for truth, [answer] in work.answers(work.truths, 1, temperature=1.0):
        said = sentences(answer)
        grades = work.judge.grade(work.asked(truth), said)
        # Words that claim nothing are no good answer, though nothing in them is wrong.
        if not any(map(claims, said)) or None in grades:
            continue
        wrong = [each for each, grade in zip(said, grades, strict=True) if grade]
        turns: list[dict[str, str]] = [{"user": work.question}, _rated(answer, wrong)]
        if wrong and (better := _mended(work, truth, answer)):
            named = _named(wrong[0])
            advice = f"Leave out what is not there: {named}." if named else f"Leave out what is not so: {wrong[0]}"
            turns += [{"user": advice}, _rated(better[0], [])]
        yield {"id": truth.image.stem, "image_id": work.name(truth), "interaction": turns}


# ---- pieces ------------------------------------------------------------------------------------------------------
def _mended(work: Work, truth: Truth, answer: str) -> tuple[str, list[int]] | None:
    """The answer as the judge rewrites it, and how wrong each sentence was; None where there is nothing to mend."""
    asked, said = work.asked(truth), sentences(answer)
    grades = [each for each in work.judge.grade(asked, said) if each is not None]
    if len(grades) < len(said) or not any(grades):
        return None
    right = work.judge.mend(asked, said, grades)
    return None if not right or not work.plain(right) or right.split() == answer.split() else (right, grades)


def _mean(grades: Sequence[int]) -> float:
    return round(sum(grades) / len(grades), 4) if grades else 0.0


def _rated(answer: str, wrong: Sequence[str]) -> dict[str, str]:
    """An answer as LVLM_NLF has it."""
    return {"model": answer, "rating": str(max(1, 4 - len(wrong))), "critique NLF": _critique(wrong)}


def _critique(wrong: Sequence[str]) -> str:
    """What is wrong with an answer, in words."""
    if not wrong:
        return PRAISE
    named = _named(wrong[0])
    return f"There is no {named}." if named else f"This is not so: {wrong[0]}"


def _named(sentence: str) -> str:
    """What a sentence of Scenes is about; "" of any other."""
    said = claims(sentence)
    return said[0].what if said else ""
