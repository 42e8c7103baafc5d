"""Pairs against what the model says when it sees badly, or is asked to imagine."""

import random
from collections.abc import Iterator
from typing import Any

from quintet.data.scenes import DETAILED, caption
from quintet.data.scenes.pairs import pair_of
from quintet.lab.pairs.work import Work

__all__ = ["biased", "described", "imagined"]

CAREFUL = "Describe everything you see and where it is."
IMAGINING = (
    "Describe the picture in detail. Add what else could be there.",
    "Describe the picture, and name things that would go well with what is in it.",
    "Describe what is in the picture and what may be just outside it.",
    "Imagine that the picture were larger. Describe all that it would show.",
    "Describe the picture as it could be a moment later, with what has come into it.",
    "Describe the picture in detail, and make it richer than it is.",
    "Tell what is in the picture, and what you would expect to find beside it.",
    "Describe the picture. Where it is empty, say what could be there.",
)
"""Eight, as in STIC, in words of our own: each invites what is not there."""
STRONG = 900
"""Step of the noise under which little but the prior is left (BPO)."""


def imagined(work: Work) -> Iterator[dict[str, Any]]:
    """STIC's: chosen to a careful prompt; rejected to one that invites inventions, or about a picture made worse."""
    rng = random.Random(f"{work.seed}/imagined")
    bad = [rng.random() < 0.5 for _ in work.truths]
    how = [_worsened(rng) for _ in bad]
    careful = work.answers(work.truths, 1, temperature=0.2, question=lambda n: CAREFUL)
    worse = work.answers(
        work.truths, 1, temperature=0.2,
        question=lambda n: rng.choice(IMAGINING) if bad[n] else DETAILED[n % len(DETAILED)],
        change=lambda n: "" if bad[n] else how[n],
    )  # fmt: skip
    for (truth, [good]), (_, [poor]) in zip(careful, worse, strict=True):
        if good.split() != poor.split() and good.strip() and poor.strip():
            yield work.row(truth, good, poor)


def described(work: Work) -> Iterator[dict[str, Any]]:
    """STIC's second stage: the model's own description stands before each question of its instruction data."""
    for truth, [answer] in work.answers(work.truths, 1, temperature=0.0):
        said: list[dict[str, str]] = []
        for number, question in enumerate(truth.questions[:4]):
            before = f"<image>\nImage description: {answer}\n\n" if number == 0 else ""
            said += [{"from": "human", "value": before + question.text}, {"from": "gpt", "value": question.answer}]
        if said and answer.strip():
            yield {"id": truth.image.stem, "image": work.name(truth), "conversations": said}


def biased(work: Work) -> Iterator[dict[str, Any]]:
    """BPO's: the right answer against two negatives, the prior's about a noisy picture and one with errors put in."""
    noisy = work.answers(work.truths, 1, temperature=0.0, change=lambda n: f"noise {STRONG} {n}")
    for truth, [prior] in noisy:
        rng = random.Random(f"{work.seed}/biased/{truth.image.stem}")
        right = caption(truth.scene, rng, "long")
        said = [{"response": right, "score": 1, "type": "gt"}]
        if prior.strip() and prior.split() != right.split():
            said.append({"response": prior, "score": 0, "type": "mllm-hal"})
        if pair := pair_of(truth.scene, rng, edits=2):
            said.append({"response": pair.rejected, "score": 0, "type": "llm-hal"})
        if len(said) > 1:
            yield {"id": truth.image.stem, "image": work.name(truth), "prompt": work.question, "completions": said}


def _worsened(rng: random.Random) -> str:
    """Half of the time 20 pixels on the short side, else other colours."""
    return "small 20" if rng.random() < 0.5 else f"jitter {rng.uniform(0.5, 1.5):.3f} {rng.uniform(-0.3, 0.3):.3f}"
