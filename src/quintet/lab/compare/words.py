"""A comparison in words: cells that the terminal, the page and Markdown share, and the Markdown file."""

from collections.abc import Mapping, Sequence
from typing import Any

from quintet.evaluation.metrics.metric import beside
from quintet.lab.differs import said

__all__ = [
    "amount",
    "best_first",
    "conditions",
    "controls",
    "duration",
    "facts",
    "failed",
    "heads",
    "markdown",
    "notes",
    "score",
    "tasks_of",
    "title",
    "told_in_words",
    "versus",
]

MOST = 16
"""Settings that the page tells of a recipe."""

Found = Mapping[str, Any]
"""The content of `compare.json`."""

_SIZE = {
    "starter": "Every recipe is built at the same small scale: the package's vision encoder of 1.8 M parameters (or "
    "the recipe's own kind of encoder, made small) and its language model of 1.9 M, on synthetic pictures of 64 px. "
    "The numbers say how these designs learn from the same data at this size; they do not say which published system "
    "is better.",
    "tiny": "At tiny scale all parts are random and of a few thousand parameters: this shows that the recipes run, and "
    "nothing else.",
}
_AMOUNTS = {
    True: "Each recipe trains its own amounts, so that what one learns more may come of its having trained more; "
    "`--budget` gives all the same.",
    False: "Equal budgets are met up to half a step of each stage.",
}
"""By whether the recipes keep their own amounts."""
_NOTES = (
    "A score is the mean over seeds. Brackets are 95 % bootstrap intervals over items and seeds; a few seeds "
    "underestimate what seeds do. Behind the slash: the same model with the pictures shuffled among the questions. "
    "✗ marks a score whose interval touches that of its shuffled control: it was not read off the picture.",
    "All recipes read the same files, and with equal seeds the same rows in the same order; a recipe with several "
    "stages on one kind of data begins the file anew in each.",
    "n is how many items a score is of. Where more were asked it is of one kind of them: POPE's of its random setting.",
    "Every interval stands for itself: among many comparisons some will differ by luck.",
    "Tokens are what the LLM reads, pictures and text. FLOPs are arithmetic, forward and backward, for one picture and "
    "128 tokens of text in the last stage. Time is that of training steps on the machine above, with "
    "the quickest seed of each stage; a frozen encoder's features are kept on disk where that pays, and making them is "
    "not counted. Where experts tell of a picture in words, what they compute is in no figure; their words are among "
    "the tokens read.",
)


def notes(found: Found) -> tuple[str, ...]:
    """What the numbers are and are not, first of all what was unusual when they were made."""
    return (
        *found.get("made", ()),
        _SIZE[found["conditions"]["scale"]],
        _AMOUNTS[found["conditions"]["budget"] == "own"],
        *_NOTES,
    )


def title(found: Found) -> str:
    """How many recipes, and how much each may train: `2 recipes, equal budgets of 500k tokens`."""
    count, budget = len(found["rows"]), found["conditions"]["budget"]
    given = "each with its own amounts" if budget == "own" else f"equal budgets of {budget.replace('-', ' ')}"
    return f"{count} recipe{'s' if count != 1 else ''}, {given}"


def tasks_of(found: Found) -> list[str]:
    """The tasks, the one that rows are ordered by first."""
    return list(found["conditions"]["tasks"])


def best_first(found: Found) -> list[Mapping[str, Any]]:
    """Rows by the first task's score; those without one at the end."""
    task = tasks_of(found)[0]

    def key(row: Mapping[str, Any]) -> tuple[bool, float]:
        score = row["scores"].get(task)
        return score is None, 0.0 if score is None else score["score"] * (-1 if score["higher_is_better"] else 1)

    return sorted(found["rows"], key=key)


def heads(found: Found) -> list[str]:
    """The columns before the scores."""
    kinds = _kinds(found)
    return ["recipe", *(f"tokens per {kind}" for kind in kinds), "trainable", "FLOPs per sample", "tokens read", "time"]


def facts(row: Mapping[str, Any], found: Found) -> list[str]:
    """The cells under `heads`."""
    kinds, told = _kinds(found), told_in_words(row)
    tokens = {kind: f"{count:,}" for kind, count in row.get("tokens", {}).items()} | dict.fromkeys(told, "in words")
    spent = row["spent"]
    return [
        row["recipe"],
        *(tokens.get(kind, "–") for kind in kinds),
        " → ".join(amount(stage["trainable"]) for stage in row["stages"].values()) or "–",
        amount(row["flops_per_sample"]) + (" + experts" if told else "") if "flops_per_sample" in row else "–",
        amount(spent["tokens"]) if spent else "–",
        duration(spent["seconds"]) if spent else "–",
    ]


def told_in_words(row: Mapping[str, Any]) -> list[str]:
    """The modalities that experts tell a recipe of; what they compute and write is in no figure of its cost."""
    anatomy = row.get("anatomy", {"encoder": {}})
    return [kind for kind in anatomy["encoder"] if kind not in anatomy["connector"]]


def _kinds(found: Found) -> list[str]:
    """The modalities of all recipes."""
    return list(dict.fromkeys(kind for row in found["rows"] for kind in (*row.get("tokens", {}), *told_in_words(row))))


def score(row: Mapping[str, Any], task: str) -> str:
    """`0.845 [0.818, 0.870]`, a dash where there is none, and why where the task is not for the recipe."""
    found = row["scores"].get(task)
    if found is None:
        return "does not fit" if task in row["unfit"] else "–"
    low, high = found["interval"]
    return f"{found['score']:.3f}{beside(found)} [{low:.3f}, {high:.3f}]"


