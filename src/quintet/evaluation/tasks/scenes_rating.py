"""Rates an answer about a scene from its exact truth, 0 to 6, in the manner of MMHal-Bench's rubric.

    it tells …                              it makes nothing up   it makes something up
    what was asked, and more that is true   6                     2
    what was asked                          5                     2
    a part of what was asked                4                     1
    nothing that was asked                  3                     0

By what is asked:

a value        (colour, shape, size, number, place, object, digit, word) It is told if the answer names it. A part is
               told by some of its words and no others: `top` of `top left`, `circle` of `red circle`. Another value of
               its kind is made up, and so is every answer that names no value, unless it is empty or says that it does
               not know. Numbers may be words.
yes or no      It is told by the first word. Whatever else an answer begins with is made up, with the same exceptions.
a false premise (where is the red star, when there is none) It is told by a denial: a word like no, not, nothing. An
               answer without one is made up, with the same exceptions.
a description  Objects, the digit and the word count alike. One of them is a part, half of them are what was asked, all
               of them are more.

In any answer, an object that is not in the picture is made up unless it is denied (`no red star`), and so is a false
sentence of Scenes' own about a size, a place, a digit or a word. Something more that is true is an object, a digit or a
word of the picture that the question is not about.

Differs from GPT-4's ratings: no reasoning is expected, and a bare right answer is a 5.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from quintet.data.scenes import COLOURS, SHAPES, mentions
from quintet.data.scenes.claims import Claim, claims
from quintet.data.scenes.questions import CANDIDATES
from quintet.evaluation.metrics.amber import first_word
from quintet.evaluation.metrics.rated import HONEST

__all__ = ["DESCRIPTION", "PREMISE", "named_mentions", "rate"]

DESCRIPTION, PREMISE = "caption", "premise"
"""Kinds of questions beside those of `quintet.data.scenes.questions`."""

_NONE, _PART, _ASKED, _MORE = range(4)

_NUMBERS = {
    word: str(i)
    for i, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
}
_SAME = {"center": "middle", "centre": "middle", "upper": "top", "lower": "bottom", "big": "large", "tiny": "small"}
_DENIAL = re.compile(r"\b(?:no|not|none|nothing|never|neither|nor|without|cannot|absent|missing|empty)\b|n['’]t\b")
_UNSURE = re.compile(
    r"\b(?:(?:do not|don['’]t) know|not sure|unsure|uncertain|unclear|unknown|unable"
    r"|(?:cannot|can['’]t|can not) (?:tell|say|determine|answer))\b"
)
_OBJECT = rf"(?:(?:small|large) )?(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})(?:e?s)?"
_DENIED = re.compile(rf"(?:\b(?:no|not|nor|neither|without|never)|n['’]t)(?: any| an?| the)? {_OBJECT}\b")
_EMPTY = re.compile(r"\b(?:empty|nothing|no objects?|no shapes?)\b")


def named_mentions(text: str) -> list[str]:
    """The objects that `text` names, as 'red circle'."""
    return [f"{colour} {shape}" for colour, shape in mentions(text)]


def rate(truth: Mapping[str, Any], answer: str) -> int:
    """The rating of an answer.

    A truth is `{"question", "answer", "kind", "about", "content"}`: the kind as `CANDIDATES` has them, or one of the
    two above; what the question is about (objects by name, the digit, the word); and all that is true of the picture,
    as sentences.
    """
    content = claims(" ".join(truth["content"]))
    text = _plain(answer)
    if truth["kind"] == DESCRIPTION:
        told, wrong = _described(text, content)
    else:
        told, wrong = _answered(truth, text, content)
        if told == _ASKED and _more(text, answer, truth, content):
            told = _MORE
    excused = truth["about"] if truth["kind"] == PREMISE else ()
    if wrong or _invents(answer, content, excused):
        return min(told, _ASKED)
    return HONEST + told


def _plain(answer: str) -> str:
    """In lower case and Scenes' own words, spaces squeezed."""
    return " ".join(re.sub(r"[a-z]+", lambda word: _SAME.get(word[0], word[0]), answer.lower()).split())


