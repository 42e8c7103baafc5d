"""The sections of a report, each a function from a run's record to HTML: empty where the run has nothing to say."""

import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from quintet.errors import ConfigError
from quintet.evaluation.metrics.metric import beside
from quintet.lab.page import table
from quintet.lab.plots import curve, number
from quintet.lab.record import RunRecord
from quintet.lab.samples import gallery
from quintet.lab.show import Shown, show
from quintet.model.checkpoint import read_json
from quintet.recipes._recipe import Recipe

__all__ = ["of_run", "overview"]


def of_run(run: RunRecord) -> str:
    """Everything about one run."""
    shown = _shown(run)
    return "\n".join(
        [
            _head(run, shown),
            _change(run),
            _scores(run),
            _kinds(run),
            _learning(run),
            _stages(run, shown),
            gallery(run),
            _cost(run),
            _facts(run),
        ]
    )


def overview(runs: Sequence[RunRecord]) -> str:
    """Several runs side by side: their scores, task by task."""
    tasks = sorted({r["task"] for run in runs for r in run.results})
    rows = []
    for run in runs:
        by_task = {r["task"]: r for r in run.results}
        scores = [_with_range(by_task[t]) if t in by_task else "–" for t in tasks]
        rows.append([f"<b>{escape(run.path.name)}</b> <span class=soft>{escape(run.name)}</span>", *scores])
    heads = ["run", *map(escape, tasks)]
    return f"<h1>{len(runs)} runs</h1><div class=card>{table(heads, rows, numbers=range(1, len(heads)))}</div>"


# ---- the head ----------------------------------------------------------------------------------------------------
def _head(run: RunRecord, shown: Shown | None) -> str:
    paper = run.facts.get("recipe", {}).get("paper", {})
    line = ""
    if paper:
        line = (
            f"{paper['title']} · {paper['authors']} {paper['year']} · {paper.get('url') or 'arXiv:' + paper['arxiv']}"
        )
    scale = f" <span class=soft>at {escape(str(run.facts['scale']))} scale</span>" if "scale" in run.facts else ""
    tiles = [(f"{r['score']:.3f}", f"{r['task']}, {r['metric']}{beside(r)}") for r in run.results][:4]
    seconds = sum(_seconds(rows) for rows in run.steps.values())
    if seconds:
        tiles.append((_time(seconds), "training"))
    if shown is not None:
        tiles.append((_count(shown.parameters), "parameters"))
    drawn = "".join(f"<div class=tile><b>{value}</b><span>{escape(what)}</span></div>" for value, what in tiles)
    return f"<h1>{escape(run.name)}{scale}</h1><p class=soft>{escape(line)}</p><div class=tiles>{drawn}</div>"


def _change(run: RunRecord) -> str:
    """What an alignment changed, and whether a capability was lost."""
    place = run.path / "change.json"
    if not place.exists():
        return ""
    found = read_json(place)
    start = escape(str(run.facts.get("from", {}).get("path", "the model before")))
    verdict = "failed: a capability was lost" if found["failed"] else "no capability was lost"
    rows = []
    for row in found["rows"]:
        low, high = row["interval"] or ("", "")
        interval = f"{low:+.3f} – {high:+.3f}" if row["interval"] else ""
        name = escape(row["name"]) + (" (lower is better)" if row["higher_is_better"] is False else "")
        rows.append(
            [name, f"{row['before']:.3f}", f"{row['after']:.3f}", f"{row['after'] - row['before']:+.3f}", interval,
             f"<b>{escape(row['verdict'])}</b>" if row["lost"] else escape(row["verdict"])]
        )  # fmt: skip
    heads = ["measure", "before", "after", "change", "95 % interval", ""]
    return (
        f"<h2>What the alignment changed: {verdict}</h2><p class=soft>Against {start}; a capability may lose "
        f"{found['margin']:.0%} of what it was.</p><div class=card>{table(heads, rows, numbers=range(1, 5))}</div>"
    )


