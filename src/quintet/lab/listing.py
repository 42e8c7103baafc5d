"""Every system at a glance: the survey's anatomy, as `quintet recipes` lists it, and the table of the README."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quintet.errors import ConfigError
from quintet.lab.labels import label
from quintet.lab.recipe import load_recipe, recipe_names
from quintet.recipes._recipe import Paper, Recipe
from quintet.training.stage import Stage

__all__ = ["Entry", "anatomy", "connectors", "entry", "listing", "markdown", "write_into"]

_MARKED = re.compile(r"(<!-- recipes: start.*?-->\n).*?(\n<!-- recipes: end -->)", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """One system as the five players of the survey."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    encoder: dict[str, str]
    """Modality → what looks, by the name that papers use (`quintet.lab.labels`); of experts all."""
    connector: dict[str, str]
    """Modality → its name, with how much comes out."""
    fusion: str
    """How features reach the LLM: as `tokens` among its words, by cross-attention, or as prompts."""
    llm: str
    stages: tuple[str, ...]
    trains: dict[str, tuple[str, ...]]
    """Stage → what learns in it; where that is not all of a part, how: `llm (LoRA of rank 8)`. The rest is frozen."""
    paper: Paper

    def to_json(self) -> dict[str, Any]:
        """As `recipes --json` has it."""
        paper = {key: getattr(self.paper, key) for key in ("title", "authors", "year", "arxiv", "url")}
        return asdict(self) | {"paper": paper}


def listing() -> list[Entry]:
    """All recipes of the package, by name."""
    return [entry(*load_recipe(name)) for name in recipe_names()]


def entry(name: str, recipe: Recipe) -> Entry:
    """One recipe, as it is at full scale."""
    model = recipe.model
    return Entry(
        name=name,
        inputs=("text", *model.kinds),
        outputs=("text",),
        encoder={kind: label(config) for kind, config in model.encoders.items()}
        | {kind: " + ".join(map(label, each.values())) for kind, each in model.experts.items()},
        connector={kind: label(config) for kind, config in model.connectors.items()},
        fusion=label(model.fusion),
        llm=label(model.llm),
        stages=tuple(stage.name for stage in recipe.stages),
        trains={stage.name: _learning(stage) for stage in recipe.stages},
        paper=recipe.paper,
    )


def markdown(entries: Iterable[Entry]) -> str:
    """The table of the README, without a line break at the end."""
    lines = ["| recipe | reads | encoder | connector | fusion | LLM | stages | paper |", "|---" * 8 + "|"]
    for e in entries:
        paper = f"[{e.paper.authors} {e.paper.year}]({e.paper.link})"
        cells = (
            f"`{e.name}`",
            ", ".join(e.inputs),
            ", ".join(e.encoder.values()),
            connectors(e),
            e.fusion,
            e.llm,
            " → ".join(e.stages),
            paper,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_into(path: Path, table: str) -> None:
    """Puts the table between its markers in a file; what stands around them stays.

    Raises:
        ConfigError: there is not one pair of markers.
    """
    text, count = _MARKED.subn(lambda found: f"{found[1]}{table}{found[2]}", path.read_text(encoding="utf-8"))
    if count != 1:
        raise ConfigError(
            f"{path} has {count} places for the table; it goes between the lines `<!-- recipes: start -->` and "
            "`<!-- recipes: end -->`"
        )
    path.write_text(text, encoding="utf-8")


def anatomy(entry: Entry) -> tuple[str, ...]:
    """Encoder, connector, fusion, LLM, and what trains in each stage, as cells of a table."""
    stages = (f"{stage}: {', '.join(parts)}" for stage, parts in entry.trains.items())
    return (", ".join(entry.encoder.values()), connectors(entry), entry.fusion, entry.llm,
            " → ".join(stages))  # fmt: skip


def connectors(entry: Entry) -> str:
    """Its connectors in one cell; through text there are none."""
    return ", ".join(entry.connector.values()) or "none: words"


def _learning(stage: Stage) -> tuple[str, ...]:
    return tuple(f"{part} ({rate.how})" if rate.how else part for part, rate in stage.train.items())
