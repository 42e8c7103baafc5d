"""Faults of the field, planted one at a time in a small data file or in a template, and recipes that hold them.

Everything here that is wrong is wrong on purpose. `clean_rows` and `recipe` are right.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from quintet.components.encoders.presets import CLIP_L
from quintet.data.template import Template
from quintet.lab.recipe import load_recipe
from quintet.recipes._recipe import Recipe
from quintet.values import Node, Sample, Text, Tokens, Turn

Row = dict[str, Any]


# ---- a clean file ------------------------------------------------------------------------------------------------
def clean_rows() -> list[Row]:
    """Six rows of the kinds that occur: short, several turns, two pictures, no picture, not ASCII, a picture last."""
    talks: list[tuple[str | list[str] | None, list[str]]] = [
        ("a.png", ["<image>\nWhat colour is it?", "red"]),
        ("b.png", ["<image>\nWhat is this?", "a blue square", "Is it large?", "yes, quite large", "Sure?", "yes"]),
        (["a.png", "c.png"], ["<image>\n<image>\nWhich is green?", "the second one"]),
        (None, ["Say hello.", "Hello there!"]),
        ("c.png", ["<image>\nName it in Greek.", "πράσινο – φύλλο 🍃"]),
        ("b.png", ["Describe this picture.\n<image>", "A blue square.\nNothing else is in it."]),
    ]
    rows: list[Row] = []
    for n, (image, said) in enumerate(talks):
        turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
        rows.append({"id": f"row-{n}", "conversations": turns} | ({"image": image} if image else {}))
    return rows


def write(folder: Path, rows: list[Row], *, raw: Mapping[int, bytes] | None = None) -> Path:
    """The rows as JSON lines with their pictures beside them; `raw` replaces lines (from 0) by bytes."""
    for name, size, colour in (("a.png", (40, 30), "red"), ("b.png", (24, 48), "blue"), ("c.png", (32, 32), "green")):
        Image.new("RGB", size, colour).save(folder / name)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "nothing.png").write_bytes(b"")
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    for index, line in (raw or {}).items():
        lines[index] = line
    path = folder / "data.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def vqa_pair(folder: Path) -> Path:
    """VQAv2 questions of which one has no annotation."""
    (folder / "COCO_val2014_000000000001.jpg").write_bytes(b"")
    asked = [{"question_id": i, "image_id": 1, "question": "Is it red?"} for i in (1, 2)]
    answered = [
        {
            "question_id": 1,
            "image_id": 1,
            "question_type": "is it",
            "answer_type": "yes/no",
            "multiple_choice_answer": "yes",
            "answers": [{"answer": "yes", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)],
        }
    ]
    (folder / "v2_questions.json").write_text(json.dumps({"questions": asked, "data_subtype": "val2014"}))
    (folder / "v2_annotations.json").write_text(json.dumps({"annotations": answered, "data_subtype": "val2014"}))
    return folder / "v2_questions.json"


# ---- faults in data: word → (row from 1, what is done to the clean rows) --------------------------------------------
def _say(row: int, turn: int, text: str) -> Callable[[list[Row]], None]:
    def change(rows: list[Row]) -> None:
        rows[row - 1]["conversations"][turn]["value"] = text

    return change


def _set(row: int, key: str, value: Any) -> Callable[[list[Row]], None]:
    def change(rows: list[Row]) -> None:
        rows[row - 1][key] = value

    return change


def _swap_roles(rows: list[Row]) -> None:
    rows[3]["conversations"].reverse()


def _not_learnt(rows: list[Row]) -> None:
    rows[0]["conversations"][1]["loss"] = False


def _no_answer(rows: list[Row]) -> None:
    rows[1]["conversations"].pop()


def _late_image(rows: list[Row]) -> None:
    said = rows[1]["conversations"]
    said[0]["value"], said[2]["value"] = "What is in the picture?", "<image>\nAnd now?"


def _strange_role(rows: list[Row]) -> None:
    rows[1]["conversations"][1]["from"] = "bot"


DATA_FAULTS: dict[str, tuple[int, Callable[[list[Row]], None]]] = {
    "empty-answer": (1, _say(1, 1, "  ")),
    "image-count": (1, _say(1, 0, "<image>\n<image>\nWhat colour is it?")),
    "missing-file": (3, _set(3, "image", ["a.png", "gone.png"])),
    "role-order": (4, _swap_roles),
    "no-answer": (2, _no_answer),
    "unknown-key": (4, _set(4, "awnser", "Hello")),
    "unknown-role": (2, _strange_role),
    "duplicate-id": (5, _set(5, "id", "row-0")),
    "late-image": (2, _late_image),
    "corrupt-media": (1, _set(1, "image", "broken.png")),
    "empty-file": (6, _set(6, "image", "nothing.png")),
    "outside-root": (1, _set(1, "image", "../a.png")),
    "remote-media": (1, _set(1, "image", "https://example.org/a.png")),
    "nothing-to-learn": (1, _not_learnt),
    "too-long": (2, _say(2, 1, "a blue square, " * 250)),
}


# ---- faults in templates -------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Planted(Template):
    """A template whose tokens are changed after they were made rightly."""

    def tokens(self, *args: Any, **kwargs: Any) -> Tokens:
        return self.spoil(super().tokens(*args, **kwargs), args[1])

    def spoil(self, made: Tokens, tokenizer: Any) -> Tokens:
        """The fault."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class LearnsAll(Planted):
    """The silent fall-back to a mask of ones."""

    def spoil(self, made: Tokens, tokenizer: Any) -> Tokens:
        weight = torch.ones_like(made.weight)
        for item in made.items:
            weight[item.start : item.start + item.columns] = 0
        return replace(made, weight=weight)


