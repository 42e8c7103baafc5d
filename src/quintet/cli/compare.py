"""Commands that set recipes side by side: compare, and papers, the page of what every system reached."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quintet.cli.describe import JSON

if TYPE_CHECKING:
    from rich.console import Console

    from quintet.lab.compare import Comparison

__all__ = ["register"]

INTERRUPTED = 130
BASELINE = "llava15"
"""What `--all` compares with: the design that most others are told apart from."""


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command()(compare)
    app.command()(papers)


def compare(
    recipes: Annotated[
        list[str] | None, typer.Argument(help="Names or files; the first is the baseline, of --all llava15.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every recipe of the package.")] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            help="What each recipe may train: 40k-tokens, 2T-flops, 500-samples or 1.5-minutes. Default: its own "
            "amounts, which are not equal."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="So many seeds, from 0 on.", min=1)] = 1,
    tasks: Annotated[str, typer.Option(help="Tasks of Scenes with commas between; default: all.")] = "",
    limit: Annotated[
        int | None, typer.Option(help="Ask at most so many items a task, drawn by lot; POPE scores one kind.", min=2)
    ] = None,
    scale: Annotated[str, typer.Option(help="starter: the small trained parts; tiny: random ones.")] = "starter",
    scenes: Annotated[Path | None, typer.Option(help="Scenes to learn from and be asked about.")] = None,
    out: Annotated[Path, typer.Option(help="Where the runs and the table go.")] = Path("runs/compare"),
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    share: Annotated[
        str, typer.Option(help="K/N: run only the K-th of N shares; start the others beside it, with the same --out.")
    ] = "1/1",
    again: Annotated[
        Path | None,
        typer.Option(
            help="A compare.json: make its page anew, against the recipe that is named. Nothing is run.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    claims: Annotated[
        str,
        typer.Option(help="Claims about alignment instead of recipes: P1,P2, all, or list, which tells what they say."),
    ] = "",
    start: Annotated[
        Path | None, typer.Option("--from", help="The tuned run that claims go on from.", exists=True, file_okay=False)
    ] = None,
    as_json: JSON = False,
) -> None:
    """Train recipes on the same data in the same order, ask all the same, and print the table.

    They train with equal budgets (--budget), or each with its own amounts. The same command goes on after an
    interruption, and may name more recipes or seeds.
    """
    from quintet.cli.progress import CompareBars
    from quintet.cli.screen import screen
    from quintet.errors import ConfigError
    from quintet.lab import compare as lab
    from quintet.lab.compare.runs import TASKS
    from quintet.training.loop import Interrupted

    if not (parts := re.fullmatch(r"([0-9]+)/([0-9]+)", share)):
        raise typer.BadParameter(f"{share!r}; write it as 1/2", param_hint="--share")
    if claims == "list":
        _print_claims(as_json=as_json)
        return
    if claims or start:
        if recipes or every or not (claims and start):
            raise ConfigError(
                "claims go on from a tuned run: --claims P1,P2 --from RUN, and no recipes; `--claims list` tells them"
            )
        found = _study(
            claims, start, out, seeds=seeds, limit=limit, scenes=scenes, share=(int(parts[1]), int(parts[2]))
        )
        typer.echo(json.dumps(found, indent=1) if as_json else (out / "claims.md").read_text(encoding="utf-8"))
        typer.echo(f"Drawn: {out / 'claims.html'}", err=True)
        return
    if again is not None:
        _again(again, _named(recipes or [], every=every), out, as_json=as_json)
        return
    if precision not in ("auto", "fp32", "bf16"):
        raise typer.BadParameter(f"{precision!r}; choose from auto, fp32, bf16", param_hint="--precision")
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    asked = list(TASKS) if names in ([], ["all"]) else list(dict.fromkeys(names))
    limits = {name: min(TASKS.get(name, 800), limit or 10**9) for name in asked}
    comparison = lab.Comparison(
        recipes=_named(recipes or [], every=every),
        out=out,
        scale=scale,
        budget=lab.Budget.parse(budget) if budget else None,
        seeds=range(seeds),
        tasks=limits,
        scenes=scenes,
        share=(int(parts[1]), int(parts[2])),
        precision=precision,  # pyright: ignore[reportArgumentType]  # checked above
    )
    command = _spelt(comparison, every=every, names=names, limit=limit)
    try:
        with CompareBars(screen(stderr=True)) as bars:
            found = lab.compare(comparison, bars, command=command)
    except Interrupted:
        typer.secho("stopped; the same command goes on where this was", fg="yellow", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        _print(found, screen(), out)


def _named(recipes: list[str], *, every: bool) -> list[str]:
    """The recipes to set side by side, the baseline first."""
    from quintet.errors import ConfigError
    from quintet.lab.recipe import recipe_names

    if every and recipes:
        raise ConfigError("name recipes, or --all for every one of the package, not both")
    return [BASELINE, *(name for name in recipe_names() if name != BASELINE)] if every else recipes


def _again(path: Path, recipes: list[str], out: Path, *, as_json: bool) -> None:
    """The page of a comparison that was made, against another of its recipes."""
    from quintet.cli.screen import screen
    from quintet.errors import ConfigError
    from quintet.lab import compare as lab
    from quintet.lab.papers import read

    if len(recipes) > 1:
        raise ConfigError(f"--again reads a table against one recipe; {len(recipes)} are named")
    found: dict[str, Any] = dict(read([path])[0])
    found = lab.against(found, recipes[0]) if recipes else found
    out.mkdir(parents=True, exist_ok=True)
    lab.write(out, found)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        _print(found, screen(), out)


def _print_claims(*, as_json: bool) -> None:
    from quintet.lab.claims import CLAIMS

    if as_json:
        told = [{"id": claim.id, "says": claim.says, "source": claim.source} for claim in CLAIMS.values()]
        typer.echo(json.dumps(told, indent=1, ensure_ascii=False))
        return
    for claim in CLAIMS.values():
        typer.echo(f"{claim.id:4} {claim.says} ({claim.source})")


def _study(
    claims: str, start: Path, out: Path, *, seeds: int, limit: int | None, scenes: Path | None, share: tuple[int, int]
) -> dict[str, Any]:
    """Claims as experiments, with progress; what was found."""
    from quintet.cli.progress import CompareBars
    from quintet.cli.screen import screen
    from quintet.lab.claims import CLAIMS, Study, study
    from quintet.training.loop import Interrupted

    names = list(CLAIMS) if claims == "all" else [name.strip() for name in claims.split(",") if name.strip()]
    asked = Study(
        claims=names, start=start, out=out, seeds=range(seeds), limit=limit or 200, scenes=scenes, share=share
    )
    try:
        with CompareBars(screen(stderr=True)) as bars:
            return study(asked, bars)
    except Interrupted:
        typer.secho("stopped; the same command goes on where this was", fg="yellow", err=True)
        raise typer.Exit(INTERRUPTED) from None


def papers(
    results: Annotated[
        list[Path] | None, typer.Argument(help="compare.json files; of a recipe in several the first counts.")
    ] = None,
    notes: Annotated[
        Path | None,
        typer.Option(
            help="Tasks that each recipe should do, why some do not, times alone.", exists=True, dir_okay=False
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; without it the page is printed.")] = None,
) -> None:
    """Make docs/papers.md: every system's anatomy, its paper, and what it reached, with command, seeds and time."""
    from quintet.lab.papers import page, read, read_notes

    text = page(read(results or []), read_notes(notes) if notes else None)
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")


