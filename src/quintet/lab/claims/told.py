"""What the runs of claims say: claims.md for files, claims.html for eyes."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from quintet.lab.page import page, table
from quintet.lab.plots import Mark, ranges

__all__ = ["html", "markdown"]

Found = Mapping[str, Any]
"""What `study` returns."""
Arms = Mapping[str, Mapping[str, Any]]

_HEADS = {
    "scenes.chair": "CHAIR-i ↓", "scenes.chair:recall": "recall", "scenes.chair:words": "words", "scenes.vqa": "VQA",
    "scenes.chair:severity": "severity a claim ↓", "reward_won": "reward of the chosen",
    "scenes.pope": "POPE F1", "text:perplexity": "perplexity of text ↓", "pairs:right": "pairs labelled right",
    "swap:picture": "margin to another picture", "swap:crop": "margin to a piece",
    "judge:accuracy": "reward model's accuracy", "rollouts:truth": "reward and truth, r",
}  # fmt: skip


# ---- claims.html -------------------------------------------------------------------------------------------------
def html(found: Found) -> str:
    """The page."""
    title = _title(found)
    head = f"<h1>{escape(title)}</h1><p class=soft>{escape(_conditions(found))}</p>"
    return page(f"{title} · Quintet", "\n".join([head, *map(_section, found["claims"])]))


def _section(claim: Found) -> str:
    kind = {"supported": "better", "not supported": "worse"}.get(claim["verdict"], "soft")
    why = f": {escape(claim['why'])}" if claim["why"] else ""
    heads = ("what was expected", "gain", "95 % interval", "holds")
    rows = [
        (escape(_sides(t)), f"{t['gain']:+.3f}", "{:+.3f} – {:+.3f}".format(*t["interval"]), "✓" if t["holds"] else "✗")
        for t in _tests(claim)
    ]
    names = dict.fromkeys(name for measures in claim["arms"].values() for name in measures)
    charts = "".join(f"<div class=card>{_chart(claim['arms'], name)}</div>" for name in names)
    return (
        f"<h2>{claim['id']} ({escape(claim['source'])}): <span class={kind}>{claim['verdict']}</span>{why}</h2>"
        f"<p>{escape(claim['says'])}</p><p class=soft>Not run: {escape(claim['not_run'])}.</p>"
        f"<div class='card plain'>{table(heads, rows, numbers=(1, 2, 3))}</div><p></p><div class=grid2>{charts}</div>"
    )


def _chart(arms: Arms, name: str) -> str:
    marks = [
        Mark(label, 0.0, measures[name]["mean"], *measures[name]["interval"])
        for label, measures in arms.items()
        if name in measures
    ]
    return ranges(marks, title=_HEADS.get(name, name))


# ---- claims.md ---------------------------------------------------------------------------------------------------
def markdown(found: Found) -> str:
    """The table of claims, and those of their arms."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Found) -> Iterator[str]:
    yield f"# {_title(found)}"
    yield ""
    yield _conditions(found)
    yield ""
    yield "| claim | what it says | verdict, and what was not run | what was expected: gain [95 % interval] |"
    yield "|---|---|---|---|"
    for claim in found["claims"]:
        tests = "<br>".join(map(_said, _tests(claim)))
        verdict = f"**{claim['verdict']}**" + (f": {claim['why']}" if claim["why"] else "")
        verdict += f"<br>not run: {claim['not_run']}"
        yield f"| {claim['id']} ({claim['source']}) | {claim['says']} | {verdict} | {tests} |"
    yield ""
    yield "## The arms"
    yield ""
    yield "Means over seeds with their intervals. Who says less makes less up: recall and words stand beside CHAIR-i."
    for claim in found["claims"]:
        if claim["arms"]:
            yield from ("", f"### {claim['id']}", "", *_arms(claim["arms"]))


def _arms(arms: Arms) -> Iterator[str]:
    names = list(dict.fromkeys(name for measures in arms.values() for name in measures))
    yield f"| arm | {' | '.join(_HEADS.get(name, name) for name in names)} |"
    yield "|---" * (len(names) + 1) + "|"
    for label, measures in arms.items():
        cells = [_cell(measures[name]) if name in measures else "–" for name in names]
        yield f"| {label} | {' | '.join(cells)} |"


def _cell(measure: Mapping[str, Any]) -> str:
    low, high = measure["interval"]
    return f"{measure['mean']:.3f} [{low:.3f}, {high:.3f}]"


def _said(tested: Mapping[str, Any]) -> str:
    """`dpo better than tuned, scenes.chair: +0.120 [+0.080, +0.160] ✓`."""
    low, high = tested["interval"]
    mark = "✓" if tested["holds"] else "✗"
    return f"{_sides(tested)}: {tested['gain']:+.3f} [{low:+.3f}, {high:+.3f}] {mark}"


# ---- both --------------------------------------------------------------------------------------------------------
def _title(found: Found) -> str:
    return f"The surveys' claims about alignment, {len(found['seeds'])} seeds"


def _conditions(found: Found) -> str:
    return (
        f"Made by `quintet compare --claims`: {found['steps']} steps an arm, {found['limit']} items a task, seeds "
        f"{', '.join(map(str, found['seeds']))}. A gain is in the direction that the claim expects, with its 95 % "
        "bootstrap interval over items and seeds; a claim is supported where all that is expected holds (✓), and not "
        "testable where what it needs is not so. All arms have one rate and one beta: for no claim were they swept, "
        "nor lengths matched in what is reported. Margins are in nats a token of the true description, against the "
        "picture of another scene and against a piece of the same; perplexity is of answers about pictures told in "
        "words."
    )


def _tests(claim: Found) -> list[Mapping[str, Any]]:
    return [*claim["needs"], *claim["expects"]]


def _sides(tested: Mapping[str, Any]) -> str:
    what = "needs " if "else" in tested else ""
    how = "better than" if tested["apart"] else "not worse than"
    than = tested["than"]
    if not than:
        how, than = "below" if tested["lower"] else "above", "0"
    beyond = " by more than {} than {}".format(*tested["beyond"]) if tested["beyond"] else ""
    return f"{what}{tested['better']} {how} {than}{beyond}, {tested['measure']}"