def _answered(truth: Mapping[str, Any], text: str, content: Sequence[Claim]) -> tuple[int, bool]:
    """How much of the answer is told, and whether something else is in its place."""
    kind, right = truth["kind"], truth["answer"]
    silent = not text or _UNSURE.search(text) is not None
    if kind == PREMISE:
        return (_NONE, False) if silent else (_ASKED, False) if _DENIAL.search(text) else (_NONE, True)
    if kind == "relation":
        said = first_word(text)
        return (_ASKED, False) if said == right else (_NONE, bool(said) or not silent)
    values = _values(kind, _without_others(text, truth, content))
    if right in values:
        return _ASKED, len(values) > 1
    words = {word for value in values for word in value.split()}
    if words and words < set(right.split()):
        return _PART, False
    return _NONE, bool(values) or not silent


def _values(kind: str, text: str) -> set[str]:
    """The values of a kind that a text names and does not deny; of an object, else its colours and shapes."""
    if kind in ("count", "digit"):
        said = re.findall(rf"\b(?:\d+|{'|'.join(_NUMBERS)})\b", text)
        none = kind == "count" and re.search(r"\b(?:no|none)\b", text) is not None
        return {_NUMBERS[each] if each in _NUMBERS else str(each) for each in said} | ({"0"} if none else set())
    found = _named(CANDIDATES[kind], text)
    return found if found or kind != "object" else _named((*COLOURS, *SHAPES), text)


def _named(values: Sequence[str], text: str) -> set[str]:
    longest = "|".join(sorted(values, key=len, reverse=True))
    pattern = rf"(\b(?:no|not|never) |n['’]t )?(?:(?:an?|the|at the|on the|in the) )?\b({longest})(?:e?s)?\b"
    return {value for denied, value in re.findall(pattern, text) if not denied}


def _without_others(text: str, truth: Mapping[str, Any], content: Sequence[Claim]) -> str:
    """The text without what it truly says of things that the question is not about: their colours are no answers."""
    for claim in _others(truth, content):
        text = text.replace(claim.text.lower(), " ")
        if claim.kind == "object":
            text = re.sub(rf"\b(?:(?:small|large) )?{claim.what}(?:e?s)?\b", " ", text)
    return text


def _others(truth: Mapping[str, Any], content: Sequence[Claim]) -> list[Claim]:
    return [claim for claim in content if claim.what not in truth["about"]]


def _more(text: str, answer: str, truth: Mapping[str, Any], content: Sequence[Claim]) -> bool:
    """Whether it truly names something that the question is not about."""
    others = {claim.what for claim in _others(truth, content)}
    said = {claim.what for claim in claims(answer) if claim.kind != "object"}
    return not others.isdisjoint(said.union(named_mentions(_DENIED.sub(" ", text))))


def _described(text: str, content: Sequence[Claim]) -> tuple[int, bool]:
    """How much of the picture is told, and whether it is called empty though it is not."""
    empty = _EMPTY.search(text) is not None
    if not content:
        return (_ASKED if empty else _NONE), False
    named = set(named_mentions(_DENIED.sub(" ", text)))
    told = [claim.what in named if claim.kind == "object" else _says(claim.what, text) for claim in content]
    if not any(told):
        return _NONE, empty
    return (_MORE if all(told) else _ASKED if 2 * sum(told) >= len(told) else _PART), False


def _says(word: str, text: str) -> bool:
    return re.search(rf"\b{word}\b", text) is not None


def _invents(answer: str, content: Sequence[Claim], excused: Sequence[str]) -> bool:
    """Whether a sentence is false, or an object is named that is not there and neither denied nor `excused`."""
    there = {claim.what for claim in content if claim.kind == "object"}.union(excused)
    named = named_mentions(_DENIED.sub(" ", _plain(answer)))
    return any(name not in there for name in named) or not all(_holds(claim, content) for claim in claims(answer))


def _holds(claim: Claim, content: Sequence[Claim]) -> bool:
    return any(
        (claim.kind, claim.what) == (each.kind, each.what)
        and claim.size in ("", each.size)
        and claim.place in ("", each.place)
        for each in content
    )