def controls(row: Mapping[str, Any], task: str) -> str:
    """` / 0.235 ✗`: the score with shuffled pictures, and whether the two intervals touch."""
    found = row["scores"].get(task)
    if found is None or found["shuffled"] is None:
        return ""
    return f" / {found['shuffled']['score']:.3f}{'' if found['beats_shuffled'] else ' ✗'}"


def failed(row: Mapping[str, Any]) -> str:
    """Why runs of the recipe failed, seeds of one reason together; empty if none did."""
    reasons: dict[str, list[str]] = {}
    for seed, why in row["failed"].items():
        reasons.setdefault(why, []).append(seed)
    return "; ".join(f"seed {', '.join(seeds)}: {why}" for why, seeds in reasons.items())


def versus(found: Found, name: str) -> dict[str, tuple[float, float, float]]:
    """Task → a recipe's score minus the baseline's, with its interval."""
    base, made = found["baseline"], {}
    for task, pairs in found["differences"].items():
        if name in pairs.get(base, {}):
            value, low, high = pairs[base][name]
            made[task] = value, low, high
        elif base in pairs.get(name, {}):
            value, low, high = pairs[name][base]
            made[task] = -value, -high, -low
    return made


def conditions(found: Found) -> str:
    """One line of what was equal."""
    held, seeds = found["conditions"], found["seeds"]
    budget = "each recipe's own amounts" if held["budget"] == "own" else f"a budget of {held['budget']} each"
    pictures = f"{held['pictures']['train']:,} pictures of Scenes to learn from"
    machine = found["machine"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
    return (
        f"{held['scale']} scale, {budget}, {pictures} (their seed {held['scenes_seed']}, sha256 {held['scenes']}), "
        f"training seeds {', '.join(map(str, seeds))}, {held['precision']} precision, "
        f"{threads} of {machine['processor']}"
    )


def markdown(found: Found) -> str:
    """The comparison as a page of Markdown."""
    tasks = tasks_of(found)
    lines = [f"# {title(found)}", "", f"Made by `{found['command']}`: {conditions(found)}.", ""]
    lines += [f"- {note}" for note in notes(found)]
    lines += ["", "## Scores", "", *_rows([*heads(found), *map(_headed(found), tasks)], [
        [f"`{row['recipe']}`", *facts(row, found)[1:], *(score(row, task) + controls(row, task) for task in tasks)]
        for row in best_first(found)
    ])]  # fmt: skip
    if faults := [f"- `{row['recipe']}`, {failed(row)}" for row in found["rows"] if row["failed"]]:
        lines += ["", "## What failed", "", *faults]
    others = [row for row in best_first(found) if row["recipe"] != found["baseline"]]
    if others:
        lines += ["", f"## Against `{found['baseline']}`, on the same items", ""]
        lines += ["Bold where the interval does not hold 0.", ""]
        lines += _rows(["recipe", *tasks], [[f"`{row['recipe']}`", *_against(found, row, tasks)] for row in others])
        lines += ["", f"## What differs from `{found['baseline']}`", ""]
        lines += ["Of how a conversation is spelt only the count is given; compare.json has every setting.", ""]
        for row in others:
            lines += _folded(row["recipe"], row["differs"])
    spread = [[f"`{row['recipe']}`", *(_seeds(row["scores"].get(task)) for task in tasks)] for row in best_first(found)]
    if len(found["seeds"]) > 1:
        lines += ["", f"## Each seed ({', '.join(map(str, found['seeds']))}) and its standard deviation", ""]
        lines += _rows(["recipe", *tasks], spread)
    return "\n".join(lines) + "\n"


def amount(value: float) -> str:
    """A number with three figures and its thousands as a letter.

    >>> amount(2_255_808), amount(64), amount(1.9e9)
    ('2.26 M', '64', '1.9 G')
    """
    for unit, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Seconds, or minutes and seconds.

    >>> duration(9.24), duration(187.0)
    ('9.2 s', '3 min 07 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def _folded(name: str, differs: Mapping[str, Any]) -> list[str]:
    """What differs of one recipe, behind a line to click on: parts, what trains, data and amounts, at most `MOST`."""
    told = {path: differs[path] for path in sorted(differs) if ".template." not in path}
    lines = [f"- `{line}`" for line in said(told)]
    left = [f"{len(lines) - MOST} more"] if len(lines) > MOST else []
    left += [f"{count} of its templates"] if (count := len(differs) - len(told)) else []
    lines = [*lines[:MOST], *([f"- and {', '.join(left)}"] if left else [])]
    summary = f"<summary><code>{name}</code>: {len(differs) or 'no'} settings</summary>"
    return ["<details>" + summary, "", *lines, "", "</details>", ""]


def _headed(found: Found) -> Any:
    def head(task: str) -> str:
        score = next((row["scores"][task] for row in found["rows"] if task in row["scores"]), None)
        if score is None:
            return task
        lower = "" if score["higher_is_better"] else " (lower is better)"
        asked = f" of {score['asked']:,}" if score.get("asked", score["n"]) != score["n"] else ""
        return f"{task}, {score['metric']}{lower}, n = {score['n']:,}{asked}"

    return head


def _against(found: Found, row: Mapping[str, Any], tasks: Sequence[str]) -> list[str]:
    made = versus(found, row["recipe"])
    cells = []
    for task in tasks:
        if task not in made:
            cells.append("–")
            continue
        value, low, high = made[task]
        text = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
        cells.append(f"**{text}**" if low > 0 or high < 0 else text)
    return cells


def _seeds(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "–"
    values = ", ".join(f"{value:.3f}" for value in score["seeds"].values())
    return values + (f" ± {score['deviation']:.3f}" if score["deviation"] is not None else "")


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
