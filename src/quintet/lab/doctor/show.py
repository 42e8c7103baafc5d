"""Samples and verdicts as the terminal shows them. What comes from a file is never read as markup or control codes."""

from collections.abc import Iterable

from rich.panel import Panel
from rich.table import Table
from rich.text import Text as Line

from quintet.data.tokenizer import Tokenizer
from quintet.lab.doctor.findings import CONTRACTS, Rendered, Segment, Status, Verdict
from quintet.model.mllm import MLLM
from quintet.values import Item, Media, Sample, Tokens, Turn
from quintet.values import Text as Words

__all__ = ["drawn", "plain_segments", "segments", "table"]

MARKS: dict[Status, tuple[str, str]] = {"proved": ("✓", "green"), "broken": ("✗", "red"), "skipped": ("–", "dim")}


def segments(tokens: Tokens, tokenizer: Tokenizer, model: MLLM.Config) -> tuple[Segment, ...]:
    """The stretches of a sample: runs of text in or out of the loss, control tokens, media."""
    names = {index: name for name, index in tokenizer.specials.items()}
    ids, learnt = tokens.ids.tolist(), (tokens.weight != 0).tolist()
    starts = {item.start: item for item in tokens.items}
    made: list[Segment] = []
    run: list[int] = []
    column = 0
    while column < len(ids):
        item, special = starts.get(column), names.get(ids[column])
        if item is None and special is None:
            run.append(ids[column])
        step = item.columns if item else 1
        after = column + step
        ends = after >= len(ids) or after in starts or ids[after] in names or learnt[after] != learnt[column]
        if item is not None:
            made.append(Segment(_medium(item, model), "media", learnt[column]))
        elif special is not None:
            made.append(Segment(special, "special", learnt[column]))
        elif ends:
            made.append(Segment(tokenizer.decode(run), "text", learnt[column]))
            run = []
        column = after
    return tuple(made)


def plain_segments(sample: Sample) -> tuple[Segment, ...]:
    """A sample without a template: roles, words and media, answers as what is learnt."""
    made: list[Segment] = []
    for turn in sample.turns():
        made.append(Segment(f"{turn.role}:", "special", False))
        made += [_part(part, turn) for part in turn.parts]
    return tuple(made)


def drawn(sample: Rendered) -> Panel:
    """A sample in a frame: what is learnt in green, control tokens inverted, media as `▣ image 8×8=64`."""
    line = Line()
    for segment in sample.segments:
        style = "bold green" if segment.learnt else "dim"
        if segment.kind == "special":
            style = "reverse green" if segment.learnt else "reverse dim"
        elif segment.kind == "media":
            style = "cyan"
        line.append(_safe(segment.text), style)
        if segment.kind == "media" or (segment.kind == "special" and segment.text.endswith(":")):
            line.append(" ")
    title = f"{sample.stage or 'data'} · {sample.file}, row {sample.row}"
    counts = f"{sample.tokens} tokens, {sample.learnt} learnt" if sample.tokens else "no template: words as they stand"
    return Panel(line, title=Line(_safe(title)), subtitle=counts, title_align="left", subtitle_align="left")


def table(verdicts: Iterable[Verdict]) -> Table:
    """Contracts in rows, stages in columns."""
    verdicts = list(verdicts)
    stages = list(dict.fromkeys(v.stage for v in verdicts))
    grid = Table(title="contracts", title_justify="left")
    grid.add_column("contract")
    for stage in stages:
        grid.add_column(stage or "data", justify="center")
    grid.add_column("claim")
    grid.add_column("how")
    for contract, claim in CONTRACTS.items():
        rows = {v.stage: v for v in verdicts if v.contract == contract}
        if rows:
            marks = [Line(*MARKS[rows[s].status]) if s in rows else Line("") for s in stages]
            notes = dict.fromkeys(_safe(v.note) for v in rows.values() if v.note)
            grid.add_row(contract, *marks, claim, Line("; ".join(notes)))
    return grid


def _medium(item: Item, model: MLLM.Config) -> str:
    layout = model.layout(item.kind, item.size)
    views = [f"{v.extra}+" * bool(v.extra) + "×".join(map(str, v.grid)) for v in layout.views]
    columns = "" if item.columns == layout.count else f" in {item.columns}"
    return f"▣ {item.kind} {'+'.join(views)}={layout.count}{columns}"


def _part(part: object, turn: Turn) -> Segment:
    learnt = turn.role in ("assistant", "document") and turn.weight != 0
    if isinstance(part, Words):
        return Segment(part.text, "text", learnt and part.weight != 0)
    if isinstance(part, Media):
        return Segment(f"▣ {part.kind} {part.ref.name}", "media", False)
    return Segment(f"▢ {part}", "media", False)


def _safe(text: str) -> str:
    """Characters that a terminal would obey are spelt out; newlines stay."""
    return "".join(c if c == "\n" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)
