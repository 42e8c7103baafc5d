"""Faults of the field, planted one at a time: in a small data file, a template, a part of the model, or the pipeline.

Everything here that is wrong is wrong on purpose. `clean_rows` and `recipe` are right.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from quintet.components.connectors.mlp import Mlp
from quintet.components.encoders.presets import CLIP_L
from quintet.components.fusion.token import TokenFusion
from quintet.components.llms.decoder import Decoder
from quintet.components.roles import Around, Context, plain
from quintet.data.collate import collate
from quintet.data.template import Template
from quintet.lab.run import load_recipe
from quintet.recipes._recipe import Recipe
from quintet.values import Batch, Features, Layout, Node, Sample, Targets, Text, Tokens, Turn

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
    "too-long": (2, _say(2, 1, "a blue square, " * 100)),
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


# ---- faults in parts -----------------------------------------------------------------------------------------------
class Leaky(Decoder):
    """Attention that ignores intervals: causal over the whole row."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        def build(self, *, vocab: int | None = None) -> "Leaky":
            return Leaky(self if vocab is None else replace(self, vocab=vocab))

    def forward(self, embeds: Tensor, ctx: Context, around: Around = plain) -> Tensor:
        whole = torch.zeros_like(ctx.enter)
        return super().forward(embeds, replace(ctx, enter=whole, exit=whole + 1), around)


class Placed(Decoder):
    """Embeddings that know the column of the row."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        def build(self, *, vocab: int | None = None) -> "Placed":
            return Placed(self if vocab is None else replace(self, vocab=vocab))

    def forward(self, embeds: Tensor, ctx: Context, around: Around = plain) -> Tensor:
        return super().forward(embeds + ctx.order[..., None].sin(), ctx, around)


class Thaws(Decoder):
    """A part that unfreezes itself."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        def build(self, *, vocab: int | None = None) -> "Thaws":
            return Thaws(self if vocab is None else replace(self, vocab=vocab))

    def forward(self, embeds: Tensor, ctx: Context, around: Around = plain) -> Tensor:
        self.norm.requires_grad_(True)
        return super().forward(embeds, ctx, around)


class Unused(Mlp):
    """A parameter that no forward touches."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Mlp.Config):
        def build(self, *, d_in: int, d_out: int) -> "Unused":
            return Unused(self, d_in=d_in, d_out=d_out)

    def __init__(self, config: Config, *, d_in: int, d_out: int) -> None:
        super().__init__(config, d_in=d_in, d_out=d_out)
        self.spare = nn.Linear(d_in, d_out)


class DropsLast(Mlp):
    """Makes one feature less than its layout says."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Mlp.Config):
        def build(self, *, d_in: int, d_out: int) -> "DropsLast":
            return DropsLast(self, d_in=d_in, d_out=d_out)

    def forward(self, features: Features) -> Features:
        kept = [piece[:-1] for piece in super().forward(features).split()]
        return Features(torch.cat(kept), tuple(Layout((len(piece),)) for piece in kept))


class SwapsItems(Mlp):
    """Gives each medium's features to the other: totals agree, items do not."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Mlp.Config):
        def build(self, *, d_in: int, d_out: int) -> "SwapsItems":
            return SwapsItems(self, d_in=d_in, d_out=d_out)

    def forward(self, features: Features) -> Features:
        made = super().forward(features)
        return Features(torch.cat(made.split()[::-1]), made.layouts[::-1])


class OneMore(TokenFusion):
    """Reserves one column too many."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TokenFusion.Config):
        def columns(self, num_features: int) -> int:
            return num_features + 1


class Spills(TokenFusion):
    """Adds what the media are about to every column of their own sample, also to those before."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TokenFusion.Config):
        def build(self, *, dim: int, depth: int) -> "Spills":
            return Spills()

    def inputs(self, embeds: Tensor, features: Mapping[str, Features], batch: Batch) -> Tensor:
        written = super().inputs(embeds, features, batch)
        for kind, found in features.items():
            where = batch.media[kind]
            for n, piece in enumerate(found.split()):
                own = batch.enter[where.row[n]] == where.enter[n]
                written = written.index_put((where.row[n], own), written[where.row[n], own] + piece.mean(0))
        return written


class Blind(TokenFusion):
    """Forgets to write the features."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TokenFusion.Config):
        def build(self, *, dim: int, depth: int) -> "Blind":
            return Blind()

    def inputs(self, embeds: Tensor, features: Mapping[str, Features], batch: Batch) -> Tensor:
        return embeds


# ---- faults in the pipeline ----------------------------------------------------------------------------------------
def collates_shifted(*args: Any, **kwargs: Any) -> Batch:
    """`collate`, and then the shift once more."""
    batch = collate(*args, **kwargs)
    t = batch.targets
    return replace(batch, targets=Targets((t.slots - 1).clamp(min=0), t.ids, t.weights, t.node))


def collates_fewer(*args: Any, **kwargs: Any) -> Batch:
    """`collate` without the last target."""
    batch = collate(*args, **kwargs)
    t = batch.targets
    return replace(batch, targets=Targets(t.slots[:-1], t.ids[:-1], t.weights[:-1], t.node[:-1]))


def learns_shifted(model: Any, batch: Batch) -> tuple[Tensor, float]:
    """The objective, with the shift once more."""
    t = batch.targets
    moved = Targets((t.slots - 1).clamp(min=0), t.ids, t.weights, t.node)
    return -torch.dot(model.target_logps(model(batch), moved), t.weights), t.count


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
