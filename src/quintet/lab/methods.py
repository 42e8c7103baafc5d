"""What there is to know of alignment methods without a model: their table, and the settings of one."""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quintet.errors import ConfigError
from quintet.lab.align import ANY, method_names
from quintet.recipes._method import Method
from quintet.recipes._recipe import Paper
from quintet.recipes._scale import SCALES, aligned_stages
from quintet.training.stage import Stage

__all__ = ["Entry", "entry", "markdown", "methods", "settings"]


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
    notes: str
    """What its file says of it."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def methods() -> list[Entry]:
    """Every method of the package, by name."""
    return [entry(name) for name in method_names()]


def markdown(entries: Iterable[Entry]) -> str:
    """The table of docs/alignment.md, without a line break at the end."""
    lines = ["| method | what it is | stages: learns by, what learns | pairs of its own | paper |", "|---" * 5 + "|"]
    for e in entries:
        paper = f"[{e.paper.authors} {e.paper.year}]({e.paper.link})" if e.paper.authors else ""
        lines.append(f"| `{e.name}` | {e.says} | {' → '.join(e.learns)} | `{e.pairs}` | {paper} |")
    return "\n".join(lines)


def entry(name: str) -> Entry:
    """One method of the package."""
    module = importlib.import_module(f"quintet.recipes.align.{name}")
    method: Method = module.method(ANY)
    title, _, notes = (module.__doc__ or "").partition("\n")
    says = title.rpartition(" (")[0].partition(": ")[2]
    pairs = str(method.stages[0].data.pairs)
    return Entry(name, says, tuple(map(_learns, method.stages)), pairs, method.paper, notes.strip())


def settings(name: str, scale: str) -> dict[str, dict[str, Any]]:
    """Of each stage what can be set, as `--set` has it below `stages.NAME.`, and its value at a scale.

    Raises:
        ConfigError: there is no such scale.
    """
    if scale not in SCALES:
        raise ConfigError(f"no scale {scale!r}; known: {', '.join(SCALES)}")
    method: Method = importlib.import_module(f"quintet.recipes.align.{name}").method(ANY)
    return {stage.name: dict(_leaves(stage.to_json())) for stage in aligned_stages(method.stages, scale)}


_SETS_NOTHING = {"name", "template", *(f"data.{each}" for each in ("name", "kind", "rows", "pages", "mixed"))}
"""A name is how a stage is found, the template is the model's, and what the paper's set is like is said by its file."""


def _leaves(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        path = f"{before}{key}"
        if key == "type" or path in _SETS_NOTHING:
            continue
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, f"{path}.")
        else:
            yield path, inner


def _learns(stage: Stage) -> str:
    terms = stage.preference.terms if stage.preference else {}
    by = " + ".join(term if weight == 1 else f"{weight:g} {term}" for term, weight in terms.items()) or stage.objective
    parts = ", ".join(f"{part} ({rate.how})" if rate.how else part for part, rate in stage.train.items())
    return f"{stage.name}: {by}, {parts}"