@dataclass(frozen=True, kw_only=True)
class LearnsMedia(Planted):
    """Placeholders in the loss."""

    def spoil(self, made: Tokens, tokenizer: Any) -> Tokens:
        weight = made.weight.clone()
        weight[[item.start for item in made.items]] = 1
        return replace(made, weight=weight)


@dataclass(frozen=True, kw_only=True)
class LearnsHeader(Planted):
    """One token too many before each answer."""

    def spoil(self, made: Tokens, tokenizer: Any) -> Tokens:
        weight = made.weight.clone()
        weight[:-1] += (made.weight[1:] != 0) & (made.weight[:-1] == 0)
        return replace(made, weight=weight)


@dataclass(frozen=True, kw_only=True)
class NoEnd(Planted):
    """The end marker is there, but not learnt."""

    def spoil(self, made: Tokens, tokenizer: Any) -> Tokens:
        return replace(made, weight=torch.where(made.ids == tokenizer.specials[self.end], 0.0, made.weight))


@dataclass(frozen=True, kw_only=True)
class MasksFirst(Planted):
    """The first token of each answer is masked: an offset by one in the mask."""

    def spoil(self, made: Tokens, tokenizer: Any) -> Tokens:
        before = torch.cat([torch.zeros(1), made.weight[:-1]])
        return replace(made, weight=torch.where(before == 0, 0.0, made.weight))


@dataclass(frozen=True, kw_only=True)
class LearnsNothingOfOne(Planted):
    """The last answer is lost: the mismatch of lengths that ends in labels all ignored."""

    def spoil(self, made: Tokens, tokenizer: Any) -> Tokens:
        ends = (made.ids == tokenizer.specials[self.end]).nonzero().flatten()
        weight = made.weight.clone()
        weight[int(ends[-2]) + 1 if len(ends) > 1 else len(weight) :] = 0
        return replace(made, weight=weight)


@dataclass(frozen=True, kw_only=True)
class Cuts(Planted):
    """The slice `x[:max_length]`, applied to whatever is longer."""

    most: int = 100

    def spoil(self, made: Tokens, tokenizer: Any) -> Tokens:
        names = ("ids", "weight", "enter", "exit", "order", "position", "parent")
        return replace(made, **{name: getattr(made, name)[: self.most] for name in names})


@dataclass(frozen=True, kw_only=True)
class ShiftsTwice(Planted):
    """Labels shifted here, and again by whoever computes the loss."""

    def spoil(self, made: Tokens, tokenizer: Any) -> Tokens:
        return replace(made, parent=torch.where(made.parent > 0, made.parent - 1, made.parent))


@dataclass(frozen=True, kw_only=True)
class OtherInChat(Template):
    """A system prompt that only chat has."""

    def tokens(self, sample: Sample, tokenizer: Any, measure: Any, *, open: bool = False) -> Tokens:
        plainly = replace(self, system="You are a helpful assistant.") if open else self
        return Template.tokens(plainly, sample, tokenizer, measure, open=open)


@dataclass(frozen=True, kw_only=True)
class ShortensQuestions(Template):
    """Users' words cut to a few characters."""

    def tokens(self, sample: Sample, *args: Any, **kwargs: Any) -> Tokens:
        def turn(t: Turn) -> Turn:
            words = tuple(Text(p.text[:5]) if isinstance(p, Text) and t.role == "user" else p for p in t.parts)
            return replace(t, parts=words)

        return super().tokens(replace(sample, root=Node(tuple(map(turn, sample.root.turns)))), *args, **kwargs)


TEMPLATE_FAULTS: dict[str, type[Template]] = {
    "user-text-learnt": LearnsAll,
    "media-learnt": LearnsMedia,
    "extra-learnt": LearnsHeader,
    "end-not-learnt": NoEnd,
    "answer-not-learnt": MasksFirst,
    "label-shift": ShiftsTwice,
    "prompt-differs": OtherInChat,
    "text-cut": ShortensQuestions,
}


# ---- recipes -------------------------------------------------------------------------------------------------------
def recipe(
    *, template: type[Template] | None = None, train: tuple[str, ...] = (), native: bool = False, **parts: Any
) -> Recipe:
    """LLaVA-1.5 with one stage, whose template or parts may be other ones.

    `parts` are `connector`, `fusion` and `llm`: classes that take the place of the right ones. `native` keeps the
    pictures' own sizes, `train` names the parts that learn.
    """
    whole = load_recipe("llava15")[1]
    model = whole.model
    if native:
        model = replace(model, encoders={"image": CLIP_L.at(fit="native")})
    if "connector" in parts:
        model = replace(model, connectors={"image": parts["connector"].Config(depth=2)})
    if "fusion" in parts:
        model = replace(model, fusion=parts["fusion"].Config())
    if "llm" in parts:
        names = model.llm.to_json().keys() - {"type"}
        model = replace(model, llm=parts["llm"].Config(**{name: getattr(model.llm, name) for name in names}))
    chosen = whole.stages[-1]
    if train:
        chosen = replace(chosen, train={part: chosen.train[part] for part in train})
    if template is not None:
        names = chosen.template.to_json().keys() - {"type"}
        chosen = replace(chosen, template=template(**{name: getattr(chosen.template, name) for name in names}))
    return replace(whole, model=model, stages=(chosen,))