# ---- scores ------------------------------------------------------------------------------------------------------
_LEGEND = (
    "<div class=legend><span><i></i>score</span><span><i class=ci></i>95 % interval</span>"
    '<span><i class="bar majority"></i>majority answer, no picture seen</span>'
    '<span><i class="bar shuffled"></i>same model, pictures shuffled</span></div>'
)


def _scores(run: RunRecord) -> str:
    if not run.results:
        return ""
    bars = "".join(
        _bar(
            r["task"],
            f"{r['metric']}{'' if r['higher_is_better'] else ', lower is better'}{beside(r)} · {r['n']:,} items",
            r["score"],
            controls=r["controls"],
            interval=r["interval"],
        )
        for r in run.results
    )
    measures = [
        [escape(r["task"]), escape(", ".join(f"{k.replace('_', ' ')} {number(v)}" for k, v in r["measures"].items()))]
        for r in run.results
        if r["measures"]
    ]
    more = (
        f"<h3>Beside the scores</h3><div class=card>{table(['task', 'measures'], measures)}</div>" if measures else ""
    )
    return f"<h2>Scores on held-out data</h2><div class=card>{_LEGEND}{bars}</div>{more}"


def _kinds(run: RunRecord) -> str:
    """A row of bars for each kind of question, where a task has several."""
    made = []
    for r in run.results:
        if len(r["kinds"]) < 2:
            continue
        sizes: dict[str, int] = {}
        for line in run.lines.get(r["task"], []):
            sizes[line["kind"]] = sizes.get(line["kind"], 0) + 1
        bars = ""
        for kind, score in r["kinds"].items():
            controls = {name: kinds.get(kind) for name, kinds in r["control_kinds"].items()}
            bars += _bar(kind, f"{sizes[kind]:,} items" if kind in sizes else "", score, controls=controls)
        made.append(f"<h3>{escape(r['task'])}</h3><div class=card>{bars}</div>")
    return f"<h2>By kind</h2>{''.join(made)}" if made else ""


