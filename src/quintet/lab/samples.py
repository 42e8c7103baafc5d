"""Sample answers of a report: the picture, what was asked, what came, what was right."""

import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from quintet.lab.record import RunRecord

__all__ = ["gallery", "verdict"]

_MOST = 48
"""Samples on a page, over all tasks."""

_LONG = 60
"""Characters from which an answer is prose, and not set in bold."""

_NOTE = (
    "A few answers of every task, by lot from their ids, at most one right and one wrong of a kind: not in proportion. "
    "The scores above are. “Blind” is what the same question got with another picture."
)


def gallery(run: RunRecord) -> str:
    """Cards with buttons to see all, the right or the wrong ones; empty without an evaluation."""
    chosen = [(task, line) for task, lines in run.lines.items() for line in _chosen(lines)]
    # With many kinds, some of every task rather than all of the first.
    share = max(2, _MOST // max(1, len(run.lines)))
    kept: list[tuple[str, dict[str, Any]]] = []
    for task in run.lines:
        kept += [each for each in chosen if each[0] == task][:share]
    if not kept:
        return ""
    # Ids must differ between the runs of one page.
    name = f"pick-{escape(run.path.name)}"
    words = ("all", "right", "wrong")
    inputs = "".join(
        f'<input class=pick type=radio name="{name}" id="{name}-{w}"{" checked" if w == "all" else ""}>' for w in words
    )
    labels = "".join(f'<label for="{name}-{w}">{w}</label>' for w in words)
    cards = "".join(_card(run, task, line) for task, line in kept)
    return (
        f"<h2>Samples</h2><p class=note>{_NOTE}</p><div>{inputs}<div class=picks>{labels}</div>"
        f"<div class=samples>{cards}</div></div>"
    )


def verdict(scored: dict[str, Any]) -> bool | None:
    """Whether an answer was right, from how its metric judged it; None for measures that do not say.

    >>> verdict({"correct": True}), verdict({"accuracy": 0.3}), verdict({"hallucinated": ["red star"]})
    (True, False, False)
    """
    if "correct" in scored:
        return bool(scored["correct"])
    if "hallucinated" in scored:
        return not scored["hallucinated"]
    for name in ("accuracy", "similarity"):
        if name in scored:
            return float(scored[name]) >= 0.5
    return None


def _chosen(lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of each kind one line of each verdict, by lot: neighbours by id ask about the same picture."""
    seen: set[tuple[str, bool | None]] = set()
    for line in sorted(lines, key=lambda line: hashlib.sha256(str(line["id"]).encode()).digest()):
        key = (line["kind"], verdict(line["scored"]))
        if key not in seen:
            seen.add(key)
            yield line


def _card(run: RunRecord, task: str, line: dict[str, Any]) -> str:
    right = verdict(line["scored"])
    kind = "" if right is None else "right" if right else "wrong"
    mark = "" if right is None else "✓ " if right else "✗ "
    shown = "".join(run.picture(task, name).html(_boxes(line)) for name in line["media"])
    label = task if line["kind"] == "all" else f"{task} · {line['kind']}"
    answer = f"{mark}{line['output']}" if line["output"].strip() else f"{mark}(no answer)"
    blind = line.get("shuffled", {}).get("output")
    rows = [("answer", f"<span class=verdict>{escape(answer)}</span>"), ("truth", escape(_truth(line["truth"])))]
    rows += [("judged", escape(_judged(line["scored"])))] if right is None else []
    rows += [("blind", f"<span class=soft title='with another picture'>{escape(blind)}</span>")] if blind else []
    said = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    long = " long" if len(answer) > _LONG else ""
    return (
        f'<figure class="sample {kind}">{shown}<div class="said{long}"><div class=kind>{escape(label)}</div>'
        f"<div class=question>{escape(line['prompt'])}</div><dl>{said}</dl></div></figure>"
    )


def _truth(truth: Any) -> str:
    if isinstance(truth, dict):
        truth = truth.get("objects", list(truth.values()))
    if isinstance(truth, list):
        if truth and all(isinstance(x, float) for x in truth):
            return "[" + ", ".join(f"{x:.2f}" for x in truth) + "]"
        # Captions have several references; one of them shows what was meant.
        long = [x for x in truth if isinstance(x, str) and len(x) > 40]
        return str(long[0]) if long else ", ".join(map(str, truth))
    return str(truth)


def _judged(scored: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in scored.items())


def _boxes(line: dict[str, Any]) -> str:
    """The true box and the answered one, for tasks whose truth is a box in shares of the picture."""
    truth, said = line["truth"], line["scored"].get("read_as")
    if not _is_box(truth):
        return ""
    return _rectangle(truth, "truth") + (_rectangle(said, "answer") if _is_box(said) else "")


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(x, int | float) for x in value)


def _rectangle(box: Sequence[float], kind: str) -> str:
    x, y, right, bottom = box
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{max(0.0, right - x)}" height="{max(0.0, bottom - y)}"/>'
