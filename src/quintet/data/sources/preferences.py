"""One row with several answers to the same prompt → a tree of turns whose branches are compared.

| layout | told by | the prompt | the answers |
|---|---|---|---|
| LLaVA-RLHF | `output_1`, `output_2`, `preference` | `conversations`, `image` | the two; 1 or 2 is preferred |
| RLHF-V | `text`, JSON of three keys | its `question`, `image` or `image_path` | its `chosen`, `rejected` |
| RLAIF-V, HSA-DPO | `question`, `chosen`, `rejected` | `question`, `image`, or `<id>.jpg` | text; `…_score`: severity |
| mDPO, text alone | `prompt`, `chosen`, `rejected`, all text | `prompt`, `img_path` or `image` | text |
| TRL, STIC | the same as messages | `prompt`, or the first messages; `images` or `image` | messages |
| POVID | `rejected_conversations` | `conversations` but for its last turn | that, and the last of the others |
| LLaMA-Factory | `conversations` and `chosen`, `rejected` | `conversations`, `images` | turns |
| ms-swift | `messages` and `rejected_response` | `messages` but for its last turn, `images` | that, and the text |
| VLFeedback | `completions[].annotations` | `prompt`, `img_path` | each; its score is the mean of the ratings |
| BPO | `completions[].score` | `prompt`, `image` | each with its score |

A row with more than two answers is one tree: every two of them with different scores are a pair. What a prompt and an
answer may be is what `conversation.py` says of any conversation: each answer is read as the end of one.

Sources: the releases' own files and code as docs/alignment.md lists them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quintet.data.sources.base import Faults, Reading, Source
from quintet.data.sources.conversation import Conversation, read_conversation
from quintet.data.sources.keys import unread
from quintet.data.sources.pages import RowTable
from quintet.data.sources.root import Root
from quintet.errors import DataError
from quintet.values import Answer, Node, Origin, Text, Turn

__all__ = ["LAYOUTS", "Compared", "Preferences", "layout_of", "read_preferences"]

Row = Mapping[str, Any]
ASPECTS = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
"""Of an answer of VLFeedback; its score is their plain mean."""


@dataclass(frozen=True)
class Said:
    """An answer as a row has it."""

    text: Any
    score: float
    field: str
    """Where in the row."""
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What a row says, in no layout any more: turns of the prompt as LLaVA has them, pictures, answers."""

    prompt: list[Any]
    answers: tuple[Said, ...]
    pictures: list[Any]


@dataclass(frozen=True)
class Compared:
    """A row as far as it could be understood."""

    id: str = ""
    turns: tuple[Turn, ...] = ()
    children: tuple[Node, ...] = ()
    ignored: tuple[str, ...] = ()


class Preferences(Source):
    """Comparisons in a table of rows: a JSON list, JSON lines, parquet. Media are named relative to `root`."""

    def __init__(self, rows: RowTable, *, root: Path, extra: frozenset[str] = frozenset(), name: str = "") -> None:
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
        return Reading(origin, told.turns, tuple(faults.found), told.ignored, children=told.children)


def layout_of(row: Row) -> str:
    """The layout of a row, a key of `LAYOUTS`; '' if it compares nothing."""
    return next((name for name, layout in LAYOUTS.items() if layout.fits(row)), "")


def read_preferences(row: object, faults: Faults, *, root: Root, extra: frozenset[str] = frozenset()) -> Compared:
    """Reads a row of any of the layouts; what is wrong with it goes to `faults`."""
    if not isinstance(row, dict):
        faults.add("wrong-type", f"a row is an object, not {type(row).__name__}")
        return Compared()
    row = {key: value for key, value in row.items() if value is not None}
    name = layout_of(row)
    if not name:
        keys = ", ".join(sorted(map(ascii, row))) or "none"
        faults.add("no-preference", f"found the keys {keys}; expected those of one of {', '.join(LAYOUTS)}")
        return Compared()
    layout = LAYOUTS[name]
    ignored = unread(row, faults, known=layout.keys, extra=extra | layout.notes)
    try:
        told = layout.read(row)
    except DataError as error:
        faults.take(error)
        return Compared(ignored=ignored)
    return replace(_tree(row, told, faults, root), ignored=ignored)


