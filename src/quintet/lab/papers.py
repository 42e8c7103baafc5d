"""docs/papers.md: every system with its anatomy, its paper, and what its recipe reached at starter scale.

The page is a pure function of the recipes, of results that `quintet compare` wrote and of notes on them (all in
docs/results/), so a test can hold it to them. A recipe without a result says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quintet.errors import CheckpointError, nearest
from quintet.lab.compare import words
from quintet.lab.compare.runs import TASKS
from quintet.lab.listing import Entry, anatomy, listing
from quintet.lab.recipe import recipe_names
from quintet.model.checkpoint import read_json

__all__ = ["Notes", "page", "read", "read_notes"]

_INTRO = """# Papers

Every system of this package: how it is built, where it was published, and what its recipe learns at starter scale. Made
by `quintet papers`; a test compares.

What a result is worth: the parts are small (a 1.8 M encoder, a 1.9 M language model) and the pictures synthetic, so a
score says that the design as built here learns to see, and nothing about the published system's rank. The proof of
seeing is the control: the same model, asked the same, with the pictures shuffled among the questions. ✓ stands where
the 95 % intervals of the two do not touch, ✗ where they do. The majority answer, which sees no picture, is beside them;
✓ does not say that a score is better than that.

Minutes of training are those of the run that was evaluated: of one thread beside other work, where a section does not
name two, and so upper bounds. Each recipe is made to learn for at most four minutes on two cores; the column `alone` is
what it takes there with nothing else running.
"""

Found = Mapping[str, Any]

UNKNOWN = "cause not shown"
"""Said of a task that a recipe should beat its control on and does not, where the notes have no cause."""


@dataclass(frozen=True)
class Notes:
    """What people add to the results (docs/results/notes.json)."""

    assigned: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Recipe → tasks that it should beat its control on, besides those of every recipe, which stand under ``""``."""
    causes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Recipe → task → why it does not, as far as known. Told only while it does not."""
    alone: Mapping[str, float] = field(default_factory=dict)
    """Recipe → seconds of training on two cores with nothing else running."""
    whole: Sequence[str] = ()
    """Those of them that were measured whole; `says` is how the others were found."""
    says: str = ""

    def tasks(self, recipe: str) -> list[str]:
        """The tasks that a recipe should beat its control on."""
        return [*self.assigned.get("", ()), *self.assigned.get(recipe, ())]

    def minutes(self, recipe: str) -> str:
        """A cell of the column `alone`: with a star if it was not measured whole."""
        if recipe not in self.alone:
            return "–"
        return words.duration(self.alone[recipe]) + ("" if recipe in self.whole else " \\*")


def read_notes(path: Path) -> Notes:
    """The notes of a file.

    Raises:
        CheckpointError: it has no notes, or names a recipe or a task that does not exist.
    """
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != 1 or not {"assigned", "causes", "alone"} <= set(data):
        raise CheckpointError(f"{path} has no notes on results; docs/results/notes.json is the pattern")
    alone = data["alone"]
    known = recipe_names()
    for name in (*data["assigned"], *data["causes"], *alone["seconds"], *alone["whole"]):
        if name and name not in known:
            raise CheckpointError(f"{path} is about {name!r}, which is no recipe{nearest(name, known)}")
    for task in (task for each in (*data["assigned"].values(), *data["causes"].values()) for task in each):
        if task not in TASKS:
            raise CheckpointError(f"{path} is about {task!r}, which is no task{nearest(task, TASKS)}")
    return Notes(data["assigned"], data["causes"], alone["seconds"], tuple(alone["whole"]), alone["says"])


def read(paths: Sequence[Path]) -> list[Found]:
    """The results of comparisons.

    Raises:
        CheckpointError: a file is not one of `quintet compare`.
    """
    found = []
    for path in paths:
        data = read_json(path)
        if not isinstance(data, dict) or "rows" not in data or data.get("format") != 1:
            raise CheckpointError(f"{path} is no result of `quintet compare`; its compare.json is")
        found.append(data)
    return found


def page(results: Sequence[Found], notes: Notes | None = None, entries: Sequence[Entry] = ()) -> str:
    """The page, of the package's recipes unless `entries` are given; of several results of one the first counts."""
    notes = notes or Notes()
    entries = list(entries) or listing()
    rows: dict[str, tuple[Found, Mapping[str, Any]]] = {}
    for found in results:
        for row in found["rows"]:
            rows.setdefault(row["recipe"], (found, row))
    lines = [
        _INTRO,
        "## Anatomy",
        "",
        *_anatomy(entries),
        "",
        "## What they reach",
        "",
        *_overview(entries, rows, notes),
    ]
    for entry in entries:
        lines += ["", f"## {entry.name}", "", *_section(entry, rows.get(entry.name))]
    return "\n".join(lines) + "\n"


