"""One row of conversation → turns, for the four dialects of the field, told apart row by row.

| dialect | the turns | the pictures |
|---|---|---|
| LLaVA | `conversations[]{from: human or gpt, value}` | `image`: a path or a list of paths |
| ShareGPT | the same, and `system` | `images`: a list |
| ms-swift | `messages[]{role, content}` | `images`: a list |
| OpenAI | `messages[]{role, content[]{type: text or image_url}}` | in place, as relative paths or `data:` URIs |

Where `<image>` stands in the text, the next picture of the row stands in the turn. The literal goes, and one adjoining
newline with it (the one that follows, else the one before), and blanks between it and the turn's edge: whether a
newline parts a picture from words is the template's business. A row may also carry `regions`: lists of 2, 4 or more
numbers in shares of width and height (point, box, outline of a mask), which take the places of `<region>` in the same
way. `{"box": […], "phrase": "the dog"}` also names what it is of; besides `box` there are `points` and `mask`.

Turns may carry `weight` (OpenAI: a number) or `loss` (ms-swift: true or false), which become the turn's weight. A key
whose value is null counts as absent, since parquet has no other way. What is not understood is a fault: other keys are
refused unless they are known metadata, begin with `_`, or were named by the caller (`extra`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from quintet.data.sources.base import Faults
from quintet.data.sources.keys import unread
from quintet.data.sources.root import Root, is_text, visible
from quintet.errors import DataError, nearest
from quintet.values import Media, Part, Ref, Region, Text, Turn

__all__ = ["NOWHERE", "Conversation", "identity", "read_conversation"]

NOWHERE = Ref("")
"""Stands for a picture that was named wrongly or not at all, so that the rest of its turn can still be judged."""

_IMAGE = re.compile(r"(<image>)")
_IMAGE_OR_REGION = re.compile(r"(<image>|<region>)")
_ROW = {
    "conversations": frozenset({"id", "conversations", "image", "images", "system", "regions"}),
    "messages": frozenset({"id", "messages", "image", "images", "system", "regions"}),
}
_ROLE_KEY = {"conversations": "from", "messages": "role"}
_TEXT_KEY = {"conversations": "value", "messages": "content"}
_ROLES = {
    "conversations": {"human": "user", "gpt": "assistant", "system": "system"},
    "messages": {"user": "user", "assistant": "assistant", "system": "system"},
}
_TOOL_ROLES = frozenset({"observation", "function_call", "tool", "function", "developer", "tool_call", "tool_response"})


@dataclass(frozen=True)
class Conversation:
    """What a row says, as far as it could be understood."""

    id: str = ""
    turns: tuple[Turn, ...] = ()
    ignored: tuple[str, ...] = ()


def identity(row: dict[str, Any], faults: Faults, *, key: str = "id") -> str:
    """The row's id as text; rows need not have one."""
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, str) and is_text(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    faults.add("wrong-type", f"an id is text or an integer, not {type(value).__name__}", field=key)
    return ""


def read_conversation(
    row: object, faults: Faults, *, root: Root, extra: frozenset[str] = frozenset(), media: tuple[Ref, ...] = ()
) -> Conversation:
    """Reads a row of any of the four dialects; what is wrong with it goes to `faults`.

    `media` are the pictures that the row's container holds beside it (a tar's members), used if the row names none.
    """
    if not isinstance(row, dict):
        faults.add("wrong-type", f"a row is an object, not {type(row).__name__}")
        return Conversation()
    row = {key: value for key, value in row.items() if value is not None}
    dialects = [key for key in _ROW if key in row]
    if len(dialects) != 1:
        found = "both" if dialects else f"neither (keys: {', '.join(sorted(map(ascii, row))) or 'none'})"
        faults.add("missing-key", f"expected one of `conversations` and `messages`, found {found}")
        return Conversation(identity(row, faults))
    reader = _Reader(dialects[0], faults, root, extra)
    ignored = unread(row, faults, known=_ROW[dialects[0]], extra=extra)
    pictures, given = reader.pictures(row, media)
    regions = reader.regions(row)
    reader.slots = _Slots(pictures, regions)
    turns = reader.system(row) + reader.turns(row[dialects[0]])
    reader.counts(given)
    reader.order(turns)
    return Conversation(identity(row, faults), tuple(turns), ignored)


@dataclass
class _Slots:
    """What `<image>` and `<region>` take, in order."""

    pictures: list[Ref] = field(default_factory=list)
    regions: list[Region] | None = None
    images_seen: int = 0
    regions_seen: int = 0

    def image(self) -> Media:
        self.images_seen += 1
        return Media(
            "image", self.pictures[self.images_seen - 1] if self.images_seen <= len(self.pictures) else NOWHERE
        )

    def region(self) -> Region:
        assert self.regions is not None, "a row without regions has no places for them"
        self.regions_seen += 1
        return self.regions[self.regions_seen - 1] if self.regions_seen <= len(self.regions) else Region("points", ())


@dataclass
class _Reader:
    """Reads the parts of one row in one dialect."""

    dialect: str
    faults: Faults
    root: Root
    extra: frozenset[str]
    slots: _Slots = field(default_factory=_Slots)

    # ---- the row -------------------------------------------------------------------------------------------------
    def pictures(self, row: dict[str, Any], media: tuple[Ref, ...]) -> tuple[list[Ref], str]:
        """The row's pictures, and what to call them in a message."""
        if "image" in row and "images" in row:
            self.faults.add("wrong-type", "the row has both `image` and `images`; keep one", field="images")
        key = "images" if "images" in row else "image"
        if key not in row:
            return list(media), "beside the row"
        value = row[key]
        if key == "image" and not isinstance(value, list):
            return [self._ref(value, key)], f"in `{key}`"
        if not isinstance(value, list):
            self.faults.add("wrong-type", f"`{key}` is a list, not {type(value).__name__}", field=key)
            return [NOWHERE], f"in `{key}`"
        return [self._ref(item, f"{key}[{i}]") for i, item in enumerate(value)], f"in `{key}`"

    def _ref(self, value: Any, where: str) -> Ref:
        try:
            return self.root.ref(value)
        except DataError as error:
            self.faults.take(error, field=where)
            return NOWHERE

    def regions(self, row: dict[str, Any]) -> list[Region] | None:
        if "regions" not in row:
            return None
        value = row["regions"]
        if not isinstance(value, list):
            self.faults.add("wrong-type", f"`regions` is a list, not {type(value).__name__}", field="regions")
            return []
        return [self._region(item, f"regions[{i}]") for i, item in enumerate(value)]

    def _region(self, value: Any, where: str) -> Region:
        kind, phrase = "", ""
        if isinstance(value, dict):
            known = frozenset({"box", "points", "mask"})
            unread(value, self.faults, known=known | {"phrase"}, extra=self.extra, where=where)
            kinds, phrase = sorted(known & value.keys()), value.get("phrase", "")
            if len(kinds) != 1 or not isinstance(phrase, str) or not is_text(phrase):
                self.faults.add("wrong-type", "a region is one of box, points and mask, its phrase text", field=where)
                return Region("points", ())
            kind, value = kinds[0], value[kinds[0]]
        numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        if not numbers or len(value) < 2 or len(value) % 2:
            self.faults.add(
                "wrong-type", "a region is a list of 2, 4 or more numbers: point, box, polygon", field=where
            )
        elif not all(0 <= v <= 1 for v in value):
            self.faults.add("bad-region", f"{value} is outside [0, 1]; give shares of width and height", field=where)
        elif kind == "box" and len(value) != 4:
            self.faults.add("wrong-type", f"a box has 4 numbers, not {len(value)}", field=where)
        elif len(value) == 4 and kind in ("", "box") and not (value[0] < value[2] and value[1] < value[3]):
            self.faults.add("bad-region", f"{value} is no box; expected x1 < x2 and y1 < y2", field=where)
        else:
            points = tuple(map(float, value))
            if kind == "points" or (not kind and len(points) == 2):
                return Region("points", points, phrase)
            return Region("box" if kind == "box" or (not kind and len(points) == 4) else "mask", points, phrase)
        return Region("points", ())

    # ---- turns ---------------------------------------------------------------------------------------------------
    def system(self, row: dict[str, Any]) -> list[Turn]:
        value = row.get("system", "")
        if not isinstance(value, str) or not is_text(value):
            self.faults.add("wrong-type", "`system` is text", field="system")
            return []
        return [Turn("system", (Text(value),))] if value.strip() else []

    def turns(self, value: Any) -> list[Turn]:
        if not isinstance(value, list):
            self.faults.add("wrong-type", f"`{self.dialect}` is a list, not {type(value).__name__}", field=self.dialect)
            return []
        if not value:
            self.faults.add("no-answer", f"`{self.dialect}` is empty; there is nothing to learn", field=self.dialect)
        made = (self._turn(item, f"{self.dialect}[{i}]") for i, item in enumerate(value))
        return [turn for turn in made if turn]

    def _turn(self, item: Any, where: str) -> Turn | None:
        if not isinstance(item, dict):
            self.faults.add("wrong-type", f"a turn is an object, not {type(item).__name__}", field=where)
            return None
        item = {key: value for key, value in item.items() if value is not None}
        role_key, text_key = _ROLE_KEY[self.dialect], _TEXT_KEY[self.dialect]
        known = frozenset({role_key, text_key, "weight", "loss"})
        unread(item, self.faults, known=known, extra=self.extra, where=where)
        role = self._role(item, role_key, where)
        weight = self._weight(item, where)
        at = f"{where}.{text_key}"
        if text_key not in item:
            self.faults.add("missing-key", f"a turn has no `{text_key}`", field=at)
            return Turn(role, (), weight)
        known_faults = len(self.faults.found)
        parts = self._parts(item[text_key], at)
        if len(self.faults.found) == known_faults:  # what is broken is not also called empty
            self._check(role, parts, at)
        return Turn(role, tuple(parts), weight)

    def _role(self, item: dict[str, Any], key: str, where: str) -> str:
        roles, value = _ROLES[self.dialect], item.get(key)
        if value is None:
            self.faults.add("missing-key", f"a turn has no `{key}`", field=f"{where}.{key}")
        elif not isinstance(value, str):
            self.faults.add("wrong-type", f"a role is text, not {type(value).__name__}", field=f"{where}.{key}")
        elif value in _TOOL_ROLES:
            message = f"{value!r}: tool calls are not read by this version; leave such rows out"
            self.faults.add("unsupported-role", message, field=f"{where}.{key}")
        elif value not in roles:
            self.faults.add("unknown-role", f"{value!a} is no role{nearest(value, roles)}", field=f"{where}.{key}")
        else:
            return roles[value]
        return "?"

    def _weight(self, item: dict[str, Any], where: str) -> float:
        weight, loss = item.get("weight", 1), item.get("loss", True)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < 1e300:
            self.faults.add("wrong-type", "`weight` is a number from 0", field=f"{where}.weight")
            return 1.0
        if not isinstance(loss, bool):
            self.faults.add("wrong-type", "`loss` is true or false", field=f"{where}.loss")
            return 1.0
        return float(weight) if loss else 0.0

    def _check(self, role: str, parts: list[Part], where: str) -> None:
        said = any(isinstance(part, Region) or (isinstance(part, Text) and visible(part.text)) for part in parts)
        if role == "assistant" and not said:
            self.faults.add("empty-answer", "the answer is empty; write one or delete the row", field=where)
        if role == "user" and not parts:
            self.faults.add("empty-question", "the question is empty; write one or delete the row", field=where)
        if role in ("system", "assistant") and any(isinstance(part, Media) for part in parts):
            message = f"a picture stands in the turn of the {role}; it must stand where the user shows it"
            self.faults.add("image-place", message, field=where)

    # ---- contents ------------------------------------------------------------------------------------------------
    def _parts(self, value: Any, where: str) -> list[Part]:
        if isinstance(value, str):
            return self._text(value, where)
        if self.dialect == "messages" and isinstance(value, list):
            pieces = (self._piece(item, f"{where}[{i}]") for i, item in enumerate(value))
            return [part for piece in pieces for part in piece]
        self.faults.add("wrong-type", f"what is said is text, not {type(value).__name__}", field=where)
        return []

    def _piece(self, item: Any, where: str) -> list[Part]:
        """One element of an OpenAI content list."""
        kind = item.get("type") if isinstance(item, dict) else None
        if kind not in ("text", "image_url", "image"):
            self.faults.add("unsupported-part", f"{kind!a}: only text and image_url are read", field=f"{where}.type")
            return []
        item = {key: value for key, value in item.items() if value is not None}
        unread(item, self.faults, known=frozenset({"type", kind}), extra=self.extra, where=where)
        value = item.get(kind)
        if kind == "text":
            if isinstance(value, str):
                return self._text(value, f"{where}.text")
            self.faults.add("wrong-type", "`text` is text", field=f"{where}.text")
            return []
        if kind == "image_url" and isinstance(value, dict):
            known = frozenset({"url", "detail"})
            unread(value, self.faults, known=known, extra=self.extra, where=f"{where}.image_url")
            value = value.get("url")
        return [Media("image", self._ref(value, f"{where}.{kind}"))]

    def _text(self, text: str, where: str) -> list[Part]:
        if not is_text(text):
            self.faults.add("not-unicode", "half a surrogate pair stands in the text; write the character", field=where)
            return []
        return list(_trim(self._split(text)))

    def _split(self, text: str) -> Iterator[Part]:
        pieces = (_IMAGE if self.slots.regions is None else _IMAGE_OR_REGION).split(text)
        for i, piece in enumerate(pieces):
            if piece == "<image>":
                # The newline that goes is the one after; if there is none, the one before (below).
                if pieces[i + 1].startswith("\n"):
                    pieces[i + 1] = pieces[i + 1][1:]
                yield self.slots.image()
            elif piece == "<region>" and self.slots.regions is not None:
                yield self.slots.region()
            elif piece:
                before = pieces[i + 1 : i + 2] == ["<image>"] and not pieces[i + 2].startswith("\n")
                if words := piece.removesuffix("\n") if before else piece:
                    yield Text(words)

    # ---- what holds over the whole row ---------------------------------------------------------------------------
    def counts(self, given: str) -> None:
        """The text must have as many places as the row has pictures and regions."""
        slots, n = self.slots, len(self.slots.pictures)
        if slots.images_seen != n:
            message = f"{slots.images_seen} <image> in the text, {n} pictures {given}; every picture needs its place"
            self.faults.add("image-count", message, field=self.dialect)
        if slots.regions is not None and slots.regions_seen != len(slots.regions):
            message = f"{slots.regions_seen} <region> in the text, {len(slots.regions)} in `regions`"
            self.faults.add("region-count", message, field=self.dialect)

    def order(self, turns: list[Turn]) -> None:
        """An optional system turn, then user and assistant in turns; the last word is the assistant's."""
        said = [turn.role for turn in turns]
        start = 1 if said[:1] == ["system"] else 0
        for i, role in enumerate(said[start:]):
            expected = ("user", "assistant")[i % 2]
            if role == "?":  # reported where it stands; what follows cannot be judged
                return
            if role != expected:
                message = (
                    f"turn {start + i + 1} is the {role}'s, expected the {expected}'s; roles alternate, the user begins"
                )
                self.faults.add("role-order", message, field=self.dialect)
                return
        if said and said[-1] != "assistant":
            self.faults.add(
                "no-answer", f"the last turn is the {said[-1]}'s; there is nothing to learn", field=self.dialect
            )


def _trim(parts: Iterator[Part]) -> Iterator[Part]:
    """Drops blanks between a picture and the edge of its turn: `<image> What is it?` is the picture, then the words."""
    made = list(parts)
    for i, part in enumerate(made):
        if isinstance(part, Text):
            text = part.text
            if i == 1 and isinstance(made[0], Media):
                text = text.lstrip(" \t")
            if i == len(made) - 2 and isinstance(made[-1], Media):
                text = text.rstrip(" \t")
            if text:
                yield Text(text)
        else:
            yield part
