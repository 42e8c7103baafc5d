"""MMHal-Bench's eight types of questions, as far as Scenes can express them, in the words of Scenes' own questions.

attribute    colour, shape or size of an object        relation     is it left or right of, above or below another
adversarial  colour, shape, size or place of an        environment  where an object is, or what is at a place
             object that is not there                  holistic     a description
comparison   of two objects with one colour or shape,  other        the digit or the word
             the large or the small one's shape or
             colour
counting     objects, those of a colour, of a shape
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quintet.data.scenes import COLOURS, DETAILED, SHAPES, Question, Scene, ask, caption
from quintet.data.scenes.world import Object
from quintet.evaluation.tasks.scenes_rating import DESCRIPTION, PREMISE

__all__ = ["TYPES", "Probe", "probe"]

TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
"""In MMHal-Bench's order."""

_FORMS = {
    "colour": "What colour is the {}?",
    "shape": "What shape is the {}?",
    "size": "What size is the {}?",
    "place": "Where is the {}?",
}


@dataclass(frozen=True, slots=True)
class Probe:
    """A question, its kind as answers are read (`scenes_rating`), a right answer, and what it is about."""

    kind: str
    text: str
    answer: str
    about: tuple[str, ...] = ()
    """Names of objects, or the digit, or the word."""


def probe(kind: str, scene: Scene, tempting: Sequence[str], rng: random.Random) -> Probe | None:
    """One question of a type, or None if the scene cannot answer one; `tempting` objects are not there."""
    return _MAKERS[kind](scene, tempting, rng)


def _of_kinds(*kinds: str) -> Callable[[Scene, Sequence[str], random.Random], Probe | None]:
    """A question of Scenes' own, of the first of `kinds` in random order that the scene can answer."""

    def make(scene: Scene, tempting: Sequence[str], rng: random.Random) -> Probe | None:
        drawn = (ask(kind, scene, rng) for kind in rng.sample(kinds, len(kinds)))
        return next((_probe(question, scene) for question in drawn if question), None)

    return make


def _probe(question: Question, scene: Scene) -> Probe:
    about = tuple(scene.objects[i].name for i in question.about)
    if question.kind in ("digit", "word"):
        about = (question.answer,)
    return Probe(question.kind, question.text, question.answer, about)


def _adversarial(scene: Scene, tempting: Sequence[str], rng: random.Random) -> Probe:
    """Asks about an object as if it were there."""
    name = rng.choice(tempting)
    shapes = [shape for shape in SHAPES if all(each.shape != shape for each in scene.objects)]
    colours = [colour for colour in COLOURS if all(each.colour != colour for each in scene.objects)]
    asked = {"place": [name], "size": [name], "colour": shapes, "shape": [f"{colour} object" for colour in colours]}
    attribute = rng.choice([attribute for attribute, absent in asked.items() if absent])
    who = rng.choice(asked[attribute])
    return Probe(PREMISE, _FORMS[attribute].format(who), f"There is no {who}.", (who,))


def _comparison(scene: Scene, tempting: Sequence[str], rng: random.Random) -> Probe | None:
    """Asks which shape or colour has the large, or the small, one of two objects that share the other."""
    found: list[Probe] = []
    for one in scene.objects:
        for two in scene.objects:
            for shared, other in (("shape", "colour"), ("colour", "shape")):
                alike = getattr(one, shared) == getattr(two, shared) and getattr(one, other) != getattr(two, other)
                if alike and _alone(one, shared, scene):
                    noun = one.shape if shared == "shape" else f"{one.colour} object"
                    text = _FORMS[other].format(f"{one.size} {noun}")
                    found.append(Probe(other, text, getattr(one, other), (one.name, two.name)))
    return rng.choice(found) if found else None


def _alone(one: Object, shared: str, scene: Scene) -> bool:
    """Whether no other object has its size and what is shared: so the other one is of another size."""
    same = [each for each in scene.objects if each.size == one.size and getattr(each, shared) == getattr(one, shared)]
    return same == [one]


def _holistic(scene: Scene, tempting: Sequence[str], rng: random.Random) -> Probe:
    return Probe(DESCRIPTION, rng.choice(DETAILED), caption(scene, rng, "long"))


_MAKERS: dict[str, Callable[[Scene, Sequence[str], random.Random], Probe | None]] = {
    "attribute": _of_kinds("colour", "shape", "size"),
    "adversarial": _adversarial,
    "comparison": _comparison,
    "counting": _of_kinds("count"),
    "relation": _of_kinds("relation"),
    "environment": _of_kinds("place", "object"),
    "holistic": _holistic,
    "other": _of_kinds("digit", "word"),
}
assert tuple(_MAKERS) == TYPES
