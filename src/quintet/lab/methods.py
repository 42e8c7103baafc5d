"""The table of alignment methods: `quintet align --list`, and docs/alignment.md."""

import importlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from quintet.lab.align import ANY, method_names
from quintet.recipes._method import Method
from quintet.recipes._recipe import Paper
from quintet.training.stage import Stage

__all__ = ["Entry", "markdown", "methods"]


@dataclass(frozen=True)
class Entry:
    """One method."""

    name: str
    says: str
    """What it is, in a line."""
    learns: tuple[str, ...]
    """Of each stage: its name, what it learns by, and which parts learn."""
    pairs: str
    """Who makes its rows where no file is given (`quintet data pairs`)."""
    paper: Paper

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def methods() -> list[Entry]:
    """Every method of the package, by name."""
    return [_entry(name) for name in method_names()]


def markdown(entries: Iterable[Entry]) -> str:
    """The table of docs/alignment.md, without a line break at the end."""
    lines = ["| method | what it is | stages: learns by, what learns | pairs of its own | paper |", "|---" * 5 + "|"]
    for e in entries:
        paper = f"[{e.paper.authors} {e.paper.year}]({e.paper.link})" if e.paper.authors else ""
        lines.append(f"| `{e.name}` | {e.says} | {' → '.join(e.learns)} | `{e.pairs}` | {paper} |")
    return "\n".join(lines)


def _entry(name: str) -> Entry:
    module = importlib.import_module(f"quintet.recipes.align.{name}")
    method: Method = module.method(ANY)
    says = (module.__doc__ or "").partition("\n")[0].rpartition(" (")[0].partition(": ")[2]
    return Entry(name, says, tuple(map(_learns, method.stages)), str(method.stages[0].data.pairs), method.paper)


def _learns(stage: Stage) -> str:
    terms = stage.preference.terms if stage.preference else {}
    by = " + ".join(term if weight == 1 else f"{weight:g} {term}" for term, weight in terms.items()) or stage.objective
    parts = ", ".join(f"{part} ({rate.how})" if rate.how else part for part, rate in stage.train.items())
    return f"{stage.name}: {by}, {parts}"
