"""Pairs of the model's own answers, told apart by a judge."""

import random
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from quintet.data.scenes import caption
from quintet.data.scenes.claims import Claim, claims, mended, severity
from quintet.evaluation.judge import Asked
from quintet.lab.pairs.balance import balanced
from quintet.lab.pairs.work import Work

__all__ = ["by_claims", "corrected", "feedback", "graded", "proxy", "rated"]

SAMPLED, CLAIMED = 4, 10
"""Answers a prompt: VLFeedback's four; RLAIF-V's ten."""


def rated(work: Work) -> Iterator[dict[str, Any]]:
    """Four answers with the mean of three ratings each: a tree, in which every two of different scores are a pair."""
    for truth, answers in work.answers(work.truths, SAMPLED, temperature=1.0):
        found = dict(zip(answers, work.judge.rate(work.asked(truth), answers), strict=True))
        said = [{"response": a, "score": round(r.mean, 4), "type": "sampled"} for a, r in found.items() if a.strip()]
        if len({each["score"] for each in said}) > 1:
            yield {"id": truth.image.stem, "image": work.name(truth), "prompt": work.question, "completions": said}


def proxy(work: Work) -> Iterator[dict[str, Any]]:
    """The judge sees a caption instead of the picture: chosen is rated at least 4, rejected at most 3."""
    for truth, answers in work.answers(work.truths, 6, temperature=1.0):
        described = caption(truth.scene, random.Random(truth.image.stem), "long")
        asked = Asked(work.question, scene=truth.scene, caption=described)
        rates = [rating.mean for rating in work.judge.rate(asked, answers)]
        best, worst = max(zip(rates, answers, strict=True)), min(zip(rates, answers, strict=True))
        if best[0] >= 4 and worst[0] <= 3 and worst[1].strip():
            yield work.row(truth, best[1], worst[1], chosen_score=round(best[0], 4), rejected_score=round(worst[0], 4))


def by_claims(work: Work) -> Iterator[dict[str, Any]]:
    """RLAIF-V's: an answer's score is minus its refused claims; at most two pairs a prompt; lengths balanced."""
    made: list[dict[str, Any]] = []
    for truth, answers in work.answers(work.truths[: 2 * work.rows], CLAIMED, temperature=0.7):
        distinct = list(dict.fromkeys(a for a in answers if a.strip()))
        asked = work.asked(truth)
        scores = {a: sum(work.judge.holds(asked, said)) - len(said) for a in distinct for said in [claims(a)]}
        ranked = sorted(distinct, key=lambda a: -scores[a])
        pairs = [(a, b) for a, b in combinations(ranked, 2) if scores[a] > scores[b]]
        rng = random.Random(f"{work.seed}/claims/{truth.image.stem}")
        for number, (better, worse) in enumerate(rng.sample(pairs, min(2, len(pairs)))):
            made.append(work.row(truth, better, worse) | {"id": f"{truth.image.stem}-{number}"})
        if len(made) > 2 * work.rows:
            break
    yield from balanced(made)


def corrected(work: Work) -> Iterator[dict[str, Any]]:
    """RLHF-V's: the model's answer with its errors corrected by who knows the truth, and the answer as it was."""
    for truth, [answer] in work.answers(work.truths, 1, temperature=1.0):
        right = mended(answer, truth.scene)
        if claims(answer) and right != answer and right.split() != answer.split():
            yield work.row(truth, right, answer)


def graded(work: Work) -> Iterator[dict[str, Any]]:
    """HSA-DPO's: detected, graded, rewritten; an answer's score is the mean severity of its sentences."""
    for truth, [answer] in work.answers(work.truths, 1, temperature=1.0):
        said = claims(answer)
        wrong = [severity(each, truth.scene) for each in said]
        if any(wrong) and (right := mended(answer, truth.scene)).split() != answer.split():
            score = sum(wrong) / sum(each > 0 for each in wrong)
            yield work.row(truth, right, answer, chosen_score=0.0, rejected_score=round(score, 4))


def feedback(work: Work) -> Iterator[dict[str, Any]]:
    """DRESS': the answer's rating and critique stand before it; then the refinement, and the improved answer."""
    for truth, [answer] in work.answers(work.truths, 1, temperature=1.0):
        wrong = [each for each in claims(answer) if severity(each, truth.scene)]
        if not answer.strip():
            continue
        rating = max(1, 4 - len(wrong))
        asked = {"from": "human", "value": f"<image>\n{work.question} Rating {rating}. {critique(wrong)}"}
        said = [asked, {"from": "gpt", "value": answer}]
        if wrong:
            advice = {"from": "human", "value": f"Rating 4. Leave out what is not there: {wrong[0].what}."}
            said += [advice, {"from": "gpt", "value": mended(answer, truth.scene)}]
        yield {"id": truth.image.stem, "image": work.name(truth), "conversations": said}


def critique(wrong: list[Claim]) -> str:
    """What is wrong with an answer, in words."""
    return f"There is no {wrong[0].what}." if wrong else "All of it is there."
