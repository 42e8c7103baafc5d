"""What Scenes asks to find out what a model makes up, in the manner of AMBER, MMHal-Bench and Object HalBench.

Everything is made from `<split>.truth.jsonl` when a task is loaded, the same at every load.

scenes.amber            a long description; CHAIR, with Cover, Hal and Cog. One would expect what stands most often
                        together with the picture's objects in the split: the five absent objects first by the sum of
                        the pictures that they share with each object there, then by all their pictures
scenes.amber_questions  in pairs of one yes and one no: is an object there (else an expected one), is it of this colour,
                        of this size, at this place, are there so many, does it stand so to another; F1 of no
scenes.mmhal            one question a picture: of eight types, the one asked least so far that it can answer
                        (`scenes_mmhal.py`); the mean of ratings 0 to 6 (`scenes_rating.py`)
scenes.objhal           one of eight requests for a description a picture, in turn; the response rate
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from quintet.data.scenes import (
    BRIEF,
    DETAILED,
    OBJECTS,
    Occurrences,
    Question,
    Scene,
    Truth,
    ask,
    caption,
    objects_of,
    refer,
)
from quintet.data.scenes.claims import truths as all_true
from quintet.data.scenes.vocabulary import COLOURS, PLACES, SIZES, indefinite, located
from quintet.evaluation.metrics.amber import Amber, Denials, first_word
from quintet.evaluation.metrics.metric import Metric
from quintet.evaluation.metrics.objhal import ObjectHal
from quintet.evaluation.metrics.rated import Rated
from quintet.evaluation.tasks.scenes_mmhal import TYPES, probe
from quintet.evaluation.tasks.scenes_rating import named_mentions, rate

__all__ = ["EXPECTED", "HALLUCINATION", "PROMPTS", "Asked", "expected"]

Asked = tuple[int, str, str | Question, Any, str]
"""Index of the picture, id within the picture, prompt, truth, kind."""

EXPECTED = 5
"""AMBER's annotators list five objects of most pictures that one would expect."""

PROMPTS = (*BRIEF, *DETAILED, "Describe the picture.")
"""Eight requests for a description, short and long; the last says neither."""

_TRIES = 24


def expected(scene: Scene, seen: Occurrences) -> list[str]:
    """The `EXPECTED` objects that are not in the scene and go most often with what is, likeliest first."""
    there = sorted({each.name for each in scene.objects})
    absent = [name for name in OBJECTS if name not in there]
    together = {name: sum(seen.pairs[each, name] for each in there) for name in absent}
    return sorted(absent, key=lambda name: (-together[name], -seen.single[name], name))[:EXPECTED]


def _amber(truths: Sequence[Truth]) -> Iterator[Asked]:
    seen = Occurrences(truth.scene for truth in truths)
    for index, truth in enumerate(truths):
        known = _described(truth) | {"expected": expected(truth.scene, seen)}
        # Not the wording of scenes.chair: one answer would be measured twice.
        yield index, "description", DETAILED[1], known, "all"


def _amber_questions(truths: Sequence[Truth]) -> Iterator[Asked]:
    seen = Occurrences(truth.scene for truth in truths)
    for index, truth in enumerate(truths):
        tempting = expected(truth.scene, seen)
        rng = random.Random(f"{truth.image.stem}/amber")
        for kind, make in _PAIRS.items():
            pair = make(truth.scene, tempting, rng) if truth.scene.objects else None
            for answer, text in (pair or {}).items():
                yield index, f"{kind}-{answer}", text, {"answer": answer, "dimension": kind.split("-")[0]}, kind