def _tree(row: Row, told: Told, faults: Faults, root: Root) -> Compared:
    """The prompt once and each answer as a branch, after all checks of a conversation."""
    read: list[Conversation] = []
    for said in told.answers:
        own = Faults(faults.file, faults.row)
        turns = [*told.prompt, {"from": "gpt", "value": said.text}]
        whole = {"conversations": turns, "images": told.pictures, **({"id": row["id"]} if "id" in row else {})}
        read.append(read_conversation(whole, own, root=root))
        last = f"conversations[{len(told.prompt)}]"
        for error in own.found:
            at = said.field if (error.field or "").startswith(last) else error.field
            # What is wrong with the prompt is said once.
            if at == said.field or said is told.answers[0]:
                faults.found.append(replace_field(error, at))
    if faults.found:
        return Compared()
    _differ(told, read, faults)
    children = tuple(
        Node((one.turns[-1],), answer=Answer(said.score, numbers=said.numbers))
        for said, one in zip(told.answers, read, strict=True)
    )
    return Compared(read[0].id, read[0].turns[:-1], children)


def replace_field(error: DataError, field: str | None) -> DataError:
    """The same fault at another field."""
    return DataError(error.fault, error.message, file=error.file, row=error.row, field=field)


def _differ(told: Told, read: list[Conversation], faults: Faults) -> None:
    """There must be a better answer, and it must be another text."""
    scores = {said.score for said in told.answers}
    if len(scores) < 2:
        message = f"{len(told.answers)} answers, all with the same score; one must be better"
        faults.add("no-preference", message, field=told.answers[0].field if told.answers else None)
        return
    texts = [
        ("".join(p.text for p in one.turns[-1].parts if isinstance(p, Text)), said)
        for said, one in zip(told.answers, read, strict=True)
    ]
    for i, (text, said) in enumerate(texts):
        for other, than in texts[:i]:
            if said.score == than.score:
                continue
            if text == other:
                faults.add("same-answer", f"it is the same text as {than.field}; nothing to prefer", field=said.field)
            elif text.split() == other.split():
                faults.add("same-answer", f"it differs from {than.field} in blanks alone", field=said.field)


# ---- layouts -----------------------------------------------------------------------------------------------------
def _llava_rlhf(row: Row) -> Told:
    preferred = row["preference"]
    if preferred not in (1, 2) or isinstance(preferred, bool):
        raise DataError("bad-preference", f"`preference` is {preferred!a}; it is 1 or 2", field="preference")
    answers = tuple(
        Said(_value(row[f"output_{n}"], f"output_{n}"), float(preferred == n), f"output_{n}.value") for n in (1, 2)
    )
    return Told(_list(row, "conversations"), answers, _pictures(row))


def _rlhf_v(row: Row) -> Told:
    try:
        held = json.loads(row["text"])
    except ValueError as error:
        raise DataError("wrong-type", f"`text` is no JSON ({error})", field="text") from None
    if not isinstance(held, dict) or not {"question", "chosen", "rejected"} <= held.keys():
        raise DataError("missing-key", "`text` is JSON with question, chosen and rejected", field="text")
    return Told(_asked(held["question"], row), _two(held, "text."), _pictures(row))


def _question(row: Row) -> Told:
    scores = {name: _number(row, f"{name}_score") for name in ("chosen", "rejected")}
    known = {name: {"severity": value} for name, value in scores.items() if value is not None}
    # HSA-DPO names no picture: it is the row's id.
    pictures = _pictures(row) or ([f"{row['id']}.jpg"] if known and "id" in row else [])
    told = _two(row)
    answers = tuple(replace(said, numbers=known.get(said.field, {})) for said in told)
    return Told(_asked(row["question"], row, pictures=pictures), answers, pictures)


def _prompt(row: Row) -> Told:
    return Told(_asked(row["prompt"], row), _two(row), _pictures(row))


