"""Documents of several pictures, and few-shot contexts: solved examples, then the question.

Documents are in MMC4's layout (`quintet.data.sources.pages`), of three sorts:

album   one to four pictures, each before its caption; an album of one is a captioned picture
quiz    two to four pictures, each before a question with its answer, spelt one way throughout the page
names   four or five pictures of one object each, in which two made-up words are the names of two colours or of two
        shapes: what a name means is told by the page alone, so from its second use on it can be known

Contexts are conversations in LLaVA's layout, an `id` of `<kind>/<number>`, k solved examples and then the question:

vqa-k     the examples are any questions about any pictures of the training split; the same question at every k
names-k   half of the examples show one made-up name, half another; the last picture is of one of the two. Nothing but
          the examples tells the answer: fast concept binding (Tsimpoukelli et al. 2021, arXiv:2106.13884, section 4.3)
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from quintet.data.scenes.questions import Question
from quintet.data.scenes.world import Scene

__all__ = ["NAMES", "SHOTS", "Shown", "contexts", "documents"]

SHOTS = (0, 2, 4)
"""Solved examples before a question; made-up names need some."""

NAMES = ("dax", "blicket", "wug", "toma", "fep", "zup", "kiki", "bouba")
"""Made-up words of experiments on how children learn names."""

_SPELLINGS = ("Question: {} Answer: {}", "Question: {} Short answer: {}", "Q: {} A: {}", "{} {}")
_ASKED = {"shape": "What is the shape called?", "colour": "What is the colour called?"}
_COUNTS = ("", "One picture.", "Two pictures.", "Three pictures.", "Four pictures.")


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture by its path, and what is said about it."""

    image: str
    scene: Scene
    caption: str
    questions: list[Question]

    def of(self, attribute: str) -> str:
        """What its only object has: a colour or a shape; empty with other numbers of objects."""
        return getattr(self.scene.objects[0], attribute) if len(self.scene.objects) == 1 else ""