def _mmhal(truths: Sequence[Truth]) -> Iterator[Asked]:
    seen = Occurrences(truth.scene for truth in truths)
    asked = Counter[str]()
    for index, truth in enumerate(truths):
        tempting = expected(truth.scene, seen)
        rng = random.Random(f"{truth.image.stem}/mmhal")
        for kind in sorted(TYPES, key=lambda kind: (asked[kind], TYPES.index(kind))):
            found = probe(kind, truth.scene, tempting, rng)
            if found:
                known = {"question": found.text, "answer": found.answer, "kind": found.kind, "about": [*found.about]}
                known |= {"content": [claim.text for claim in all_true(truth.scene)]}
                yield index, kind, found.text, known, kind
                asked[kind] += 1
                break


def _objhal(truths: Sequence[Truth]) -> Iterator[Asked]:
    for index, truth in enumerate(truths):
        yield index, "description", PROMPTS[index % len(PROMPTS)], _described(truth), "all"


def _described(truth: Truth) -> dict[str, Any]:
    """The names of what is there, and a true long caption."""
    objects = sorted(f"{colour} {shape}" for colour, shape in objects_of(truth.scene))
    return {"objects": objects, "captions": [caption(truth.scene, random.Random(truth.image.stem), "long")]}


# ---- pairs of questions: the one that is to be answered with yes, and the one with no ----------------------------
_Pair = Callable[[Scene, Sequence[str], random.Random], dict[str, str] | None]


def _existence(scene: Scene, tempting: Sequence[str], rng: random.Random) -> dict[str, str]:
    names = {"yes": rng.choice(scene.objects).name, "no": rng.choice(tempting)}
    return {answer: f"Is there {indefinite(name)} in the picture?" for answer, name in names.items()}


def _attribute(kind: str, values: Sequence[str]) -> _Pair:
    """Asks whether an object has its value, and whether it has another: that of an object beside it, if one differs."""

    def pair(scene: Scene, tempting: Sequence[str], rng: random.Random) -> dict[str, str] | None:
        for i in rng.sample(range(len(scene.objects)), len(scene.objects)):
            if who := refer(scene, i, rng, kind):
                right = getattr(scene.objects[i], kind)
                beside = [value for each in scene.objects if (value := getattr(each, kind)) != right]
                wrong = rng.choice(beside or [value for value in values if value != right])
                said = {"yes": right, "no": wrong}
                return {a: f"Is the {who} {located(v) if kind == 'place' else v}?" for a, v in said.items()}
        return None

    return pair


def _number(scene: Scene, tempting: Sequence[str], rng: random.Random) -> dict[str, str]:
    """One more or one less is wrong. `Are there 2 objects?` the starter LLM answers with a description."""
    right = len(scene.objects)
    said = {"yes": right, "no": right + (1 if right == 1 else rng.choice((-1, 1)))}
    return {answer: f"Is the number of objects {number}?" for answer, number in said.items()}


def _side(scene: Scene, tempting: Sequence[str], rng: random.Random) -> dict[str, str] | None:
    """Two of Scenes' own questions; it draws the answer before the question."""
    drawn = [question for _ in range(_TRIES) if (question := ask("relation", scene, rng))]
    found = {question.answer: question.text for question in drawn}
    return {answer: found[answer] for answer in ("yes", "no")} if len(found) == 2 else None


_PAIRS: dict[str, _Pair] = {
    "existence": _existence,
    "attribute-colour": _attribute("colour", COLOURS),
    "attribute-size": _attribute("size", SIZES),
    "attribute-number": _number,
    "relation-place": _attribute("place", PLACES),
    "relation-side": _side,
}


def _named(text: str) -> list[tuple[str, str]]:
    return [(name, name) for name in named_mentions(text)]


HALLUCINATION: dict[str, tuple[Metric, Callable[[Sequence[Truth]], Iterator[Asked]]]] = {
    "scenes.amber": (Amber(named_mentions), _amber),
    "scenes.amber_questions": (Denials(first_word), _amber_questions),
    "scenes.mmhal": (Rated(rate, by="the exact truth"), _mmhal),
    "scenes.objhal": (ObjectHal(_named), _objhal),
}
"""By name: the metric, and what is asked about the pictures of a split."""
