"""Task identifiers: a tag before a question that says what kind of answer is wanted (MiniGPT-v2)."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quintet.config.base import Config
from quintet.values import Part, Region, Text

__all__ = ["Identifier", "identified"]

REGION = "<region>"
"""Stands for a region in the words that are looked at."""


@dataclass(frozen=True, kw_only=True)
class Identifier(Config):
    """A tag, and how the words are recognised that ask for its kind of answer."""

    tag: str
    asks: str
    """A regular expression, searched in the question without regard to capitals."""


def identified(parts: Sequence[Part], identifiers: Iterable[Identifier]) -> tuple[Part, ...]:
    """A user's parts, and before the words the tag of the first identifier that fits; words that have a tag keep it.

    >>> vqa = Identifier(tag="[vqa]", asks=r"[?]")
    >>> [part.text for part in identified((Text("How many?"),), [vqa])]
    ['[vqa] ', 'How many?']
    >>> [part.text for part in identified((Text("[refer] the dog?"),), [vqa])]
    ['[refer] the dog?']
    """
    said = [part for part in parts if isinstance(part, Text | Region)]
    words = "".join(part.text if isinstance(part, Text) else REGION for part in said).strip()
    if re.match(r"\[\w+\]", words):
        return tuple(parts)
    fits = next((each for each in identifiers if re.search(each.asks, words, re.IGNORECASE)), None)
    if fits is None:
        return tuple(parts)
    first = next(i for i, part in enumerate(parts) if isinstance(part, Text | Region))
    return (*parts[:first], Text(f"{fits.tag} "), *parts[first:])
