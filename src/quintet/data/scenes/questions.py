"""Questions with exact answers, of eleven kinds, from a scene.

An object is called by an expression that fits it and nothing else in the picture. Yes and no are drawn before the
question is, so half of them are yes. A kind that a scene cannot answer without doubt is not asked.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quintet.data.scenes.vocabulary import COLOURS, OBJECTS, PLACES, SHAPES, SIZES, WORDS, indefinite, located
from quintet.data.scenes.world import Object, Scene, place_of

__all__ = ["CANDIDATES", "KINDS", "Question", "ask", "box_text", "grounding", "questions", "refer", "referring"]

REGION = "<region>"
"""Stands for a region, as in rows of LLaVA's format."""

_YES_NO = ("yes", "no")

CANDIDATES: dict[str, tuple[str, ...]] = {
    "existence": _YES_NO,
    "count": ("0", "1", "2", "3", "4", "5", "6"),
    "colour": COLOURS,
    "shape": SHAPES,
    "size": SIZES,
    "place": PLACES,
    "object": OBJECTS,
    "relation": _YES_NO,
    "digit": tuple("0123456789"),
    "word": WORDS,
    "grounding": (),
    "referring-box": (*COLOURS, *SHAPES, *OBJECTS),
    "referring-point": (*COLOURS, *SHAPES, *OBJECTS),
}
"""Every answer a kind can have; none are listed for boxes."""

KINDS = tuple(kind for kind in CANDIDATES if kind != "grounding" and not kind.startswith("referring"))
"""The kinds without regions."""

