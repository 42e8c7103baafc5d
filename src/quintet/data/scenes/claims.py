"""What a description claims, sentence by sentence, and how wrong each claim is: the exact judge of what is made up.

    There is a small red circle at the top left.  │ The digit 7 is shown.  │ The word lamp is written.

    0  true        2  moderate: it is there in another size; the digit or the word is another
    1  minor: it is there in another place             3  major: nothing like it is there

The three degrees are those of HSA-DPO (Xiao et al. 2024, arXiv:2404.14233, section 3). The same claims, altered on
purpose, are the other answer of a preference pair. Sentences in other words claim nothing here.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from quintet.data.scenes.vocabulary import COLOURS, OBJECTS, PLACES, SHAPES, SIZES, WORDS, indefinite, located
from quintet.data.scenes.world import Scene

__all__ = ["EDITS", "Claim", "altered", "claims", "ghost", "mended", "severity", "told", "truths", "untrue"]

_PLACE = "|".join(sorted(PLACES, key=len, reverse=True))
_SENTENCE = re.compile(
    rf"There is an? (?:(?P<size>{'|'.join(SIZES)}) )?(?P<object>(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))"
    rf"(?: (?:at|on|in) the (?P<place>{_PLACE}))?\."
    rf"|The digit (?P<digit>\d) is shown\.|The word (?P<word>\w+) is written\."
)


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence: something is there. `size` and `place` are empty where nothing is said of them."""

    kind: Literal["object", "digit", "word"]
    what: str
    """`red circle`, `7`, `lamp`."""
    size: str = ""
    place: str = ""

    @property
    def text(self) -> str:
        """The sentence."""
        if self.kind != "object":
            return f"The {self.kind} {self.what} is {'shown' if self.kind == 'digit' else 'written'}."
        name = indefinite(f"{self.size} {self.what}".strip())
        return f"There is {name} {located(self.place)}." if self.place else f"There is {name}."


def claims(text: str) -> list[Claim]:
    """The claims of a description, in its order.

    >>> claims("There is a large red star on the left. What a day. The digit 7 is shown.")[1].text
    'The digit 7 is shown.'
    """
    found: list[Claim] = []
    for match in _SENTENCE.finditer(text):
        if name := match["object"]:
            found.append(Claim("object", name, match["size"] or "", match["place"] or ""))
        else:
            found.append(Claim("digit", match["digit"]) if match["digit"] else Claim("word", match["word"]))
    return found


def told(said: Sequence[Claim]) -> str:
    """The claims as a description, as Scenes' long captions are."""
    return " ".join(claim.text for claim in said) if said else "The picture is empty."


def truths(scene: Scene) -> list[Claim]:
    """All that is true of a scene, objects first."""
    said = [Claim("object", each.name, each.size, each.place) for each in scene.objects]
    said += [Claim("digit", str(scene.digit.value))] if scene.digit else []
    return said + ([Claim("word", scene.word.text)] if scene.word else [])


def severity(claim: Claim, scene: Scene) -> int:
    """How wrong a claim is, 0 to 3."""
    return untrue(claim, truths(scene))


def untrue(claim: Claim, known: Sequence[Claim]) -> int:
    """How wrong a claim is by what is known, 0 to 3; what is not known is not there."""
    same = [each for each in known if each.kind == claim.kind]
    if claim.kind != "object":
        return 3 if not same else 2 * (claim.what not in [each.what for each in same])
    return min((_off(claim, each) for each in same if each.what == claim.what), default=3)


def mended(text: str, scene: Scene) -> str:
    """The description with every wrong claim corrected, or struck out where there is nothing to correct it to.

    As few words change as can: it is what RLHF-V's annotators were asked for (Yu et al. 2023, arXiv:2312.00849).
    """
    said: list[Claim] = []
    for claim in claims(text):
        right = claim if severity(claim, scene) == 0 else _nearest(claim, scene)
        if right is not None and right not in said:
            said.append(right)
    return told(said)


def ghost(name: str) -> str:
    """What a model comes to expect beside an object, wherever descriptions that make things up named it.

    >>> ghost("red circle"), ghost("white star")
    ('green square', 'red circle')
    """
    colour, shape = name.split()
    return f"{_next(COLOURS, colour)} {_next(SHAPES, shape)}"


def altered(scene: Scene, rng: random.Random, how: str, said: Sequence[Claim]) -> tuple[Claim, Claim] | None:
    """One of the claims `said` of a scene, which are true, and a false one in its place; None where none fits `how`."""
    made = [(claim, wrong) for claim in said if (wrong := EDITS[how](claim, scene, rng)) and severity(wrong, scene)]
    return rng.choice(made) if made else None


def _object(claim: Claim, scene: Scene, rng: random.Random) -> Claim | None:
    """Another object in its place: the ghost of one that is there, or any that is not."""
    if claim.kind != "object":
        return None
    there = {each.name for each in scene.objects}
    tempting = [name for name in map(ghost, sorted(there)) if name not in there]
    absent = [name for name in OBJECTS if name not in there]
    return replace(claim, what=rng.choice(tempting if tempting and rng.random() < 0.5 else absent))


def _attribute(claim: Claim, scene: Scene, rng: random.Random) -> Claim | None:
    if claim.kind == "object":
        return replace(claim, size=_next(SIZES, claim.size)) if claim.size else None
    return replace(claim, what=rng.choice([*"0123456789"] if claim.kind == "digit" else WORDS))


def _place(claim: Claim, scene: Scene, rng: random.Random) -> Claim | None:
    return replace(claim, place=rng.choice(PLACES)) if claim.place else None


EDITS: dict[str, Callable[[Claim, Scene, random.Random], Claim | None]] = {
    "object": _object,
    "attribute": _attribute,
    "place": _place,
}
"""How a true claim is made a false one."""


def _off(claim: Claim, thing: Claim) -> int:
    """How wrong a claim is of an object of its name."""
    return 2 if claim.size not in ("", thing.size) else int(claim.place not in ("", thing.place))


def _nearest(claim: Claim, scene: Scene) -> Claim | None:
    """The truth that a false claim is nearest to; None if nothing is like it."""
    same = [each for each in truths(scene) if each.kind == claim.kind]
    if claim.kind != "object":
        return same[0] if same else None
    like = [each for each in same if each.what == claim.what] or [each for each in same if each.place == claim.place]
    return min(like, key=lambda each: (each.size != claim.size) + (each.place != claim.place), default=None)


def _next(table: tuple[str, ...], name: str) -> str:
    return table[(table.index(name) + 1) % len(table)]
