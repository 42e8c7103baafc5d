"""A preference pair as a tree is the same pair as two conversations: the same loss, the same gradients. Every recipe.

The picture is encoded once in the tree and twice beside it; the prompt is attended once and twice. The better answer
about another picture is a second tree, which the first must not see.
"""

from dataclasses import replace

import pytest
import torch
from subjects import Subject, medium, plain, says, user  # noqa: F401 the fixture

from quintet.answers import Answer
from quintet.data.contrast import UNSEEN
from quintet.training.objectives.preference import Preference, preference
from quintet.values import Batch, Node, Origin, Sample, Turn

GRADIENTS = 2e-5
"""Largest difference in float32, in shares of the largest gradient."""
CHOSEN, REJECTED = "A red circle.", "A blue square, and a dog that is not there."
TERMS = {
    "dpo": Preference(),
    "rpo": Preference(terms={"sigmoid": 1.0, "nll": 0.5}),
    "ipo": Preference(terms={"ipo": 1.0}),
    "orpo": Preference(terms={"nll": 1.0, "odds": 0.2}),
    "mdpo": Preference(terms={"sigmoid": 1.0, "unseen": 1.0, "anchor": 1.0}),
}


def pair(subject: Subject, *, unseen: bool) -> Batch:
    """One tree: the prompt, then both answers; and a second one, of other pictures."""
    answers = (
        Node((says(CHOSEN),), answer=Answer(1.0)),
        Node((says(REJECTED),), answer=Answer(0.0)),
    )
    other = Node((asked(subject, first=7),), (Node((says(CHOSEN),), answer=Answer(name=UNSEEN)),))
    return of(subject, Sample(Node((asked(subject),), answers), Origin("memory", 1), others=(other,) * unseen))


def apart(subject: Subject, *, unseen: bool) -> Batch:
    """Two conversations or three, with the prompt and its picture in each; then told to be one pair."""
    sides = [(0, CHOSEN, Answer(1.0)), (0, REJECTED, Answer(0.0)), (7, CHOSEN, Answer(name=UNSEEN))]
    made = (
        Sample(Node((asked(subject, first=first), says(words)), answer=answer), Origin("memory", 1))
        for first, words, answer in sides[: 2 + unseen]
    )
    batch = of(subject, *made)
    assert batch.answers is not None
    return replace(batch, answers=replace(batch.answers, sample=torch.zeros_like(batch.answers.sample)))


def asked(subject: Subject, *, first: int = 0) -> Turn:
    return user("What is here?", *(medium(n, kind) for n, kind in enumerate(subject.kinds, start=first)))


def of(subject: Subject, *samples: Sample) -> Batch:
    return subject.batch([[subject.processor.tokens(sample) for sample in samples]])


@pytest.mark.parametrize("how", TERMS.values(), ids=TERMS)
def test_a_pair_as_a_tree_is_the_pair_as_two_conversations(plain: Subject, how: Preference) -> None:  # noqa: F811
    found: list[tuple[float, dict[str, torch.Tensor]]] = []
    for batch in (pair(plain, unseen="unseen" in how.terms), apart(plain, unseen="unseen" in how.terms)):
        generator = torch.Generator().manual_seed(0)
        reference = -3 * torch.rand(len(batch.targets.ids), generator=generator)
        batch = replace(batch, targets=replace(batch.targets, known={"reference": reference}))
        plain.model.zero_grad()
        plain.model.requires_grad_(True)
        plain.model.frozen_encoders = frozenset()
        loss, count, _ = preference(plain.model, batch, how)
        assert count == 1.0
        loss.backward()
        grads = {n: p.grad.clone() for n, p in plain.model.named_parameters() if p.grad is not None}
        found.append((float(loss.detach()), grads))
    (tree, ours), (flat, theirs) = found
    assert tree == pytest.approx(flat, abs=1e-4, rel=1e-5)
    assert ours.keys() == theirs.keys()
    largest = max(float(grad.abs().max()) for grad in theirs.values())
    assert largest > 0
    for name, grad in theirs.items():
        assert float((ours[name] - grad).abs().max()) <= GRADIENTS * largest, name