def documents(shown: Sequence[Shown], rng: random.Random) -> list[dict[str, Any]]:
    """Pages in random order. Every picture stands in one album, and in two quizzes unless it is left alone there."""
    made = [_album(page, rng) for page in _cut(shown, (1, 1, 2, 3, 4), rng)]
    for _ in range(2):
        made += [_quiz(page, rng) for page in _cut(shown, (2, 3, 4), rng) if len(page) > 1]
    singles = [each for each in shown if len(each.scene.objects) == 1]
    made += [page for _ in range(len(singles) // 2) if (page := _names(singles, rng))]
    return rng.sample(made, len(made))


def contexts(
    shown: Sequence[Shown], examples: Sequence[Shown], rng: random.Random, *, every: bool
) -> list[dict[str, Any]]:
    """Questions about each of `shown` after examples from others: at every number of shots, or at one by lot."""
    made: list[dict[str, Any]] = []
    singles = [each for each in examples if len(each.scene.objects) == 1]
    for number, asked in enumerate(shown):
        found = list(_contexts(asked, number, [each for each in _few(examples, rng) if each is not asked], rng))
        found += _named(asked, number, singles, rng)
        made += found if every or not found else [rng.choice(found)]
    return made


# ---- documents ---------------------------------------------------------------------------------------------------
def _cut(shown: Sequence[Shown], sizes: Sequence[int], rng: random.Random) -> Iterator[list[Shown]]:
    """All pictures in random order, so many a page."""
    order = rng.sample(shown, len(shown))
    at = 0
    while at < len(order):
        size = rng.choice(sizes)
        yield order[at : at + size]
        at += size


def _album(page: list[Shown], rng: random.Random) -> dict[str, Any]:
    title = [_COUNTS[len(page)]] if len(page) > 1 and rng.random() < 0.5 else []
    return _page(title, [(each, re.split(r"(?<=\.) ", each.caption)) for each in page])


def _quiz(page: list[Shown], rng: random.Random) -> dict[str, Any]:
    spelling = rng.choice(_SPELLINGS)
    asked = [(each, rng.choice(each.questions)) for each in page]
    return _page([], [(each, [spelling.format(question.text, question.answer)]) for each, question in asked])


def _names(singles: Sequence[Shown], rng: random.Random) -> dict[str, Any] | None:
    """None if there are not two values that three pictures have each."""
    attribute, spelling = rng.choice(tuple(_ASKED)), rng.choice(_SPELLINGS)
    by_value = _by_value(singles, attribute)
    values = [value for value, found in by_value.items() if len(found) > 2]
    if len(values) < 2:
        return None
    page = [
        (each, name)
        for value, name, size in zip(
            rng.sample(values, 2), rng.sample(NAMES, 2), rng.choice(((2, 2), (2, 3), (3, 2))), strict=True
        )
        for each in rng.sample(by_value[value], size)
    ]
    said = [(each, [spelling.format(_ASKED[attribute], name)]) for each, name in rng.sample(page, len(page))]
    return _page([], said)


def _page(title: list[str], said: Sequence[tuple[Shown, list[str]]]) -> dict[str, Any]:
    """A row of MMC4. Its similarities are CLIP's; here they are 1 where a sentence is about the picture, else 0."""
    sentences, places = list(title), []
    for _, words in said:
        places.append(len(sentences))
        sentences += words
    infos = [
        {"image_name": each.image, "matched_text_index": place, "matched_sim": 1.0}
        for (each, _), place in zip(said, places, strict=True)
    ]
    matrix = [
        [float(place <= i < place + len(words)) for i in range(len(sentences))]
        for (_, words), place in zip(said, places, strict=True)
    ]
    return {"text_list": sentences, "image_info": infos, "similarity_matrix": matrix}


# ---- contexts ----------------------------------------------------------------------------------------------------
def _few(examples: Sequence[Shown], rng: random.Random) -> list[Shown]:
    """As many as are shown at most, and one more: one of them may be the very picture that is asked about."""
    return rng.sample(examples, min(len(examples), max(SHOTS) + 1))


def _contexts(asked: Shown, number: int, others: list[Shown], rng: random.Random) -> Iterator[dict[str, Any]]:
    turns = [(each, *_asked(rng.choice(each.questions))) for each in others[: max(SHOTS)]]
    question = (asked, *_asked(rng.choice(asked.questions)))
    for k in SHOTS:
        if k <= len(turns):
            yield _row(f"vqa-{k}/{number:06d}", [*turns[:k], question])


def _asked(question: Question) -> tuple[str, str]:
    return question.text, question.answer


def _named(asked: Shown, number: int, singles: Sequence[Shown], rng: random.Random) -> Iterator[dict[str, Any]]:
    attribute = rng.choice(tuple(_ASKED))
    value = asked.of(attribute)
    if not value:
        return
    by_value = _by_value([each for each in singles if each is not asked], attribute)
    for k in SHOTS[1:]:
        values = [each for each, found in by_value.items() if each != value and len(found) >= k // 2]
        if not values or len(by_value.get(value, ())) < k // 2:
            continue
        named = dict(zip((value, rng.choice(values)), rng.sample(NAMES, 2), strict=True))
        turns = [(each, _ASKED[attribute], name)
                 for thing, name in named.items() for each in rng.sample(by_value[thing], k // 2)]  # fmt: skip
        yield _row(f"names-{k}/{number:06d}", [*rng.sample(turns, k), (asked, _ASKED[attribute], named[value])])


def _by_value(shown: Sequence[Shown], attribute: str) -> dict[str, list[Shown]]:
    found: dict[str, list[Shown]] = {}
    for each in shown:
        if value := each.of(attribute):
            found.setdefault(value, []).append(each)
    return found


def _row(name: str, turns: Sequence[tuple[Shown, str, str]]) -> dict[str, Any]:
    """A row of LLaVA's layout. A made-up name is learnt where it is asked, not where it is given."""
    weight = {"weight": 0} if name.startswith("names") else {}
    said: list[dict[str, Any]] = []
    for i, (_, text, answer) in enumerate(turns):
        said.append({"from": "human", "value": f"<image>\n{text}"})
        said.append({"from": "gpt", "value": answer} | (weight if i < len(turns) - 1 else {}))
    return {"id": name, "image": [each.image for each, *_ in turns], "conversations": said}