def _anatomy(entries: Sequence[Entry]) -> list[str]:
    lines = ["| recipe | paper | encoder | connector | fusion | LLM | what trains, stage by stage |", "|---" * 7 + "|"]
    for entry in entries:
        cells = (f"[`{entry.name}`](#{entry.name})", _paper(entry, title=False), *anatomy(entry))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _overview(entries: Sequence[Entry], rows: Mapping[str, tuple[Found, Mapping[str, Any]]], notes: Notes) -> list[str]:
    """One line a recipe: how many of its tasks beat their control, and the time; and what should and does not."""
    heads = ["recipe", "tasks that beat their control", "tokens per image", "trainable", "training", "alone", "seeds"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for entry in entries:
        if entry.name not in rows:
            lines.append(f"| `{entry.name}` | not measured yet |{' – |' * (len(heads) - 2)}")
            continue
        found, row = rows[entry.name]
        scores = dict(_scores(found, row))
        beaten = [task for task, score in scores.items() if score["beats_shuffled"]]
        short = [task for task in scores if task not in beaten]
        rest = f" (not {', '.join(short)})" if short else ""
        told = len(words.told_in_words(row))
        result = f"failed: {words.failed(row)}" if row["failed"] else f"{len(beaten)} of {len(scores)}{rest}"
        cells = (
            f"`{entry.name}`",
            result,
            ", ".join([*(f"{count:,}" for count in row.get("tokens", {}).values()), *["in words"] * told]) or "–",
            " → ".join(words.amount(stage["trainable"]) for stage in row["stages"].values()) or "–",
            words.duration(row["spent"]["seconds"]) if row["spent"] else "–",
            notes.minutes(entry.name),
            ", ".join(map(str, found["seeds"])),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\n\\* {notes.says}."] if notes.says else []
    short = [line for entry in entries if entry.name in rows for line in _short(entry.name, rows[entry.name], notes)]
    if short:
        lines += [
            "\nOf questions, which are for all, and of what a design is for, these did not beat their control:",
            "",
        ]
    return lines + short


def _short(name: str, result: tuple[Found, Mapping[str, Any]], notes: Notes) -> list[str]:
    """Lines on the tasks that a recipe should beat its control on and does not."""
    scores = dict(_scores(*result))
    causes = notes.causes.get(name, {})
    return [
        f"- `{name}`, {task}: {words.score(result[1], task)}, pictures shuffled {_blind(scores[task])}; "
        f"{causes.get(task, UNKNOWN)}."
        for task in notes.tasks(name)
        if task in scores and not scores[task]["beats_shuffled"]
    ]


def _blind(score: Mapping[str, Any]) -> str:
    """The control's score with its interval."""
    shuffled = score["shuffled"]
    if not shuffled:
        return "–"
    low, high = shuffled["interval"]
    return f"{shuffled['score']:.3f} [{low:.3f}, {high:.3f}]"


def _section(entry: Entry, result: tuple[Found, Mapping[str, Any]] | None) -> list[str]:
    lines = [_paper(entry, title=True), ""]
    if result is None:
        return [*lines, "Not measured yet."]
    found, row = result
    lines += [f"`{_command(found, row)}`", ""]
    if row["failed"]:
        lines += [f"Failed: {words.failed(row)}", ""]
    if row["spent"]:
        spent = row["spent"]
        experts = " without the experts'" if words.told_in_words(row) else ""
        asked = sum(score["seconds"] for score in row["scores"].values())
        lines += [
            f"{words.duration(spent['seconds'])} of training on {spent['samples']:,} samples "
            f"({words.amount(spent['tokens'])} tokens, {words.amount(spent['flops'])}FLOP{experts}), "
            f"{words.duration(asked)} of evaluation; {words.conditions(found)}.",
            "",
        ]
    if row["scores"]:
        lines += ["| task | metric | items | score [95 %] | pictures shuffled [95 %] | majority | beaten |"]
        lines += ["|---" * 7 + "|"]
        lines += [f"| {' | '.join(_task(task, score, row))} |" for task, score in _scores(found, row)]
    lines += [f"\nNot for this recipe: {', '.join(row['unfit'])}."] if row["unfit"] else []
    return lines


def _scores(found: Found, row: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The row's scores in the order of the tasks."""
    return [(task, row["scores"][task]) for task in words.tasks_of(found) if task in row["scores"]]


def _task(task: str, score: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, ...]:
    metric = score["metric"] if score["higher_is_better"] else f"{score['metric']} (lower is better)"
    majority = f"{score['majority']:.3f}"
    return (
        task,
        metric,
        f"{score['n']:,}",
        words.score(row, task),
        _blind(score),
        majority,
        "✓" if score["beats_shuffled"] else "✗",
    )


def _command(found: Found, row: Mapping[str, Any]) -> str:
    """What gives this recipe's row alone."""
    _, _, rest = found["command"].partition(" --")
    # `--all` or the names end where the first other option begins.
    rest = rest.removeprefix("all").removeprefix(" --")
    return f"quintet compare {row['given']}" + (f" --{rest}" if rest else "")


def _paper(entry: Entry, *, title: bool) -> str:
    paper = entry.paper
    name = f"{paper.authors} {paper.year}" + (f", {paper.title}" if title else "")
    return f"[{name}]({paper.link})"
