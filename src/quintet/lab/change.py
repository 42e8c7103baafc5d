"""What an alignment changed: the same items before and after, hallucination beside what must not be lost.

    hallucination   CHAIR with recall and length, POPE, AMBER, MMHal      on held-out pictures of Scenes
    capability      VQA · captions (CIDEr-D) · answers in the form that was asked for · perplexity of text alone

A capability that falls by more than a share of what it was marks the run as failed: a model that says nothing makes
nothing up either. Intervals are of paired items (`quintet.evaluation.bootstrap`).
"""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from quintet.data.collate import collate
from quintet.data.scenes import Truth, caption, read_truth
from quintet.data.scenes.questions import CANDIDATES
from quintet.evaluation.bootstrap import percentiles, resampled
from quintet.evaluation.metrics.metric import Floats
from quintet.evaluation.run import evaluate
from quintet.evaluation.task import Task
from quintet.evaluation.tasks.scenes import scenes_task
from quintet.lab.compare.runs import Asked
from quintet.lab.compare.table import judge
from quintet.model.checkpoint import read_json, write_json
from quintet.serving.engine import Engine
from quintet.values import Node, Sample, Text, Turn

__all__ = ["CAPABILITIES", "Change", "Row", "change", "measure"]

HALLUCINATION = ("scenes.chair", "scenes.pope")
CAPABILITIES = ("scenes.vqa", "scenes.caption")
TEXTS, QUESTIONS = 100, 3
"""Pictures told in words that text alone is measured on, and questions about each."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Row:
    """One measure, before and after."""

    name: str
    before: float
    after: float
    higher_is_better: bool | None
    """None where neither is."""
    interval: tuple[float, float] | None
    """95 %, of the difference; None where items cannot be drawn again."""
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
    place = out / "eval" / "text.json"
    if not place.exists():
        write_json(place, {"perplexity": perplexity(engine, scenes)})


def change(before: Path, after: Path, engine: Engine, *, scenes: Path, margin: float) -> Change:
    """Compares two folders that `measure` has filled."""
    rows: list[Row] = []
    for name in (*HALLUCINATION, *CAPABILITIES):
        task = scenes_task(name, scenes)
        asked = Asked(task, {item.id: item for item in task.items()}, 0)
        found = [judge(folder, asked, engine.processor.template) for folder in (before, after)]
        one, two = (each for each in found if each is not None)
        guarded = name in CAPABILITIES
        rows.append(_row(name, task, one.own, two.own, guarded=guarded, margin=margin))
        rows += [
            Row(
                f"{name}: {key}",
                one.result["measures"][key],
                two.result["measures"][key],
                None if key == "words" else True,
                None,
            )
            for key in ("recall", "words")
            if key in one.result["measures"]
        ]
    kept = [_in_form(folder) for folder in (before, after)]
    one, two = map(_mean, kept)
    rows.append(_guarded(Row("answers in form", one, two, True, _paired(*kept)), margin))
    one, two = (float(read_json(folder / "eval" / "text.json")["perplexity"]) for folder in (before, after))
    rows.append(_guarded(Row("perplexity of text", one, two, False, None), margin))
    return Change(tuple(rows), margin)


@torch.no_grad()
def perplexity(engine: Engine, scenes: Path) -> float:
    """Of the answers to questions about held-out pictures that are told in words and not shown: text alone.

    e to the mean negative log-likelihood per token.
    """
    total, count = 0.0, 0
    for sample in _told(read_truth(scenes / "test.truth.jsonl")[:TEXTS]):
        batch = collate([[engine.processor.tokens(sample)]], {}, pad=engine.processor.tokenizer.pad_id)
        batch = batch.to(engine.device)
        logps = engine.model.target_logps(engine.model(batch, only_targets=True), batch.targets)
        total, count = total - float(logps.sum()), count + len(logps)
    return math.exp(total / count)


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


def _row(name: str, task: Task, one: Floats, two: Floats, *, guarded: bool, margin: float) -> Row:
    value = task.metric.value
    before, after = (float(value(sums.sum(axis=0))) for sums in (one, two))
    drawn = resampled([[one], [two]], value)
    made = Row(name, before, after, task.higher_is_better, percentiles(drawn[1] - drawn[0]))
    return _guarded(made, margin) if guarded else made


def _guarded(row: Row, margin: float) -> Row:
    """The row as one of a capability."""
    fall = row.before - row.after if row.higher_is_better else row.after - row.before
    return Row(row.name, row.before, row.after, row.higher_is_better, row.interval, True, fall > margin * row.before)


def _in_form(folder: Path) -> list[float]:
    """Of each answer to a question of Scenes, whether it is one of those that its kind of question can have."""
    lines = (folder / "eval" / "scenes.vqa.jsonl").read_text(encoding="utf-8").splitlines()
    found: Sequence[Mapping[str, Any]] = [json.loads(line) for line in lines]
    return [float(line["output"].strip().rstrip(".").lower() in CANDIDATES[line["kind"]]) for line in found]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _paired(one: Sequence[float], two: Sequence[float]) -> tuple[float, float]:
    import numpy as np

    sums = [np.stack([np.array(each), np.ones(len(each))], axis=1) for each in (one, two)]
    drawn = resampled([[each] for each in sums], lambda total: total[..., 0] / total[..., 1])
    return percentiles(drawn[1] - drawn[0])