def _messages(row: Row) -> Told:
    """Chat lists: the prompt apart (TRL), or as the beginning of both (TRL's implicit prompt, STIC)."""
    lists = {name: _list(row, name) for name in ("chosen", "rejected")}
    prompt = row.get("prompt", [])
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    for name, messages in lists.items():
        if not messages:
            raise DataError("empty-answer", f"`{name}` is empty", field=name)
    if not prompt:
        prompt = lists["chosen"][:-1]
        if prompt != lists["rejected"][:-1]:
            raise DataError("two-prompts", "`chosen` and `rejected` answer different prompts", field="rejected")
    answers = tuple(
        Said(_content(messages[-1], f"{name}[{len(messages) - 1}]"), float(name == "chosen"), name)
        for name, messages in lists.items()
    )
    turns = [{"from": _ROLES.get(m.get("role"), m.get("role")), "value": _content(m, "prompt")} for m in prompt]
    pictures = _pictures(row)
    return Told(_shown(turns, pictures), answers, pictures)


def _povid(row: Row) -> Told:
    chosen, rejected = _list(row, "conversations"), _list(row, "rejected_conversations")
    if not chosen or not rejected or chosen[:-1] != rejected[:-1]:
        raise DataError("two-prompts", "the two answer different prompts", field="rejected_conversations")
    answers = (
        Said(_value(chosen[-1], "conversations"), 1.0, f"conversations[{len(chosen) - 1}].value"),
        Said(_value(rejected[-1], "rejected_conversations"), 0.0, f"rejected_conversations[{len(rejected) - 1}].value"),
    )
    return Told(chosen[:-1], answers, _pictures(row))


def _llama_factory(row: Row) -> Told:
    answers = tuple(
        Said(_value(row[name], name), float(name == "chosen"), f"{name}.value") for name in ("chosen", "rejected")
    )
    return Told(_list(row, "conversations"), answers, _pictures(row))


def _ms_swift(row: Row) -> Told:
    messages = _list(row, "messages")
    if not messages:
        raise DataError("no-answer", "`messages` is empty", field="messages")
    turns = [{"from": _ROLES.get(m.get("role"), m.get("role")), "value": _content(m, "messages")} for m in messages]
    answers = (
        Said(turns[-1]["value"], 1.0, f"messages[{len(messages) - 1}].content"),
        Said(row["rejected_response"], 0.0, "rejected_response"),
    )
    return Told(turns[:-1], answers, _pictures(row))


def _vlfeedback(row: Row) -> Told:
    answers: list[Said] = []
    for n, one in enumerate(_list(row, "completions")):
        ratings = [one.get("annotations", {}).get(aspect, {}).get("Rating") for aspect in ASPECTS]
        try:
            score = sum(map(float, ratings)) / len(ratings)
        except (TypeError, ValueError):
            continue  # unrated, as in their own script
        answers.append(Said(one.get("response"), score, f"completions[{n}].response"))
    return Told(_asked(row["prompt"], row), _unlike(answers), _pictures(row))


def _bpo(row: Row) -> Told:
    answers: list[Said] = []
    for n, one in enumerate(_list(row, "completions")):
        score = _number(one, "score")
        if score is None:
            raise DataError("missing-key", "an answer has no `score`", field=f"completions[{n}].score")
        answers.append(Said(one.get("response"), score, f"completions[{n}].response"))
    return Told(_asked(row["prompt"], row), _unlike(answers), _pictures(row))


def _unlike(answers: list[Said]) -> tuple[Said, ...]:
    """Answers of models may be the same text: the first of them stays."""
    return tuple({str(said.text): said for said in reversed(answers)}.values())[::-1]


def _texts(row: Row, *names: str) -> bool:
    return all(isinstance(row.get(name), str) for name in names)


def _completions(row: Row, key: str) -> bool:
    held = row.get("completions")
    return isinstance(held, list) and bool(held) and isinstance(held[0], dict) and key in held[0]


@dataclass(frozen=True)
class Layout:
    """One of the field's row layouts: what tells it, what it says, the keys it reads and those that are only notes."""

    fits: Callable[[Row], bool]
    read: Callable[[Row], Told]
    keys: frozenset[str]
    notes: frozenset[str] = frozenset()


_PICTURED = frozenset({"id", "image", "images", "img_path", "image_path"})
_RLAIF = frozenset({"ds_name", "origin_dataset", "origin_split"})


def _reads(*keys: str) -> frozenset[str]:
    return _PICTURED | {*keys}


