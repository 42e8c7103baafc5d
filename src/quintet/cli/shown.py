"""What `quintet show` prints: parts with the figures they are held against, and stages with what they cost.

Of an alignment method: its settings.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from quintet.cli.screen import screen
from quintet.lab.cost import TEXT_TOKENS
from quintet.lab.methods import Entry
from quintet.lab.show import TOGETHER, Check, Shown, StageView
from quintet.recipes._figures import arithmetic
from quintet.recipes._recipe import Paper

__all__ = ["print_method", "print_shown"]


def print_shown(shown: Shown, paper: Paper, *, notes: str) -> None:
    """Prints the figures of a recipe; `notes` is what its file says of it."""
    console = screen()
    title = f"{paper.title} ({paper.authors} {paper.year}, {paper.link})"
    console.print(f"[bold]{shown.recipe}[/] at [bold]{shown.scale}[/] scale  [dim]{escape(title)}[/]\n")
    if notes:
        console.print(Padding(escape(notes), (0, 0, 1, 2)), style="dim")
    marks: dict[str, list[Check]] = {}
    for check in shown.checks:
        marks.setdefault(check.what, []).append(check)
    console.print(_parts(shown, marks), "")
    for kind, count in shown.tokens.items():
        size = " × ".join(map(str, shown.sizes[kind]))
        mark = _said(marks.get(f"tokens of one {kind}", []))
        console.print(f"{count:,} token{'s' if count != 1 else ''} per {kind} of {size} pixels  {mark}")
    for kind, each in shown.experts.items():
        console.print(f"{kind} told in words: {', '.join(f'{label} by {who}' for label, who in each.items())}")
    for stage in shown.stages:
        console.print("\n" + "\n".join(_stage(stage, marks.get(f"trainable in {stage.name}", []))))
    items = "".join(f"one {kind} and " for kind in shown.tokens)
    left_out = (
        " What experts hold and compute, and the columns that their words take, are not counted."
        if shown.experts
        else ""
    )
    console.print(
        f"\n[dim]A sample is {items}{TEXT_TOKENS} tokens of text, forward and backward.{left_out} Memory is an "
        "estimate for one process, unsharded: weights in fp32 with their bf16 copy, gradients, AdamW's moments, "
        "activations.[/]"
    )


def print_method(entry: Entry, stages: Mapping[str, Mapping[str, Any]], *, scale: str) -> None:
    """Prints what an alignment method is, and what can be set in its stages; of a later one what differs."""
    console = screen()
    paper = f"{entry.paper.title} ({entry.paper.authors} {entry.paper.year}, {entry.paper.link})"
    console.print(f"[bold]{entry.name}[/] at [bold]{scale}[/] scale: {escape(entry.says)}  [dim]{escape(paper)}[/]\n")
    console.print(Padding(escape(entry.notes), (0, 0, 1, 2)), style="dim")
    (first, base), *others = stages.items()
    _settings(f"stages.{first}.", base)
    for name, found in others:
        differs = {path: value for path, value in found.items() if base.get(path) != value}
        _settings(f"stages.{name}.", differs, note=f"as {first}, but:" if differs else f"as {first}")
    path = next((path for path in base if path.endswith("beta")), "batch")
    console.print(f"\nChange one: quintet align {entry.name} --from RUN --set stages.{first}.{path}=…", highlight=False)


def _settings(head: str, found: Mapping[str, Any], *, note: str = "") -> None:
    table = Table(f"[bold]{head}", note, box=None, pad_edge=False)
    for path, value in found.items():
        table.add_row(f"  {path}", escape(value if isinstance(value, str) else json.dumps(value)))
    screen().print(table)


def _parts(shown: Shown, marks: Mapping[str, Sequence[Check]]) -> Table:
    table = Table("part", box=None, pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("", overflow="fold")
    for name, count in shown.parts.items():
        table.add_row(name, f"{count:,}", _said(marks.get(f"parameters of {name}", [])))
    # Figures of several parts at once, as of a connector that is two parts.
    for what, checks in marks.items():
        name = what.removeprefix("parameters of ")
        if what != name and name != TOGETHER and name not in shown.parts:
            table.add_row(f"[dim]{name}", f"[dim]{checks[0].found:,}", _said(checks))
    said = [_said(marks.get(f"parameters of {TOGETHER}", []))]
    said += [f"of which {shown.unread:,} are not read once the last stage's fusion is there"] if shown.unread else []
    said += ["and the experts', which are not counted"] if shown.experts else []
    table.add_row(f"[bold]{TOGETHER}", f"[bold]{shown.parameters:,}", "\n".join(filter(None, said)))
    return table


def _stage(stage: StageView, checks: Sequence[Check]) -> Iterator[str]:
    batch = f"{stage.batch:,}"
    steps = f"{stage.steps:,} steps of {batch}" if stage.steps else f"batches of {batch}, number of steps not published"
    yield f"[bold]{stage.name}[/]  {stage.data}, {steps}"
    yield f"  trains {stage.trainable:,} parameters ({stage.share:.2%})  {_said(checks)}".rstrip()
    for part, each in stage.learning.items():
        how = f" ({each.how})" if each.how else ""
        yield f"    {part}{how}: {each.parameters:,} at {each.lr:.3g}"
    memory, flops = f"{stage.memory.total / 2**30:.1f} GiB", f"{stage.flops_per_sample / 1e12:,.3g} TFLOP"
    yield f"  {memory} of memory, {flops} a sample"


def _said(checks: Sequence[Check]) -> str:
    """Each figure that ours is held against, and whether it holds."""
    return "\n".join(map(_mark, checks))


def _mark(check: Check) -> str:
    stated = escape(check.stated)
    if check.what.startswith("tokens") and check.equal:
        return "[green]✓[/] [dim]as the paper or its code has it[/]"
    if check.kind == "printed" and check.equal:
        return f"[green]✓ printed {stated}[/]"
    if check.kind == "printed":
        share = f"{abs(check.off):.1%} {'above' if check.off > 0 else 'below'}"
        way = f"{f'{1 + check.off:.3g} times' if check.off > 1 else share} the printed {stated}"
        return f"[yellow]✗ {way}[/]: {escape(check.why)}" if check.why else f"[red]✗ {way}[/]"
    if check.equal:
        return f"[green]✓[/] [dim]= arithmetic: {stated}[/]"
    return f"[red]✗ arithmetic gives {arithmetic(check.stated):,}[/]: {stated}"
