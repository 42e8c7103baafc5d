"""VQA soft accuracy (VQAv2, OKVQA, VizWiz, TextVQA), as the official script computes it.

Source: Goyal et al. 2017, arXiv:1612.00837, section 3; GT-Vision-Lab/VQA, vqaEval.py. Two of its quirks are kept,
because scores are compared with published ones: a full stop goes unless a digit *follows* it, and only the
first 32 go (a flag stands where the count belongs).
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from quintet.evaluation.metrics.metric import Judged, Metric, commonest

__all__ = ["VqaAccuracy", "normalise", "soft_accuracy"]

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_STOP = re.compile(r"\.(?!\d)")
_DIGIT_COMMA = re.compile(r"\d,\d")
_MAX_STOPS = 32
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(i) for i, word in enumerate(_DIGITS)}
_NUMBERS["none"] = "0"
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# The official table restores exactly one lost apostrophe (`dont`, `couldnt've`), and has one entry the wrong way round.
_RESTORED = {word[:i] + word[i + 1 :]: word for word in _CONTRACTIONS.split() for i, c in enumerate(word) if c == "'"}
_RESTORED["somebody'd"] = "somebodyd"


@lru_cache(maxsize=65536)  # answers repeat: few words are most of a set
def normalise(answer: str) -> str:
    """The official cleaning: marks, then number words, articles and contractions.

    >>> normalise("The two dogs, dont they?")
    "2 dogs don't they"
    """
    words = [_NUMBERS.get(word, word) for word in _without_marks(answer).lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def _without_marks(answer: str) -> str:
    joined = _DIGIT_COMMA.search(answer) is not None
    text = answer
    for mark in _MARKS:
        # Looked up in the answer as it came, not as it is by now: the official script does.
        beside_space = mark + " " in answer or " " + mark in answer
        text = text.replace(mark, "" if joined or beside_space else " ")
    return _STOP.sub("", text, count=_MAX_STOPS)


def soft_accuracy(answer: str, references: Sequence[str], *, always_normalise: bool = False) -> float:
    """Mean over the references of min(1, matches among the *other* references / 3).

    Officially nothing is cleaned when all references agree (so 'Yes' against ten times 'yes' scores 0);
    `always_normalise` cleans anyway, as TextVQA's server and lmms-eval do: two numbers for the same predictions.

    >>> soft_accuracy("cat", ["cat"] * 2 + ["dog"] * 8)
    0.6
    """
    answer = _one_line(answer)
    references = [_one_line(reference) for reference in references]
    if always_normalise or len(set(references)) > 1:
        answer, references = normalise(answer), [normalise(reference) for reference in references]
    matches = references.count(answer)
    # One reference has no others: it is compared with itself, and counts in full.
    if len(references) == 1:
        return float(matches)
    kept = matches * min(1.0, (matches - 1) / 3) + (len(references) - matches) * min(1.0, matches / 3)
    return kept / len(references)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


class VqaAccuracy(Metric):
    """Mean soft accuracy. A truth is the list of reference answers, officially ten."""

    name = "VQA soft accuracy"

    def __init__(self, *, always_normalise: bool = False) -> None:
        self.always_normalise = always_normalise

    def judge(self, outputs: Sequence[str], truths: Sequence[Sequence[str]]) -> Judged:
        values = [
            soft_accuracy(output, truth, always_normalise=self.always_normalise)
            for output, truth in zip(outputs, truths, strict=True)
        ]
        how = [{"accuracy": v, "read_as": normalise(_one_line(o))} for v, o in zip(values, outputs, strict=True)]
        return Judged.mean_of(values, how)

    def guesses(self, truths: Sequence[Sequence[str]]) -> list[str]:
        return commonest(answer for truth in truths for answer in truth)