LAYOUTS: Mapping[str, Layout] = {
    "llava-rlhf": Layout(
        lambda row: {"output_1", "output_2", "preference"} <= row.keys(),
        _llava_rlhf,
        _reads("conversations", "output_1", "output_2", "preference"),
        frozenset({"hallucination"}),
    ),
    "rlhf-v": Layout(
        lambda row: _texts(row, "text") and not row.keys() & {"conversations", "chosen"},
        _rlhf_v,
        _reads("text"),
        _RLAIF,
    ),
    "rlaif-v": Layout(
        lambda row: _texts(row, "question", "chosen", "rejected"),
        _question,
        _reads("question", "chosen", "rejected", "chosen_score", "rejected_score"),
        _RLAIF,
    ),
    "prompt": Layout(
        lambda row: _texts(row, "prompt", "chosen", "rejected"), _prompt, _reads("prompt", "chosen", "rejected")
    ),
    "povid": Layout(
        lambda row: {"conversations", "rejected_conversations"} <= row.keys(),
        _povid,
        _reads("conversations", "rejected_conversations"),
    ),
    "llama-factory": Layout(
        lambda row: {"conversations", "chosen", "rejected"} <= row.keys(),
        _llama_factory,
        _reads("conversations", "chosen", "rejected"),
    ),
    "ms-swift": Layout(
        lambda row: {"messages", "rejected_response"} <= row.keys(), _ms_swift, _reads("messages", "rejected_response")
    ),
    "messages": Layout(
        lambda row: all(isinstance(row.get(name), list) for name in ("chosen", "rejected")),
        _messages,
        _reads("prompt", "chosen", "rejected"),
        frozenset({"image_corruption", "hallu_prompt"}),
    ),
    "vlfeedback": Layout(
        lambda row: _completions(row, "annotations"),
        _vlfeedback,
        _reads("prompt", "completions"),
        frozenset({"models"}),
    ),
    "bpo": Layout(lambda row: _completions(row, "score"), _bpo, _reads("prompt", "completions")),
}
"""The first that fits a row is its layout."""

_ROLES = {"user": "human", "assistant": "gpt", "system": "system"}


# ---- pieces ------------------------------------------------------------------------------------------------------
def _list(row: Row, key: str) -> list[Any]:
    value = row.get(key)
    if not isinstance(value, list):
        raise DataError("wrong-type", f"`{key}` is a list, not {type(value).__name__}", field=key)
    return value


def _number(row: Row, key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError("wrong-type", f"`{key}` is a number, not {value!a}", field=key)
    return float(value)


def _value(turn: Any, where: str) -> Any:
    if not isinstance(turn, dict) or "value" not in turn:
        raise DataError("missing-key", "a turn is an object with `value`", field=where)
    return turn["value"]


def _content(message: Any, where: str) -> Any:
    """The text of a message; `{type: image}` in a list of parts is the place of the next picture."""
    if not isinstance(message, dict) or "content" not in message:
        raise DataError("missing-key", "a message is an object with `content`", field=where)
    content = message["content"]
    if not isinstance(content, list):
        return content
    return "".join("<image>\n" if part.get("type") == "image" else part.get("text") or "" for part in content)


def _two(row: Row, before: str = "") -> tuple[Said, ...]:
    return tuple(Said(row[name], float(name == "chosen"), f"{before}{name}") for name in ("chosen", "rejected"))


def _pictures(row: Row) -> list[Any]:
    for key in ("images", "image", "img_path", "image_path"):
        if key in row:
            return row[key] if isinstance(row[key], list) else [row[key]]
    return []


def _asked(question: Any, row: Row, *, pictures: list[Any] | None = None) -> list[Any]:
    """A question alone as turns."""
    return _shown([{"from": "human", "value": question}], _pictures(row) if pictures is None else pictures)


def _shown(turns: list[Any], pictures: list[Any]) -> list[Any]:
    """The turns with a place for every picture: where none is written, all stand before the first words."""
    first = next((n for n, turn in enumerate(turns) if turn.get("from") == "human"), None)
    written = any(isinstance(turn.get("value"), str) and "<image>" in turn["value"] for turn in turns)
    if written or first is None or not isinstance(turns[first]["value"], str):
        return turns
    value = "<image>\n" * len(pictures) + turns[first]["value"]
    return [*turns[:first], {**turns[first], "value": value}, *turns[first + 1 :]]
