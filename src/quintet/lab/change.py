"""What an alignment changed: the same items before and after, hallucination beside what must not be lost.

    hallucination   CHAIR-i with recall and words · POPE with recall      on held-out pictures of Scenes
    capability      VQA · captions (CIDEr-D) · answers in the form that was asked for · perplexity of text alone

A capability that falls by more than a share of what it was marks the run as failed: a model that says nothing makes
nothing up either. Every difference has its interval, of items drawn again, the same before and after
(`quintet.evaluation.bootstrap`).
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quintet.data.collate import collate
from quintet.data.scenes import Truth, caption, read_truth
from quintet.data.scenes.questions import CANDIDATES
from quintet.evaluation.bootstrap import percentiles, resampled
from quintet.evaluation.metrics.metric import Floats, Metric
from quintet.evaluation.run import evaluate
from quintet.evaluation.tasks.scenes import scenes_task
from quintet.lab.compare.runs import Asked
from quintet.lab.compare.table import judge
from quintet.model.checkpoint import read_json, write_json
from quintet.serving.engine import Engine
from quintet.values import Node, Sample, Text, Turn

__all__ = ["CAPABILITIES", "Change", "Row", "change", "measure", "measure_text", "perplexity", "text"]

HALLUCINATION = ("scenes.chair", "scenes.pope")
CAPABILITIES = ("scenes.vqa", "scenes.caption")
TEXTS, QUESTIONS = 100, 3
"""Pictures told in words that text alone is measured on, and questions about each."""

Progress = Callable[[str, int, int], None]
Value = Callable[[Floats], Floats]
"""The score of totals float[..., K]."""


@dataclass(frozen=True)
class Row:
    """One measure, before and after."""

    name: str
    before: float
    after: float
    higher_is_better: bool | None
    """None where neither is."""
    interval: tuple[float, float]
    """95 %, of the difference."""
    guarded: bool = False
    lost: bool = False
    """A capability that fell by more than the margin."""

    @property
    def verdict(self) -> str:
        """`lost`, `kept`, or that nothing could be lost; empty where nothing is guarded."""
        if not self.guarded:
            return ""
        return "lost" if self.lost else "nothing to lose" if self.higher_is_better and not self.before else "kept"


@dataclass(frozen=True)
class Change:
    """What an alignment changed."""

    rows: tuple[Row, ...]
    margin: float

    @property
    def failed(self) -> bool:
        """Whether a capability was lost."""
        return any(row.lost for row in self.rows)

    @property
    def mute(self) -> bool:
        """Whether the model had nothing to lose: it could not answer before."""
        return all(row.verdict == "nothing to lose" for row in self.rows if row.guarded and row.higher_is_better)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = [asdict(row) | {"verdict": row.verdict} for row in self.rows]
        return {"failed": self.failed, "margin": self.margin, "mute": self.mute, "rows": rows}


def measure(engine: Engine, out: Path, *, scenes: Path, limit: int, progress: Progress) -> None:
    """Asks everything and writes `out/eval/`; what is there already, of as many items, is not asked again."""
    for name in (*HALLUCINATION, *CAPABILITIES):
        place = out / "eval" / f"{name}.json"
        if place.exists() and read_json(place)["counts"]["items"] == limit:
            continue
        task = scenes_task(name, scenes)
        evaluate(
            engine.answers(task), task, read=engine.processor.regions, limit=limit, out=out,
            progress=lambda done, total, name=name: progress(name, done, total),
        )  # fmt: skip
    measure_text(engine, out, scenes=scenes)


def measure_text(engine: Engine, out: Path, *, scenes: Path) -> None:
    """Writes `out/eval/text.json`: the perplexity of text alone and what it is of, unless it is there."""
    place = out / "eval" / "text.json"
    # Files of before have no items, and no interval can be made of them.
    if not place.exists() or "items" not in read_json(place):
        items = told(engine, scenes)
        write_json(place, {"perplexity": float(perplexity(np.sum(items, axis=0))), "items": items})


def text(folder: Path) -> Floats:
    """What `measure_text` wrote, float[N, 2]: nats and tokens of the answers about each picture."""
    return np.array(read_json(folder / "eval" / "text.json")["items"], dtype=np.float64)


def perplexity(sums: Floats) -> Floats:
    """Of total nats and tokens float[..., 2]: e to the mean negative log-likelihood per token."""
    return np.exp(sums[..., 0] / sums[..., 1])


def change(before: Path, after: Path, engine: Engine, *, scenes: Path, margin: float) -> Change:
    """Compares two folders that `measure` has filled."""
    rows: list[Row] = []
    for name in (*HALLUCINATION, *CAPABILITIES):
        task = scenes_task(name, scenes)
        asked = Asked(task, {item.id: item for item in task.items()}, 0)
        found = [judge(folder, asked, engine.processor.template) for folder in (before, after)]
        one, two = (each.own for each in found if each is not None)
        row = _row(name, one, two, task.metric.value, task.higher_is_better)
        rows.append(_guarded(row, margin) if name in CAPABILITIES else row)
        rows += [
            _row(f"{name}: {key}", one, two, partial(_beside, task.metric, key), None if key == "words" else True)
            for key in task.metric.measures(one.sum(axis=0))
            if key in ("recall", "words")
        ]
    one, two = map(_in_form, (before, after))
    rows.append(_guarded(_row("answers in form", one, two, lambda sums: sums[..., 0] / sums[..., 1], True), margin))
    rows.append(_guarded(_row("perplexity of text", text(before), text(after), perplexity, False), margin))
    return Change(tuple(rows), margin)


@torch.no_grad()
def told(engine: Engine, scenes: Path) -> list[list[float]]:
    """Of held-out pictures told in words and not shown: the nats that answers to questions cost, and the tokens."""
    items = []
    for sample in _told(read_truth(scenes / "test.truth.jsonl")[:TEXTS]):
        batch = collate([[engine.processor.tokens(sample)]], {}, pad=engine.processor.tokenizer.pad_id)
        batch = batch.to(engine.device)
        logps = engine.model.target_logps(engine.model(batch, only_targets=True), batch.targets)
        items.append([-float(logps.sum()), float(len(logps))])
    return items


def _told(truths: Sequence[Truth]) -> Iterator[Sample]:
    """A picture in words, and its first questions."""
    for truth in truths:
        rng = random.Random(truth.image.stem)
        said = [q for q in truth.questions if not q.regions][:QUESTIONS]
        turns: list[Turn] = []
        for number, question in enumerate(said):
            words = "" if number else f"{caption(truth.scene, rng, 'long')}\n"
            turns.append(Turn("user", (Text(f"{words}{question.text}"),)))
            turns.append(Turn("assistant", (Text(question.answer),)))
        if turns:
            yield Sample(Node(tuple(turns)))


def _row(name: str, one: Floats, two: Floats, value: Value, higher_is_better: bool | None) -> Row:
    before, after = (float(value(sums.sum(axis=0))) for sums in (one, two))
    drawn = resampled([[one], [two]], value)
    return Row(name, before, after, higher_is_better, percentiles(drawn[1] - drawn[0]))


def _beside(metric: Metric, key: str, sums: Floats) -> Floats:
    """What a metric reports beside its score, of totals float[K] or float[R, K]."""
    return np.array([metric.measures(total)[key] for total in np.atleast_2d(sums)]).reshape(sums.shape[:-1])


def _guarded(row: Row, margin: float) -> Row:
    """The row as one of a capability."""
    fall = row.before - row.after if row.higher_is_better else row.after - row.before
    return replace(row, guarded=True, lost=fall > margin * row.before)


def _in_form(folder: Path) -> Floats:
    """Of each answer to a question of Scenes, whether it is one of those that its kind of question can have; and 1."""
    lines = (folder / "eval" / "scenes.vqa.jsonl").read_text(encoding="utf-8").splitlines()
    found: Sequence[Mapping[str, Any]] = [json.loads(line) for line in lines]
    return np.array(
        [[line["output"].strip().rstrip(".").lower() in CANDIDATES[line["kind"]], 1.0] for line in found],
        dtype=np.float64,
    )