def _spelt(comparison: "Comparison", *, every: bool, names: list[str], limit: int | None) -> str:
    """The command that gives the same table anywhere: without folders of this machine.

    Scenes of one's own are `SCENES`: their seed and sizes are among the conditions.
    """
    words = ["quintet", "compare", *(["--all"] if every else comparison.recipes)]
    words += ["--budget", comparison.budget.text] if comparison.budget else []
    words += ["--seeds", str(len(comparison.seeds))]
    words += ["--tasks", ",".join(names)] if names else []
    words += ["--limit", str(limit)] if limit else []
    words += ["--scenes", "SCENES"] if comparison.scenes else []
    words += ["--scale", comparison.scale] if comparison.scale != "starter" else []
    words += ["--precision", comparison.precision] if comparison.precision != "auto" else []
    return " ".join(words)


def _print(found: dict[str, Any], console: "Console", out: Path) -> None:
    from rich.table import Table

    from quintet.lab.compare import words
    from quintet.lab.differs import said

    console.print(f"[bold]{words.title(found)}[/]\n[dim]{words.conditions(found)}[/]\n", highlight=False)
    costs = Table(*words.heads(found), box=None, pad_edge=False)
    for row in words.best_first(found):
        costs.add_row(f"[bold]{row['recipe']}", *words.facts(row, found)[1:])
    console.print(costs, "")
    # A block for each task: seven columns of scores with intervals fit no terminal.
    for task in words.tasks_of(found):
        scores = Table(
            task, "score [95 %] / shuffled", "majority", f"against {found['baseline']}", box=None, pad_edge=False
        )
        for row in words.best_first(found):
            score, made = row["scores"].get(task), words.versus(found, row["recipe"]).get(task)
            against = f"{made[0]:+.3f} ({made[1]:+.3f} to {made[2]:+.3f})" if made else ""
            majority = f"{score['majority']:.3f}" if score else ""
            cell = words.score(row, task) + words.controls(row, task)
            scores.add_row(f"[bold]{row['recipe']}", cell.replace("[", r"\["), majority, against)
        console.print(scores, "")
    for row in found["rows"]:
        if row["failed"]:
            console.print(f"{row['recipe']} failed, {words.failed(row)}", style="red", highlight=False, markup=False)
    for row in found["rows"]:
        if row["recipe"] != found["baseline"]:
            lines = said(row["differs"])
            more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
            text = f"{row['recipe']} differs from {found['baseline']}: {'; '.join(lines[:8]) or 'nothing'}{more}"
            console.print(text, highlight=False, markup=False)
    console.print(f"\nThe page: [bold]{out / 'compare.html'}[/], with compare.md and compare.json", highlight=False)
