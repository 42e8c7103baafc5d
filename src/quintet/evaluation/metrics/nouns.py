"""Nouns of a text, as a list of known words has them: no tagger, no word net.

The released scripts of CHAIR, AMBER and Object HalBench tag parts of speech and look lemmas up (NLTK, Pattern, spaCy).
Here a word is the first of its possible singulars that the list knows, so `buses` is a bus, `glasses` is a glass unless
`glasses` is listed, and what no list asks for needs no rule. The price: a listed word counts as a noun wherever it
stands (`it bears fruit` names a bear), so scores are near those of the scripts and not equal to them.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

__all__ = ["Lexicon", "singular", "words"]

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_POSSESSIVE = re.compile(r"['’]s$")
_IRREGULAR = {
    "men": "man",
    "children": "child",
    "people": "person",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "geese": "goose",
    "oxen": "ox",
}
_ENDINGS = (
    ("children", "child"),
    ("men", "man"),
    ("ies", "y"),
    ("ves", "f"),
    ("ves", "fe"),
    ("s", ""),
    ("es", ""),
)


def words(text: str) -> list[str]:
    """Words in lower case, without what marks a possessive.

    >>> words("The dog's bowls, a T-shirt and 2 cats")
    ['the', 'dog', 'bowls', 'a', 't', 'shirt', 'and', 'cats']
    """
    return [_POSSESSIVE.sub("", word) for word in _WORD.findall(text.lower())]


def singular(word: str, known: Collection[str]) -> str:
    """The first form of a word, itself or a singular of it, that is known; the word itself if none is.

    >>> [singular(word, {"bus", "knife", "woman", "skis"}) for word in ("buses", "knives", "women", "skis", "rocks")]
    ['bus', 'knife', 'woman', 'skis', 'rocks']
    """
    return next((form for form in _forms(word) if form in known), word)


@dataclass(frozen=True)
class Lexicon:
    """The words that count, and pairs of words that stand for one word, be it known or not."""

    known: frozenset[str]
    pairs: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _forms(self) -> frozenset[str]:
        return self.known.union(part for pair in self.pairs for part in pair.split())

    def nouns(self, text: str) -> list[str]:
        """The known words of a text in their singular, in its order, repeats included; pairs go first, from the left.

        >>> Lexicon(frozenset({"dog", "hot dog"}), {"hot dog": "hot dog"}).nouns("Hot dogs beside a dog")
        ['hot dog', 'dog']
        """
        said = [singular(word, self._forms) for word in words(text)]
        found: list[str] = []
        at = 0
        while at < len(said):
            pair = self.pairs.get(" ".join(said[at : at + 2])) if at + 1 < len(said) else None
            found.append(said[at] if pair is None else pair)
            at += 1 if pair is None else 2
        return [word for word in found if word in self.known]


def _forms(word: str) -> Iterator[str]:
    yield word
    if word in _IRREGULAR:
        yield _IRREGULAR[word]
    for ending, instead in _ENDINGS:
        if len(word) > len(ending) + 1 and word.endswith(ending):
            yield word.removesuffix(ending) + instead
