"""Runs a task on a model, with the controls that say what its score is worth.

The model is a function from prompts to answers. Nothing here depends on how prompts are batched or ordered: items are
ordered by id, answers are put back, and what is drawn by lot is drawn from ids, media and the seed.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintet.errors import DataError
from quintet.evaluation.bootstrap import interval
from quintet.evaluation.metrics.boxes import write_boxes
from quintet.evaluation.shuffle import shuffled
from quintet.evaluation.task import Item, Score, Task
from quintet.log import logger
from quintet.values import Region, Sample

__all__ = ["Answer", "Output", "Result", "ask", "evaluate", "scored"]

log = logger(__name__)

Answer = Callable[[list[Sample]], Sequence[str]]
"""Prompts (a user's turn of media and text, no answer) → raw answers, one each and in the same order."""

Read = Callable[[Sample, str], list[Region]]
"""A prompt and its answer → the regions that the answer names, in shares of the picture."""

Progress = Callable[[int, int], None]
"""Prompts done, prompts in all."""


@dataclass(frozen=True, slots=True)
class Output:
    """What came back for one item: the raw text, and the fault if the model could not be asked."""

    text: str
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A task's score with its interval and controls, as `RUN/eval/<task>.json` holds it."""

    task: str
    version: str
    metric: str
    higher_is_better: bool
    score: float
    interval: tuple[float, float]
    """95 %, bootstrap over items."""
    n: int
    """Items that the score is of: those of the task's headline kind, where it has one, of `counts["items"]` asked."""
    controls: dict[str, float | None]
    """`majority`: the best answer that sees no picture. `shuffled`: the same model with other items' media; None
    where no item has another's to take."""
    kinds: dict[str, float]
    measures: dict[str, float]
    beside: str
    """The one of `measures` that is printed beside the score; empty for none."""
    control_kinds: dict[str, dict[str, float]]
    majority_answers: dict[str, str]
    counts: dict[str, int]
    """`items` asked, `empty` answers, `failed` (could not be asked), `shuffled` (items of that control)."""
    items_sha256: str
    """Fingerprint of ids, prompts and truths: results with different ones are of different data."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self) | {"interval": list(self.interval)}


def evaluate(
    answer: Answer,
    task: Task,
    *,
    read: Read | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    out: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Result:
    """Asks `answer` everything in `task` twice: with each item's own media, then with another's.

    `read` finds the regions in an answer, as the model's template spells them; without it they are looked for as
    `[x1, y1, x2, y2]`. `limit` keeps at most that many items, drawn by id and seed. With a run's folder as `out`,
    writes `out/eval/<task>.json` and `.jsonl`, one line an item.

    Raises:
        DataError: the task's data cannot be read, or no item is left to score. An item whose media cannot be read
            is counted in `failed` and judged as an empty answer; where items are each other's candidates
            (`Task.together`) it is an error.
    """
    start = time.monotonic()
    items = _kept(task, limit, seed)
    swapped = shuffled(items, seed=seed)
    if task.together:
        own, others = _ranked(answer, items), _ranked(answer, list(swapped.values()))
        progress(len(own) + len(others), len(own) + len(others))
    else:
        outputs = ask(answer, [*items, *swapped.values()], batch_size=batch_size, progress=progress)
        own, others = outputs[: len(items)], outputs[len(items) :]
    score = scored(task, items, [each.text for each in own], read)
    blind = scored(task, list(swapped.values()), [each.text for each in others], read) if swapped else None
    majority, majority_answers = task.majority(items)
    result = Result(
        task=task.name,
        version=task.version,
        metric=task.metric.name,
        higher_is_better=task.higher_is_better,
        score=score.score,
        interval=interval(score.sums, task.metric.value, seed=seed),
        n=score.n,
        controls={"majority": majority.score, "shuffled": blind.score if blind and blind.n else None},
        kinds=score.kinds,
        measures=score.measures,
        beside=task.metric.beside,
        control_kinds={"majority": majority.kinds, "shuffled": blind.kinds if blind else {}},
        majority_answers=majority_answers,
        counts=_counts(own) | {"shuffled": len(swapped)},
        items_sha256=_fingerprint(items),
        seconds=time.monotonic() - start,
    )
    _warn(result)
    if out is not None:
        lines = [_line(*each) for each in zip(items, own, score.details, strict=True)]
        for i, (index, item) in enumerate(swapped.items()):
            lines[index]["shuffled"] = {"media": _names(item), "output": others[i].text}
        _write(out / "eval" / f"{task.name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        _write(out / "eval" / f"{task.name}.json", json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n")
    return result


def ask(
    answer: Answer, items: Sequence[Item], *, batch_size: int, progress: Progress = lambda done, total: None
) -> list[Output]:
    """One output for each item, in their order. Prompts of similar length are asked together.

    A batch that holds unreadable media is asked again one by one, so that only what is at fault is lost.
    """
    assert batch_size > 0, f"batch_size is {batch_size}"
    outputs = [Output("")] * len(items)
    order = sorted(range(len(items)), key=lambda i: (len(items[i].prompt), i))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        try:
            answered = _answers(answer, [items[i] for i in batch])
        except DataError:
            answered = [_alone(answer, items[i]) for i in batch]
        for i, output in zip(batch, answered, strict=True):
            outputs[i] = output
        progress(start + len(batch), len(items))
    return outputs


def _ranked(answer: Answer, items: Sequence[Item]) -> list[Output]:
    """All items at once. What cannot be read is an error: asked alone, an item would have itself as its candidate."""
    return _answers(answer, list(items)) if items else []


def _answers(answer: Answer, items: list[Item]) -> list[Output]:
    texts = answer([item.sample() for item in items])
    assert len(texts) == len(items), f"{len(texts)} answers to {len(items)} prompts"
    return [Output(text) for text in texts]


def _alone(answer: Answer, item: Item) -> Output:
    try:
        return _answers(answer, [item])[0]
    except DataError as error:
        log.warning("%s could not be asked: %s", item.id, error)
        return Output("", fault=str(error))


def scored(task: Task, items: Sequence[Item], outputs: Sequence[str], read: Read | None) -> Score:
    """Judges outputs; with `read`, those of a task that asks for regions by what it finds in them."""
    if read is not None and task.metric.of_regions:
        outputs = [write_boxes(read(item.sample(), text)) for item, text in zip(items, outputs, strict=True)]
    return task.score(items, outputs)


def _kept(task: Task, limit: int | None, seed: int) -> list[Item]:
    """At most `limit` items, by lot from their ids: the same ones whatever file or order they came in."""
    items = task.items()
    if limit is not None and limit < len(items):
        drawn = sorted(items, key=lambda item: hashlib.sha256(f"{seed}:{item.id}".encode()).digest())
        items = sorted(drawn[:limit], key=lambda item: item.id)
    if task.headline and all(item.kind != task.headline for item in items):
        message = f"{task.name} has no item of kind {task.headline!r} among {len(items)}; raise the limit"
        raise DataError("no-items", message)
    return items


def _counts(outputs: Sequence[Output]) -> dict[str, int]:
    return {
        "items": len(outputs),
        "empty": sum(not output.text.strip() for output in outputs),
        "failed": sum(bool(output.fault) for output in outputs),
    }


def _warn(result: Result) -> None:
    """Says in the log that answers are empty: a score of silence may look like one."""
    empty, asked, failed = (result.counts[name] for name in ("empty", "items", "failed"))
    if empty:
        of_them = f"; {failed} could not be asked" if failed else ""
        log.warning("%s: %d of %d answers are empty%s", result.task, empty, asked, of_them)


def _fingerprint(items: Sequence[Item]) -> str:
    facts = [[item.id, item.kind, item.prompt, item.truth] for item in items]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _line(item: Item, output: Output, how: dict[str, Any]) -> dict[str, Any]:
    line = {"id": item.id, "kind": item.kind, "media": _names(item), "prompt": item.prompt, "truth": item.truth}
    fault = {"fault": output.fault} if output.fault else {}
    return line | {"output": output.text, "scored": how} | fault


def _names(item: Item) -> list[str]:
    return [medium.ref.name for medium in item.media]


def _write(path: Path, text: str) -> None:
    """Writes beside `path` and renames: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(path)