_CLEARLY = 0.12  # least difference of two centres, in sides, for one to be left of or above the other
_FORMS = (
    ("colour", "shape"),
    ("shape",),
    ("size", "colour", "shape"),
    ("size", "shape"),
    ("colour",),
    ("size", "colour"),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its one right answer, and which objects of the scene (by index) it is about.

    Where `<region>` stands in text or answer, the next of `regions` is meant: a box or a point in sides of the picture.
    """

    kind: str
    text: str
    answer: str
    about: tuple[int, ...] = ()
    regions: tuple[tuple[float, ...], ...] = ()

    @property
    def candidates(self) -> tuple[str, ...]:
        """Every answer that questions of this kind can have."""
        return CANDIDATES[self.kind]

    @property
    def said(self) -> str:
        """The answer with its regions as `box_text`."""
        return self.answer.replace(REGION, box_text(self.regions[-1])) if REGION in self.answer else self.answer


def questions(scene: Scene, rng: random.Random, kinds: Sequence[str] = KINDS, per_kind: int = 1) -> list[Question]:
    """Up to `per_kind` different questions of each kind that the scene can answer, in random order."""
    found: dict[str, Question] = {}
    for kind in kinds:
        for _ in range(per_kind):
            question = ask(kind, scene, rng)
            if question:
                found.setdefault(question.text, question)
    return rng.sample(list(found.values()), len(found))


def ask(kind: str, scene: Scene, rng: random.Random) -> Question | None:
    """One question of `kind`, or None if this scene cannot answer one."""
    return _ASK[kind](scene, rng)


def grounding(scene: Scene, rng: random.Random) -> list[Question]:
    """For each object, in random order, a question whose answer is its box."""
    return [_ask_box(scene, rng, i) for i in rng.sample(range(len(scene.objects)), len(scene.objects))]


def referring(scene: Scene, rng: random.Random) -> list[Question]:
    """For each object, in random order, a question that points at it: by its box, or by the point in its middle."""
    return [_ask_region(scene, rng, i) for i in rng.sample(range(len(scene.objects)), len(scene.objects))]


def box_text(box: Sequence[float]) -> str:
    """A box as text: left, top, right, bottom in sides of the picture.

    >>> box_text((0.125, 0.25, 0.3125, 0.4375))
    '[0.12, 0.25, 0.31, 0.44]'
    """
    return f"[{', '.join(f'{v:.2f}' for v in box)}]"


def refer(scene: Scene, index: int, rng: random.Random, hide: str = "") -> str | None:
    """A noun phrase, without article, that fits object `index` alone; it does not say the attribute `hide`.

    Colour and shape where that is enough, mostly; the place (`object at the top left`) where nothing else is.
    """
    forms = [form for form in _FORMS if hide not in form and _fits_one(scene, index, form)]
    if not forms:
        place = scene.objects[index].place
        alone = hide != "place" and sum(each.place == place for each in scene.objects) == 1
        return f"object {located(place)}" if alone else None
    form = forms[0] if forms[0] == _FORMS[0] and rng.random() < 0.7 else rng.choice(forms)
    words = [getattr(scene.objects[index], attribute) for attribute in form]
    return " ".join(words if "shape" in form else [*words, "object"])


def _fits_one(scene: Scene, index: int, form: tuple[str, ...]) -> bool:
    target = scene.objects[index]
    return sum(all(getattr(each, a) == getattr(target, a) for a in form) for each in scene.objects) == 1


def _ask_existence(scene: Scene, rng: random.Random) -> Question:
    if scene.objects and rng.random() < 0.5:
        i = rng.randrange(len(scene.objects))
        name, answer, about = scene.objects[i].name, "yes", (i,)
    else:
        name, answer, about = _absent(scene.objects, rng), "no", ()
    text = rng.choice(("Is there {} in the picture?", "Can you see {}?", "Does the picture show {}?"))
    return Question("existence", text.format(indefinite(name)), answer, about)


def _absent(objects: tuple[Object, ...], rng: random.Random) -> str:
    """A colour and shape that no object has; half the time the colour or the shape of one that is there."""
    present = {each.name for each in objects}
    while True:
        colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        if objects and rng.random() < 0.5:
            near = rng.choice(objects)
            colour, shape = (near.colour, shape) if rng.random() < 0.5 else (colour, near.shape)
        if f"{colour} {shape}" not in present:
            return f"{colour} {shape}"


def _ask_count(scene: Scene, rng: random.Random) -> Question:
    attribute = rng.choices(("", "colour", "shape"), weights=(3, 4, 3))[0]
    if attribute and scene.objects and rng.random() < 0.75:
        value = getattr(rng.choice(scene.objects), attribute)
    else:
        value = rng.choice(SHAPES if attribute == "shape" else COLOURS)
    about = tuple(i for i, each in enumerate(scene.objects) if not attribute or getattr(each, attribute) == value)
    many = {"": "objects", "colour": f"{value} objects", "shape": f"{value}{'es' if value == 'cross' else 's'}"}[
        attribute
    ]
    text = rng.choice(("How many {} are there?", "How many {} does the picture show?", "Count the {}."))
    return Question("count", text.format(many), str(len(about)), about)


def _ask_attribute(
    kind: str, texts: tuple[str, ...], hide: str = ""
) -> Callable[[Scene, random.Random], Question | None]:
    """Asks for an attribute of one object, which the question does not give away."""

    def question(scene: Scene, rng: random.Random) -> Question | None:
        for i in rng.sample(range(len(scene.objects)), len(scene.objects)):
            who = refer(scene, i, rng, hide or kind)
            if who:
                return Question(kind, rng.choice(texts).format(who), getattr(scene.objects[i], kind), (i,))
        return None

    return question


def _ask_object(scene: Scene, rng: random.Random) -> Question | None:
    """What is at a place: only where one object is, and neither digit nor word."""
    others = {place_of(each.centre) for each in (scene.digit, scene.word) if each}
    places = [each.place for each in scene.objects]
    alone = [i for i, place in enumerate(places) if places.count(place) == 1 and place not in others]
    if not alone:
        return None
    i = rng.choice(alone)
    text = rng.choice(("What is {}?", "Which object is {}?", "What do you see {}?"))
    return Question("object", text.format(located(places[i])), scene.objects[i].name, (i,))


_RELATIONS = (
    (("left of", "to the left of"), ("right of", "to the right of")),
    (("above", "higher than"), ("below", "lower than")),
)
"""By axis: how to say that a centre has the smaller coordinate, and that it has the larger."""


def _ask_relation(scene: Scene, rng: random.Random) -> Question | None:
    """How two objects stand to each other, along an axis on which they are clearly apart."""
    clear = [
        (i, j, axis)
        for i, one in enumerate(scene.objects)
        for j, two in enumerate(scene.objects)
        for axis in (0, 1)
        if i != j and abs(one.centre[axis] - two.centre[axis]) >= _CLEARLY
    ]
    if not clear:
        return None
    i, j, axis = rng.choice(clear)
    answer = rng.choice(_YES_NO)
    comes_first = scene.objects[i].centre[axis] < scene.objects[j].centre[axis]
    said = _RELATIONS[axis][comes_first == (answer == "no")]
    text = f"Is the {refer(scene, i, rng)} {rng.choice(said)} the {refer(scene, j, rng)}?"
    return Question("relation", text, answer, (i, j))


def _ask_digit(scene: Scene, rng: random.Random) -> Question | None:
    texts = ("Which digit is shown?", "What digit is in the picture?", "Read the handwritten digit.")
    return Question("digit", rng.choice(texts), str(scene.digit.value)) if scene.digit else None


def _ask_word(scene: Scene, rng: random.Random) -> Question | None:
    texts = ("What word is written?", "Which word is in the picture?", "Read the word.")
    return Question("word", rng.choice(texts), scene.word.text) if scene.word else None


def _ask_box(scene: Scene, rng: random.Random, index: int) -> Question:
    who = refer(scene, index, rng)
    texts = ("Where is the {}? Answer with a box.", "Give the box of the {}.", "What is the box around the {}?")
    return Question("grounding", rng.choice(texts).format(who), REGION, (index,), (scene.objects[index].box,))


def _ask_region(scene: Scene, rng: random.Random, index: int) -> Question:
    thing = scene.objects[index]
    attribute = rng.choice(("colour", "shape", "object"))
    texts = {
        "colour": ("What colour is the object in {}?", "Which colour does the object in {} have?"),
        "shape": ("What shape is the object in {}?", "Which shape does the object in {} have?"),
        "object": ("What is in {}?", "What is the object in this region? {}"),
    }[attribute]
    answer = thing.name if attribute == "object" else getattr(thing, attribute)
    pointed = rng.random() < 0.5
    place = thing.centre if pointed else thing.box
    kind = "point" if pointed else "box"
    return Question(f"referring-{kind}", rng.choice(texts).format(REGION), answer, (index,), (tuple(place),))


def _ask_any_box(scene: Scene, rng: random.Random) -> Question | None:
    return _ask_box(scene, rng, rng.randrange(len(scene.objects))) if scene.objects else None


_ASK: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "existence": _ask_existence,
    "count": _ask_count,
    "colour": _ask_attribute("colour", ("What colour is the {}?", "Which colour does the {} have?")),
    "shape": _ask_attribute("shape", ("What shape is the {}?", "Which shape does the {} have?")),
    "size": _ask_attribute("size", ("Is the {} small or large?", "What size is the {}?", "How big is the {}?")),
    "place": _ask_attribute("place", ("Where is the {}?", "In which part of the picture is the {}?")),
    "object": _ask_object,
    "relation": _ask_relation,
    "digit": _ask_digit,
    "word": _ask_word,
    "grounding": _ask_any_box,
}