def _bar(
    name: str, below: str, score: float, *, controls: dict[str, float | None], interval: Sequence[float] = ()
) -> str:
    """One score as a bar. The scale is 0 to 1, or to the next whole number for a score that goes beyond."""
    known = {k: v for k, v in controls.items() if v is not None}
    top = float(max(1, *(-(-v // 1) for v in (score, *interval, *known.values()))))
    marks = "".join(
        f'<i class="mark {k}" style="left:{100 * v / top:.2f}%" title="{k}: {v:.3f}"></i>' for k, v in known.items()
    )
    spread = ""
    if interval:
        low, high = interval
        spread = f"<i class=range style='left:{100 * low / top:.2f}%;width:{100 * (high - low) / top:.2f}%'></i>"
    words = " · ".join(f"{k} {v:.2f}" for k, v in known.items())
    scale = f", scale to {top:.0f}" if top > 1 else ""
    return (
        f"<div class=score><div class=name>{escape(name)}<small>{escape(below + scale)}</small></div>"
        f"<div class=track><i class=fill style='width:{100 * max(0.0, score) / top:.2f}%'></i>{spread}{marks}</div>"
        f"<div class=value>{_with_range({'score': score, 'interval': interval})}<small>{words}</small></div></div>"
    )


def _with_range(result: dict[str, Any]) -> str:
    if not result["interval"]:
        return f"{result['score']:.3f}{beside(result)}"
    low, high = result["interval"]
    return f"{result['score']:.3f}{beside(result)} <small class=soft>{low:.2f} – {high:.2f}</small>"


# ---- training ----------------------------------------------------------------------------------------------------
def _learning(run: RunRecord) -> str:
    charts = []
    for stage, rows in run.steps.items():
        losses = [(float(r["step"]), float(r["loss"])) for r in rows]
        charts.append(curve(losses, title=f"{stage}: loss", x="step", y="nats per learnt token"))
        speeds = [(float(r["step"]), r["tokens"] / r["step_seconds"]) for r in rows if r.get("step_seconds")]
        charts.append(curve(speeds, title=f"{stage}: speed", x="step", y="tokens per second"))
    drawn = "".join(f"<div class=card>{chart}</div>" for chart in charts if chart)
    return f"<h2>Learning</h2><div class=grid2>{drawn}</div>" if drawn else ""


def _stages(run: RunRecord, shown: Shown | None) -> str:
    if not run.steps:
        return ""
    views = {view.name: view for view in shown.stages} if shown else {}
    rows = []
    for stage, lines in run.steps.items():
        last, view = lines[-1], views.get(stage)
        learning = view.learning.items() if view else ()
        how = {part: f" ({each.how})" if each.how else "" for part, each in learning}
        rates = ", ".join(f"{escape(part)}{how[part]} at {each.lr:.3g}" for part, each in learning) or "–"
        seconds, tokens = _seconds(lines), sum(line["tokens"] for line in lines)
        done = f"{last['step']:,}" + ("" if stage in run.finished else f" of {last['steps']:,}")
        rows.append(
            [
                f"<b>{escape(stage)}</b>",
                rates,
                f"{view.trainable:,} <span class=soft>({view.share:.1%})</span>" if view else "–",
                done,
                _time(seconds),
                f"{tokens / seconds:,.0f}" if seconds else "–",
                f"{lines[0]['loss']:.3f} → {last['loss']:.3f}",
                f"{last['dropped']:,}" + (f"; {left:,} pictures" if (left := last.get("left_out")) else ""),
            ]
        )
    heads = ["stage", "trains", "parameters", "steps", "time", "tokens/s", "loss", "dropped"]
    return f"<h2>Stages</h2><div class=card>{table(heads, rows, numbers=range(2, 8))}</div>"


def _cost(run: RunRecord) -> str:
    rows = list(_costs(run))
    return f"<h2>Cost</h2><div class=card>{table(['what', 'how much'], rows, numbers=(1,))}</div>" if rows else ""


def _costs(run: RunRecord) -> Iterator[list[str]]:
    for stage, lines in run.steps.items():
        yield [f"training, {escape(stage)}", _time(_seconds(lines))]
    for r in run.results:
        yield [f"evaluation, {escape(r['task'])}", _time(r["seconds"])]
    lines = [line for rows in run.steps.values() for line in rows]
    if lines:
        yield ["tokens read in training", f"{sum(line['tokens'] for line in lines):,}"]
        yield ["tokens learnt", f"{sum(line['targets'] for line in lines):,.0f}"]
        yield ["most memory held", f"{max(line['memory'] for line in lines) / 2**30:.2f} GiB"]


def _facts(run: RunRecord) -> str:
    if not run.facts:
        return ""
    plain = {k: v for k, v in run.facts.items() if k not in ("recipe", "versions") and v not in ({}, None)}
    rows = [[escape(k), escape(v if isinstance(v, str) else json.dumps(v))] for k, v in plain.items()]
    rows += [[escape(k), escape(str(v))] for k, v in run.facts.get("versions", {}).items()]
    text = escape(json.dumps(run.facts.get("recipe", {}), indent=1, ensure_ascii=False))
    return (
        f"<h2>Recipe and versions</h2><div class=card>{table(['setting', 'value'], rows)}"
        f"<details><summary>The resolved recipe</summary><pre>{text}</pre></details></div>"
    )


# ---- numbers -----------------------------------------------------------------------------------------------------
def _shown(run: RunRecord) -> Shown | None:
    """The arithmetic on the run's own recipe; None for a recipe whose parts are not of this package."""
    if "recipe" not in run.facts:
        return None
    try:
        recipe = Recipe.from_json(run.facts["recipe"])
    except ConfigError:
        return None
    return show(run.name, recipe, scale=str(run.facts.get("scale", "full")))


def _seconds(lines: Sequence[dict[str, Any]]) -> float:
    """Of a stage; the loop counts through interruptions."""
    return float(lines[-1]["seconds"])


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _count(value: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f}"
