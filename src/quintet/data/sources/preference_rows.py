"""A row with several answers, taken apart: conversations that end in an answer, and what is shown in them.

Here is what the layouts have in common; which keys mean what is in `preference_layouts.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quintet.answers import Answer
from quintet.data.sources.base import Faults
from quintet.data.sources.root import Root
from quintet.errors import DataError
from quintet.values import Part

__all__ = ["Path", "Pictures", "Row", "Saying", "Taking", "Told", "pair", "said", "two"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Saying:
    """A turn as a row has it, in a dialect of `conversation.py`."""

    turn: Any
    field: str
    """Where it stands in the row."""
    bare: bool = False
    """Whether its words alone stand there, and not an object that holds them."""
    answer: Answer | None = None
    marked: Callable[[tuple[Part, ...]], tuple[Part, ...]] | None = None
    """Puts marks into the parts that were read of it."""


@dataclass(frozen=True)
class Pictures:
    """The names of pictures, where each stands in the row, and the key that holds them."""

    names: tuple[Any, ...] = ()
    fields: tuple[str, ...] = ()
    key: str = "image"

    def before(self, words: Any) -> Any:
        """The words with the pictures before them, unless it is written where they stand."""
        written = not isinstance(words, str) or "<image>" in words
        return words if written else "<image>\n" * len(self.names) + words


@dataclass(frozen=True)
class Path:
    """A conversation from the first turn to an answer, and what is shown in it."""

    sayings: tuple[Saying, ...]
    shown: Pictures


@dataclass(frozen=True)
class Told:
    """What a row says, in no layout any more: a path for each answer, or one path with several."""

    paths: tuple[Path, ...]
    dialect: str = "conversations"
    notes: tuple[str, ...] = ()
    """What a rule left out."""


@dataclass(frozen=True)
class Taking:
    """A row that is being taken apart. What is wrong goes to `faults`; it is raised where nothing else can be told."""

    row: Row
    faults: Faults
    root: Root

    def listed(self, key: str) -> list[Any]:
        """Raises DataError: there is none."""
        value = self.row.get(key)
        if value is None:
            raise DataError("missing-key", f"`{key}` is missing; it is a list", field=key)
        if not isinstance(value, list):
            raise DataError("wrong-type", f"`{key}` is a list, not {type(value).__name__}", field=key)
        return value

    def pictures(self, *keys: str) -> Pictures:
        """Those of the first of `keys` that the row has; a single one need not be in a list."""
        keys = keys or ("images", "image", "img_path", "image_path")
        if {"image", "images"} <= self.row.keys() & {*keys}:
            self.faults.add("wrong-type", "the row has both `image` and `images`; keep one", field="images")
        for key in keys:
            value = self.row.get(key)
            if isinstance(value, list):
                return Pictures(tuple(value), tuple(f"{key}[{i}]" for i in range(len(value))), key)
            if value is not None:
                return Pictures((value,), (key,), key)
        return Pictures()

    def turns(self, key: str) -> tuple[Saying, ...]:
        """A list of turns; `{"type": "image"}` without a name is the place of the next picture.

        Raises:
            DataError: it is no list, or empty.
        """
        held = self.listed(key)
        if not held:
            raise DataError("empty-answer", f"`{key}` is empty; write an answer or delete the row", field=key)
        return tuple(Saying(_places(turn), f"{key}[{i}]") for i, turn in enumerate(held))

    def number(self, value: Any, field: str, *, fault: str, least: float | None = None, most: float = 1e300) -> float:
        """A number, perhaps written as text, in a range that is said; 0 if it is none, which is a fault."""
        found = value
        if isinstance(value, str):
            try:
                found = float(value)
            except ValueError:
                found = None
        low = -1e300 if least is None else least
        # Before it becomes a float, which an integer of 400 digits cannot.
        if isinstance(found, int | float) and not isinstance(found, bool) and low <= found <= most:
            return float(found)
        allowed = "" if least is None else f" from {least:g}" if most == 1e300 else f" from {least:g} to {most:g}"
        self.faults.add(fault, f"{value!a:.80} is not a number{allowed}", field=field)
        return 0.0


def said(words: Any, field: str, *, by: str = "gpt", answer: Answer | None = None) -> Saying:
    """Words alone, in LLaVA's dialect."""
    return Saying({"from": by, "value": words}, field, bare=True, answer=answer)


def pair(prompt: Sequence[Saying], chosen: Saying, rejected: Saying, *, shown: Pictures) -> Told:
    """Two answers to one prompt in LLaVA's dialect, the better first unless they have scores of their own."""
    return two((*prompt, chosen), (*prompt, rejected), shown=shown)


def two(
    chosen: Sequence[Saying],
    rejected: Sequence[Saying],
    *,
    shown: Pictures,
    other: Pictures | None = None,
    dialect: str = "conversations",
) -> Told:
    """Two conversations whose last turns are the answers; the second may be about other pictures."""
    paths = (
        Path((*turns[:-1], replace(turns[-1], answer=turns[-1].answer or Answer(score))), pictures)
        for turns, score, pictures in ((chosen, 1.0, shown), (rejected, 0.0, shown if other is None else other))
    )
    return Told(tuple(paths), dialect)


def _places(turn: Any) -> Any:
    """A message whose content has the text `<image>` where it had a picture without a name."""
    content = turn.get("content") if isinstance(turn, dict) else None
    if not isinstance(content, list):
        return turn
    parts = [
        {"type": "text", "text": "<image>"}
        if isinstance(part, dict) and {k: v for k, v in part.items() if v is not None} == {"type": "image"}
        else part
        for part in content
    ]
    return {**turn, "content": parts}
