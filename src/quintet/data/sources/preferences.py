"""One row with several answers to the same prompt → a tree of turns whose branches are compared.

    ▣ What is here? ─┬─ the better answer, score 1          or as many as there are, each with its score
                     └─ the other one, score 0

Which keys of a row mean what is told in `preference_layouts.py`; here are the tree and what must hold of it:

| fault | rule |
|---|---|
| `unknown-layout` | the row's keys are those of no layout |
| `same-answer`, `same-words` | two answers of different scores are the same; or they differ in blanks alone |
| `no-preference` | all scores are the same, or there are not two answers |
| `two-prompts` | the answers are to different words; other pictures are no fault, where a layout has them |
| `bad-preference`, `bad-score`, `bad-rating` | it is no number, or out of its range |
| `no-rating` | an answer, or the critique of one, has no rating |
| `missing-file`, `no-frames` | the folder of a video is not there, or no picture is in it |
| `bad-mark`, `phrase-count` | marked phrases are not well written, or do not stand in pairs |
| `rendered-prompt` | the prompt is a whole conversation in the spelling of another system's template |

`kept` is a key of our own that any layout may have: a conversation beside the pair that shall stay as likely as it is
(HALVA's KL).

and all that `conversation.py` says of a conversation: every path to an answer is read as one, with its places for
pictures, its roles and their order, and no answer is empty. Where an answer is about other pictures it stands in a
second tree (`Sample.others`), named `unseen` if it has the winner's words.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path as File

from quintet.answers import Answer
from quintet.data.contrast import KEPT, UNSEEN
from quintet.data.sources.base import Faults, Reading, Source
from quintet.data.sources.conversation import NOWHERE, Conversation, identity, read_conversation
from quintet.data.sources.keys import unread
from quintet.data.sources.pages import RowTable
from quintet.data.sources.preference_layouts import LAYOUTS, layout_of, near
from quintet.data.sources.preference_rows import Path, Row, Taking, Told
from quintet.data.sources.root import Root, visible
from quintet.errors import DataError
from quintet.values import Node, Origin, Ref, Text, Turn

__all__ = ["Compared", "Preferences", "read_preferences"]

_TURN = re.compile(r"(?:conversations|messages)\[(\d+)\](.*)")


@dataclass(frozen=True)
class Compared:
    """A row as far as it could be understood: the prompt, the answers to it, and trees beside it."""

    id: str = ""
    turns: tuple[Turn, ...] = ()
    children: tuple[Node, ...] = ()
    others: tuple[Node, ...] = ()
    ignored: tuple[str, ...] = ()
    """Keys that were left unread on purpose, and answers that a rule left out."""


class Preferences(Source):
    """Comparisons in a table of rows: a JSON list, JSON lines, parquet. Media are named relative to `root`."""

    def __init__(self, rows: RowTable, *, root: File, extra: frozenset[str] = frozenset(), name: str = "") -> None:
        self.rows, self.root, self.extra = rows, Root.at(root), extra
        self.file, self.name = str(rows.file), name or rows.file.name

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Reading:
        faults = Faults(self.file, index + 1)
        try:
            row = self.rows.row(index)
        except DataError as error:
            faults.take(error)
            return Reading(Origin(self.file, index + 1), faults=tuple(faults.found))
        told = read_preferences(row, faults, root=self.root, extra=self.extra)
        origin = Origin(self.file, index + 1, told.id)
        found = tuple(faults.found)
        return Reading(origin, told.turns, found, told.ignored, children=told.children, others=told.others)


def read_preferences(row: object, faults: Faults, *, root: Root, extra: frozenset[str] = frozenset()) -> Compared:
    """Reads a row of any of the layouts; what is wrong with it goes to `faults`."""
    if not isinstance(row, dict):
        faults.add("wrong-type", f"a row is an object, not {type(row).__name__}")
        return Compared()
    row = {key: value for key, value in row.items() if value is not None}
    kept = row.pop("kept", None)
    name = identity(row, faults)
    kind = layout_of(row)
    if not kind:
        nearest = near(row.keys()) or ", ".join(LAYOUTS)
        keys = ", ".join(sorted(map(ascii, row))) or "none"
        faults.add("unknown-layout", f"found the keys {keys}; the nearest layouts of preferences: {nearest}")
        return Compared(name)
    layout = LAYOUTS[kind]
    ignored = unread(row, faults, known=layout.known, extra=extra | layout.notes)
    try:
        told = layout.take(Taking(row, faults, root))
    except DataError as error:
        faults.take(error)
        return Compared(name, ignored=ignored)
    read = [_read(path, row, told.dialect, faults, root, extra) for path in told.paths]
    ignored += told.notes
    if not faults.found and len(read) > 1:
        _differ(told, read, faults)
    if faults.found:
        return Compared(name, read[0].turns, ignored=ignored)
    if len(read) == 1:
        return replace(_chain(told.paths[0], read[0].turns), id=name, ignored=ignored)
    made = replace(_tree(told, read), id=name, ignored=ignored)
    return made if kept is None else _keeping(made, kept, row, faults, root)


def _keeping(made: Compared, kept: object, row: Row, faults: Faults, root: Root) -> Compared:
    """With a conversation that shall stay as it is."""
    pictures = {key: row[key] for key in ("image", "images") if key in row}
    own = Faults(faults.file, faults.row)
    read = read_conversation({"conversations": kept, **pictures}, own, root=root)
    for error in own.found:
        faults.take(error, field=f"kept.{error.field}" if error.field else "kept")
    return replace(made, others=(*made.others, Node(read.turns, answer=Answer(name=KEPT))))


# ---- reading -----------------------------------------------------------------------------------------------------
def _read(path: Path, row: Row, dialect: str, faults: Faults, root: Root, extra: frozenset[str]) -> Conversation:
    """A path as a conversation; a fault of what paths share is noted once."""
    own = Faults(faults.file, faults.row)
    media = tuple(_ref(name, field, own, root) for name, field in zip(path.shown.names, path.shown.fields, strict=True))
    whole = {dialect: [saying.turn for saying in path.sayings]}
    system = {"system": row["system"]} if "system" in row else {}
    said = read_conversation(whole | system, own, root=root, extra=extra, media=media)
    known = {(error.fault, error.field, error.message) for error in faults.found}
    for error in own.found:
        placed = _placed(error, path)
        if (placed.fault, placed.field, placed.message) not in known:
            faults.found.append(placed)
    turns = list(said.turns)
    for n, saying in enumerate(reversed(path.sayings), start=1):
        if saying.marked is not None and n <= len(turns):
            turns[-n] = replace(turns[-n], parts=saying.marked(turns[-n].parts))
    return replace(said, turns=tuple(turns))


def _ref(name: object, field: str, faults: Faults, root: Root) -> Ref:
    try:
        return root.ref(name)
    except DataError as error:
        faults.take(error, field=field)
        return NOWHERE


def _placed(error: DataError, path: Path) -> DataError:
    """The fault of a conversation at its place in the row."""
    field, message = error.field or "", error.message
    first = re.split(r"[.\[]", path.sayings[0].field)[0] if path.sayings else None
    if turn := _TURN.fullmatch(field):
        saying = path.sayings[int(turn[1])]
        field = saying.field if saying.bare else f"{saying.field}{turn[2]}"
    elif error.fault == "image-count":
        field = path.shown.key if path.shown.names else first
        message = message.replace("beside the row", f"in `{path.shown.key}`")
    elif field in ("conversations", "messages"):
        field = first
    return DataError(error.fault, message, file=error.file, row=error.row, field=field or None)


# ---- what must hold ----------------------------------------------------------------------------------------------
def _differ(told: Told, read: list[Conversation], faults: Faults) -> None:
    """There is a better answer, it is to the same words, and where the pictures are the same it has other words."""
    answers = [(path.sayings[-1], _score(path), said.turns) for path, said in zip(told.paths, read, strict=True)]
    if len({score for _, score, _ in answers}) < 2:
        message = f"{len(answers)} answers, all of them with the same score; one must be better"
        faults.add("no-preference", message, field=answers[0][0].field)
        return
    for i, (saying, score, turns) in enumerate(answers):
        if i and _words(turns[:-1]) != _words(answers[0][2][:-1]):
            message = f"it answers other words than {answers[0][0].field}; answers are compared that are to the same"
            faults.add("two-prompts", message, field=saying.field)
        for than, other, before in answers[:i]:
            if score == other or turns[:-1] != before[:-1]:
                continue
            one, two = _words(turns[-1:]), _words(before[-1:])
            if one == two:
                faults.add("same-answer", f"it is the same as {than.field}; nothing to prefer", field=saying.field)
            elif visible(one[0][1]) == visible(two[0][1]):
                message = f"it differs from {than.field} in blanks or invisible characters alone; nothing to prefer"
                faults.add("same-words", message, field=saying.field)


def _score(path: Path) -> float:
    answer = path.sayings[-1].answer
    return (answer.score if answer else None) or 0.0


def _words(turns: tuple[Turn, ...]) -> list[tuple[str, str]]:
    """Who says what, in words alone."""
    return [(turn.role, "".join(part.text for part in turn.parts if isinstance(part, Text))) for turn in turns]


# ---- trees -------------------------------------------------------------------------------------------------------
def _tree(told: Told, read: list[Conversation]) -> Compared:
    """The prompt once and each answer as a branch; answers about other pictures beside it."""
    best = max(range(len(read)), key=lambda i: _score(told.paths[i]))
    prompt, words = read[best].turns[:-1], _words(read[best].turns[-1:])
    children: list[Node] = []
    others: dict[tuple[Turn, ...], list[Node]] = {}
    for path, said in zip(told.paths, read, strict=True):
        answer = path.sayings[-1].answer or Answer()
        if said.turns[:-1] == prompt:
            children.append(Node(said.turns[-1:], answer=answer))
            continue
        if _words(said.turns[-1:]) == words:
            answer = replace(answer, name=UNSEEN, of=sum(r.turns[:-1] == prompt for r in read[:best]))
        others.setdefault(said.turns[:-1], []).append(Node(said.turns[-1:], answer=answer))
    trees = tuple(Node(turns, tuple(answers)) for turns, answers in others.items())
    return Compared(turns=prompt, children=tuple(children), others=trees)


def _chain(path: Path, turns: tuple[Turn, ...]) -> Compared:
    """One conversation with several answers: each is a node, and what comes after it is its child."""
    missing = len(turns) - len(path.sayings)  # a system turn stands in the row's own key
    ends = [(n + missing, saying.answer) for n, saying in enumerate(path.sayings) if saying.answer]
    children: tuple[Node, ...] = ()
    for k in range(len(ends) - 1, -1, -1):
        end, answer = ends[k]
        begin = ends[k - 1][0] + 1 if k else end
        children = (Node(turns[begin : end + 1], children, answer=answer),)
    return Compared(turns=turns[: ends[0][0]], children=children)
