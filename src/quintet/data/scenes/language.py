"""Everything that can be said of a scene: captions here; questions and hallucination probes from beside.

`mentions` reads captions back: it is what finds hallucinated objects in free text.
"""

import random
import re
from typing import Literal

from quintet.data.scenes.pope import Occurrences, pope, pope_candidates
from quintet.data.scenes.questions import KINDS, Question, ask, grounding, questions, refer, referring
from quintet.data.scenes.vocabulary import COLOURS, SHAPES, indefinite, located, phrase
from quintet.data.scenes.world import Scene

__all__ = [
    "BRIEF",
    "DETAILED",
    "KINDS",
    "Occurrences",
    "Question",
    "ask",
    "caption",
    "grounding",
    "mentions",
    "objects_of",
    "pope",
    "pope_candidates",
    "questions",
    "refer",
    "referring",
]

BRIEF = (
    "Describe the picture briefly.",
    "Give a short description of the picture.",
    "Which objects are in the picture?",
    "Name the objects in the picture.",
)
DETAILED = (
    "Describe the picture in detail.",
    "Give a detailed description of the picture.",
    "Describe everything you see and where it is.",
)
"""Instructions that ask for a `short` and for a `long` caption."""

_AND_COLOURS = rf"(?:{'|'.join(COLOURS)})(?:(?:\s*,\s*|\s+and\s+|\s+or\s+)(?:{'|'.join(COLOURS)}))*"
_MENTION = re.compile(
    rf"\b({_AND_COLOURS})(?:[\s,-]+(?:small|large|big|little|tiny))*[\s-]+({'|'.join(SHAPES)})(?:e?s)?\b"
)


def caption(scene: Scene, rng: random.Random, style: Literal["short", "long"] = "short") -> str:
    """A true description. `short` names the objects; `long` adds their places, the digit and the word.

    Objects come in random order, so that their order says nothing.
    """
    objects = rng.sample(scene.objects, len(scene.objects))
    if style == "short":
        return phrase([indefinite(each.full_name) for each in objects]) if objects else "no objects"
    said = [f"There is {indefinite(each.full_name)} {located(each.place)}." for each in objects]
    said += [f"The digit {scene.digit.value} is shown."] if scene.digit else []
    said += [f"The word {scene.word.text} is written."] if scene.word else []
    return " ".join(said) if said else "The picture is empty."


def mentions(text: str) -> list[tuple[str, str]]:
    """Colour and shape of every object that `text` names, in its order, repeats included.

    Words of size may stand before or between, shapes may be plural, colours may share a shape. Denials are not
    understood: `no red circle` names a red circle, as in CHAIR (Rohrbach et al. 2018, arXiv:1809.02156).

    >>> mentions("A large red circle, and blue and white stars.")
    [('red', 'circle'), ('blue', 'star'), ('white', 'star')]
    """
    return [
        (colour, found[2])
        for found in _MENTION.finditer(text.lower())
        for colour in re.findall("|".join(COLOURS), found[1])
    ]


def objects_of(scene: Scene) -> set[tuple[str, str]]:
    """Colour and shape of what is there: what `mentions` is compared with."""
    return {(each.colour, each.shape) for each in scene.objects}
