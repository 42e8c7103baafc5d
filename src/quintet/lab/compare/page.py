"""compare.html: the comparison on one page that loads nothing."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from quintet.evaluation.metrics.metric import beside
from quintet.lab.compare import words
from quintet.lab.differs import said
from quintet.lab.page import page, table
from quintet.lab.plots import Mark, scatter

__all__ = ["html"]

_LEGEND = (
    "<div class=legend><span><i class=dot></i>score, mean over seeds</span><span><i class=ci></i>95 % interval over "
    "items and seeds</span><span><i class='dot hollow'></i>same model, pictures shuffled</span></div>"
)


def html(found: words.Found) -> str:
    """The page."""
    title = words.title(found)
    sections = (_scores, _failures, _against, _charts, _differs, _stages, _facts)
    body = "\n".join([_head(found, title), *(piece for section in sections for piece in section(found))])
    return page(f"{title} · Quintet", body, broad=True)


def _head(found: words.Found, title: str) -> str:
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in words.notes(found))
    return f"<h1>{escape(title)}</h1><p class=soft>{escape(words.conditions(found))}</p><div class=card>{notes}</div>"


def _charts(found: words.Found) -> Iterator[str]:
    costs = {
        "FLOPs per sample, forward and backward": lambda row: row.get("flops_per_sample"),
        "seconds of training": lambda row: row["spent"] and row["spent"]["seconds"],
    }
    for x, cost in costs.items():
        charts = [_chart(found, task, x, cost) for task in words.tasks_of(found)]
        drawn = "".join(f"<div class=card>{chart}</div>" for chart in charts if chart)
        if drawn:
            yield f"<h2>Score against {escape(x)}</h2>{_LEGEND}<div class=grid2>{drawn}</div>"


def _chart(found: words.Found, task: str, x: str, cost: Any) -> str:
    marks, metric, up = [], "", True
    for row in found["rows"]:
        score, at = row["scores"].get(task), cost(row)
        if score is None or not at:
            continue
        metric, up = score["metric"], score["higher_is_better"]
        control = score["shuffled"]["score"] if score["shuffled"] else None
        name = row["recipe"] + (" (without its experts)" if words.told_in_words(row) else "")
        marks.append(Mark(name, at, score["score"], *score["interval"], control=control))
    y = metric if up else f"{metric}, lower is better"
    return scatter(marks, title=task, x=x, y=y, higher_is_better=up)


def _scores(found: words.Found) -> Iterator[str]:
    tasks = words.tasks_of(found)
    best = words.best_first(found)
    rows = [[f"<b>{escape(row['recipe'])}</b>", *(_score(row, task) for task in tasks)] for row in best]
    heads = ["recipe", *map(escape, tasks)]
    note = (
        "<p class=note>Under a score its 95 % interval, and behind the slash the score with the pictures shuffled; "
        "green where that control's interval does not touch the score's.</p>"
    )
    body = table(heads, rows, numbers=range(1, len(heads)))
    yield f"<h2>Scores</h2><div class='card plain'>{note}{body}</div>"
    heads = words.heads(found)
    rows = [[f"<b>{escape(row['recipe'])}</b>", *map(escape, words.facts(row, found)[1:])] for row in best]
    body = table(heads, rows, numbers=range(1, len(heads)))
    yield f"<h2>What it took</h2><div class='card plain'>{body}</div>"


def _score(row: Mapping[str, Any], task: str) -> str:
    found = row["scores"].get(task)
    if found is None:
        return escape(words.score(row, task))
    low, high = found["interval"]
    mark = " class=better" if found["beats_shuffled"] else " class=worse"
    control = words.controls(row, task)
    rest = f"{beside(found)} {low:.2f} – {high:.2f}{escape(control)}"
    return f"<b{mark}>{found['score']:.3f}</b><small class=soft>{rest}</small>"


def _failures(found: words.Found) -> Iterator[str]:
    rows = [[f"<b>{escape(row['recipe'])}</b>", escape(words.failed(row))] for row in found["rows"] if row["failed"]]
    if rows:
        yield f"<h2>What failed</h2><div class=card>{table(['recipe', 'why'], rows)}</div>"


def _against(found: words.Found) -> Iterator[str]:
    tasks, base = words.tasks_of(found), found["baseline"]
    rows = []
    for row in words.best_first(found):
        made = words.versus(found, row["recipe"])
        if row["recipe"] == base or not made:
            continue
        better = {task: next(iter(_higher(found, task)), True) for task in tasks}
        cells = []
        for task in tasks:
            if task not in made:
                cells.append("–")
                continue
            value, low, high = made[task]
            kind = "" if low <= 0 <= high else " class=better" if (value > 0) == better[task] else " class=worse"
            cells.append(f"<b{kind}>{value:+.3f}</b><small class=soft> {low:+.2f} – {high:+.2f}</small>")
        rows.append([f"<b>{escape(row['recipe'])}</b>", *cells])
    if rows:
        heads = ["recipe", *map(escape, tasks)]
        body = table(heads, rows, numbers=range(1, len(heads)))
        note = "<p class=note>Paired by item and seed; coloured where the 95 % interval does not hold 0.</p>"
        yield f"<h2>Against {escape(base)}, on the same items</h2><div class='card plain'>{note}{body}</div>"


def _higher(found: words.Found, task: str) -> Iterator[bool]:
    return (row["scores"][task]["higher_is_better"] for row in found["rows"] if task in row["scores"])


def _differs(found: words.Found) -> Iterator[str]:
    pieces = []
    for row in found["rows"]:
        if row["recipe"] == found["baseline"]:
            continue
        lines = said(row["differs"])
        items = "".join(f"<li><code>{escape(line)}</code></li>" for line in lines) or "<li>nothing</li>"
        whole = escape(json.dumps(row["differs"], indent=1, ensure_ascii=False))
        pieces.append(
            f"<details><summary>{escape(row['recipe'])}: {len(lines)} settings</summary><ul>{items}</ul>"
            f"<details><summary>as JSON</summary><pre>{whole}</pre></details></details>"
        )
    if pieces:
        yield f"<h2>What differs from {escape(found['baseline'])}</h2><div class=card>{''.join(pieces)}</div>"


def _stages(found: words.Found) -> Iterator[str]:
    rows = []
    for row in found["rows"]:
        for name, stage in row["stages"].items():
            spent = (
                [f"{stage['steps']:,}", f"{stage['samples']:,}", words.amount(stage["tokens"]),
                 words.amount(stage["flops"]), words.duration(stage["seconds"]), f"{stage['loss']:.3f}",
                 f"{stage['dropped']:,}"]
                if "steps" in stage else ["–"] * 7
            )  # fmt: skip
            trains = escape(", ".join(stage["trains"]))
            rows.append([f"<b>{escape(row['recipe'])}</b>", escape(name), trains, f"{stage['trainable']:,}", *spent])
    heads = [
        "recipe",
        "stage",
        "trains",
        "parameters",
        "steps",
        "samples",
        "tokens",
        "FLOPs",
        "time",
        "loss",
        "dropped",
    ]
    yield f"<h2>Stages</h2><div class=card>{table(heads, rows, numbers=range(3, len(heads)))}</div>"


def _facts(found: words.Found) -> Iterator[str]:
    held = found["conditions"] | {"seeds": found["seeds"]} | found["machine"]
    rows = [
        [escape(key), escape(value if isinstance(value, str) else json.dumps(value))] for key, value in held.items()
    ]
    body = table(["condition", "value"], rows)
    yield f"<h2>Conditions</h2><div class=card><p><code>{escape(found['command'])}</code></p>{body}</div>"
