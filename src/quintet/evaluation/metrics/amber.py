"""AMBER: what a description makes up and leaves out, and questions to be denied. No language model judges.

Source: Wang et al. 2023, arXiv:2311.07397, section 3; its released script inference.py. Sums are pooled over the set,
as the script pools them. Where the two part, the paper is followed and the script's value stands beside it:

- Cog: expected inventions over all mentions (paper); `cog_listed`, listed inventions that were named over all that are
  listed (script).
- F1: 2PR / (P + R) (paper); the script adds 1e-4 below, and 1e-3 for its existence part: `Denials(epsilon=1e-4)`.
- Of a picture's objects each counts once; the script counts one that is listed twice twice, and it is found once.

Near-synonyms (a spaCy similarity over 0.8 in the script) are not accepted: a word is right if it, or one that is
associated with it in the benchmark's own table, is in the picture.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from quintet.evaluation.metrics.chair import Mentions
from quintet.evaluation.metrics.metric import Floats, Judged, Metric, commonest, ratio

__all__ = ["DIMENSIONS", "Amber", "Denials", "amber_score", "exactly", "first_word"]

DIMENSIONS = ("existence", "attribute", "relation")

_CELLS = 6  # of a dimension: right no, said no, gold no, right, asked, unread
_NOTHING: Mapping[str, Sequence[str]] = MappingProxyType({})


class Amber(Metric):
    """The generative half: CHAIR, with Cover, Hal, both Cogs and length.

    CHAIR = made-up mentions / mentions, repeats included. Cover = objects of the picture that are named / objects of
    the picture. Hal = answers with something made up / answers. Cog = mentions of something made up that a person
    would expect / mentions. A truth is `{"objects": […], "expected": […], "captions": […]}`: what is there, what is
    not there though one would expect it, and reference captions (for the majority control only).

    `associated` names other words for an object: one of them stands for the object, or for the first of several, where
    it is none of the picture's itself. `safe` words are mentions that are never made up and, as in the script, cover
    nothing.
    """

    name = "CHAIR"
    higher_is_better = False
    beside = "cover"

    def __init__(
        self,
        mentions: Mentions,
        *,
        associated: Mapping[str, Sequence[str]] = _NOTHING,
        safe: Collection[str] = (),
    ) -> None:
        self.mentions, self.associated, self.safe = mentions, associated, frozenset(safe)

    def judge(self, outputs: Sequence[str], truths: Sequence[Mapping[str, Any]]) -> Judged:
        sums = np.zeros((len(outputs), 10))
        how = []
        for row, output, truth in zip(sums, outputs, truths, strict=True):
            there = self._names(truth["objects"])
            expected = self._names(truth["expected"])
            said = list(self.mentions(output))
            asserted = [name for name in said if name not in self.safe]
            wrong = [name for name in asserted if name not in there]
            tempted = [name for name in wrong if name in expected]
            found = {there[name] for name in asserted if name in there}
            row[:3] = len(wrong), len(said), bool(wrong)
            row[3:5] = len(found), len(set(truth["objects"]))
            row[5:8] = len(tempted), len({expected[name] for name in tempted}), len(set(truth["expected"]))
            row[8:] = len(output.split()), 1
            how.append({"hallucinated": wrong, "expected": tempted, "mentioned": said})
        return Judged(sums, how)

    def guesses(self, truths: Sequence[Mapping[str, Any]]) -> list[str]:
        """Reference captions that mention something, else the commonest object: to say nothing would win."""
        captions = [c for c in commonest(c for truth in truths for c in truth["captions"]) if self.mentions(c)]
        return captions or commonest((name for truth in truths for name in truth["objects"]), limit=1) or [""]

    def measures(self, sums: Floats) -> dict[str, float]:
        """Cover, Hal, Cog of the paper and of the script, words an answer, mentions an answer."""
        _, said, bad, found, there, tempted, hit, listed, words, answers = sums
        return {
            "cover": float(ratio(found, there)),
            "hal": float(ratio(bad, answers)),
            "cog": float(ratio(tempted, said)),
            "cog_listed": float(ratio(hit, listed)),
            "words": float(ratio(words, answers)),
            "mentions": float(ratio(said, answers)),
        }

    def _names(self, objects: Sequence[str]) -> dict[str, str]:
        """What each word stands for among `objects`; an object's own name stands for itself."""
        names: dict[str, str] = {}
        for each in objects:
            for other in self.associated.get(each, ()):
                names.setdefault(other, each)
        return names | {each: each for each in objects}


