"""docs/papers.md: every system with its anatomy, its paper, and what its recipe reached at starter scale.

The page is a pure function of the recipes and of results that `quintet compare` wrote (docs/results/), so a test can
hold it to them. A recipe without a result says so.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quintet.errors import CheckpointError
from quintet.lab.compare import words
from quintet.lab.listing import Entry, anatomy, listing
from quintet.model.checkpoint import read_json

__all__ = ["page", "read"]

_INTRO = """# Papers

Every system of this package: how it is built, where it was published, and what its recipe learns at starter scale. Made
by `quintet papers`; a test compares.

What a result is worth: the parts are small (a 1.8 M encoder, a 1.9 M language model) and the pictures synthetic, so a
score says that the design as built here learns to see, and nothing about the published system's rank. The proof of
seeing is the control: the same model, asked the same, with the pictures shuffled among the questions. ✓ stands where
the 95 % intervals of the two do not touch, ✗ where they do. The majority answer, which sees no picture, is beside them.
"""

Found = Mapping[str, Any]


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


def page(results: Sequence[Found], entries: Sequence[Entry] = ()) -> str:
    """The page, of the package's recipes unless `entries` are given; of several results of one the first counts."""
    entries = list(entries) or listing()
    rows: dict[str, tuple[Found, Mapping[str, Any]]] = {}
    for found in results:
        for row in found["rows"]:
            rows.setdefault(row["recipe"], (found, row))
    lines = [_INTRO, "## Anatomy", "", *_anatomy(entries), "", "## What they reach", "", *_overview(entries, rows)]
    for entry in entries:
        lines += ["", f"## {entry.name}", "", *_section(entry, rows.get(entry.name))]
    return "\n".join(lines) + "\n"


def _anatomy(entries: Sequence[Entry]) -> list[str]:
    lines = ["| recipe | paper | encoder | connector | fusion | LLM | what trains, stage by stage |", "|---" * 7 + "|"]
    for entry in entries:
        cells = (f"[`{entry.name}`](#{entry.name})", _paper(entry, title=False), *anatomy(entry))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _overview(entries: Sequence[Entry], rows: Mapping[str, tuple[Found, Mapping[str, Any]]]) -> list[str]:
    """One line a recipe: how many of its tasks beat their control, and the time."""
    heads = ["recipe", "tasks that beat their control", "tokens per image", "trainable", "training", "seeds"]
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
            ", ".join(map(str, found["seeds"])),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


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
    shuffled = score["shuffled"]
    blind = (
        f"{shuffled['score']:.3f} [{shuffled['interval'][0]:.3f}, {shuffled['interval'][1]:.3f}]" if shuffled else "–"
    )
    metric = score["metric"] if score["higher_is_better"] else f"{score['metric']} (lower is better)"
    majority = f"{score['majority']:.3f}"
    return (
        task,
        metric,
        f"{score['n']:,}",
        words.score(row, task),
        blind,
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