def exactly(text: str) -> str:
    """'yes' or 'no' if the answer is `Yes` or `No` and nothing else, as AMBER's script has it; else ''.

    >>> exactly("No"), exactly("no"), exactly("No.")
    ('no', '', '')
    """
    return {"Yes": "yes", "No": "no"}.get(text, "")


def first_word(text: str) -> str:
    """'yes' or 'no' if that is the answer's first word, in any case; else ''.

    >>> first_word("No, there is none."), first_word("Not sure"), first_word("")
    ('no', '', '')
    """
    found = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    return found[1].lower() if found else ""


class Denials(Metric):
    """The discriminative half: F1 with "no" as the positive class, over all questions and for each dimension.

    Precision = gold no / answered no, recall = answered no / gold no. An answer that is neither yes nor no is wrong,
    and denies nothing. A truth is `{"answer": "yes" or "no", "dimension": one of DIMENSIONS}`.
    """

    name = "F1 of no"
    beside = "accuracy"

    def __init__(self, read: Callable[[str], str] = exactly, *, epsilon: float = 0.0) -> None:
        self.read, self.epsilon = read, epsilon

    def judge(self, outputs: Sequence[str], truths: Sequence[Mapping[str, str]]) -> Judged:
        sums = np.zeros((len(outputs), len(DIMENSIONS), _CELLS))
        how = []
        for row, output, truth in zip(sums, outputs, truths, strict=True):
            answer, gold = self.read(output), truth["answer"]
            denied, false = answer == "no", gold == "no"
            row[DIMENSIONS.index(truth["dimension"])] = (
                denied and false,
                denied,
                false,
                answer == gold,
                1,
                not answer,
            )
            how.append({"correct": answer == gold, "read_as": answer, "unread": not answer})
        return Judged(sums.reshape(len(outputs), -1), how)

    def guesses(self, truths: Sequence[Mapping[str, str]]) -> list[str]:
        return ["Yes", "No"]

    def value(self, sums: Floats) -> Floats:
        return self._rates(_by_dimension(sums).sum(-2))["f1"]

    def measures(self, sums: Floats) -> dict[str, float]:
        """Accuracy, precision, recall, F1, share answered no and share unread; the first four for each dimension."""
        apart = _by_dimension(sums)
        total = apart.sum(-2)
        found = {name: float(value) for name, value in self._rates(total).items()}
        found |= {"no_ratio": float(ratio(total[1], total[4])), "unread": float(ratio(total[5], total[4]))}
        for dimension, cells in zip(DIMENSIONS, apart, strict=True):
            if cells[4]:
                found |= {f"{dimension} {name}": float(value) for name, value in self._rates(cells).items()}
        return found

    def _rates(self, cells: Floats) -> dict[str, Floats]:
        """From float[…, cells]."""
        hits, said, gold, right, asked = (cells[..., i] for i in range(5))
        precision, recall = ratio(hits, said), ratio(hits, gold)
        return {
            "accuracy": ratio(right, asked),
            "precision": precision,
            "recall": recall,
            "f1": ratio(2 * precision * recall, precision + recall + self.epsilon),
        }


def amber_score(chair: float, f1: float) -> float:
    """(1 − CHAIR + F1) / 2 of shares: both halves of the benchmark in one number.

    >>> round(amber_score(0.07, 0.83), 3)
    0.88
    """
    return (1 - chair + f1) / 2


def _by_dimension(sums: Floats) -> Floats:
    """float[…, K] → float[…, dimension, cells]."""
    return sums.reshape(*sums.shape[:-1], len(DIMENSIONS), _CELLS)
