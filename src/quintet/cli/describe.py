"""Commands that look and change nothing: recipes, show, doctor."""

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from quintet.lab.listing import Entry

__all__ = ["print_methods", "register"]

RECIPE = Annotated[str, typer.Argument(help="A recipe's name, or the path of a file of yours.")]
ROOT = Annotated[
    Path | None,
    typer.Option(help="Folder that pictures are named from. Default: the file's own.", exists=True, file_okay=False),
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
SCALE = "full: published parts; starter: the small trained parts of the package; tiny: random, for tests."


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command()(recipes)
    app.command()(show)
    app.command()(doctor)


def recipes(
    as_json: JSON = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of the README.")] = False,
    into: Annotated[
        Path | None,
        typer.Option(help="Write that table between its markers in this file.", exists=True, dir_okay=False),
    ] = None,
    parts: Annotated[bool, typer.Option("--parts", help="List parts instead: role, part, who uses it.")] = False,
    methods: Annotated[bool, typer.Option("--methods", help="List the ways to align a tuned model instead.")] = False,
) -> None:
    """List every system: its encoder, connector, fusion and LLM, what trains per stage, its paper."""
    from quintet.lab import listing

    if (parts or as_json) and (markdown or into):
        raise typer.BadParameter("--markdown and --into are for the table of systems; --parts and --json print others")
    if methods:
        if parts or into:
            raise typer.BadParameter("--methods prints a table of its own, as text, --json or --markdown")
        print_methods(as_json=as_json, markdown=markdown)
        return
    if parts:
        _print_parts(as_json=as_json)
        return
    entries = listing.listing()
    if as_json:
        typer.echo(json.dumps([entry.to_json() for entry in entries], indent=1, ensure_ascii=False))
    elif into is not None:
        listing.write_into(into, listing.markdown(entries))
    elif markdown:
        typer.echo(listing.markdown(entries))
    else:
        _print_anatomy(entries)


def show(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, the path of a file of yours, or a method's name.")],
    scale: Annotated[str, typer.Option(help=SCALE)] = "full",
    as_json: JSON = False,
) -> None:
    """Print parts, what trains in each stage, tokens per item, memory and FLOPs; nothing is downloaded.

    Of an alignment method: what it is and all its settings.
    """
    from quintet.cli.shown import print_method, print_shown
    from quintet.errors import ConfigError
    from quintet.lab import methods
    from quintet.lab.align import method_names
    from quintet.lab.recipe import load_recipe, recipe_names, recipe_notes
    from quintet.lab.show import show as figures
    from quintet.recipes._scale import at_scale

    if recipe in method_names():
        entry, stages = methods.entry(recipe), methods.settings(recipe, scale)
        if as_json:
            typer.echo(json.dumps(entry.to_json() | {"scale": scale, "stages": stages}, indent=1, ensure_ascii=False))
        else:
            print_method(entry, stages, scale=scale)
        return
    if near := difflib.get_close_matches(recipe.lower(), () if recipe in recipe_names() else method_names(), n=1):
        raise ConfigError(f"no recipe and no method {recipe!r}; did you mean the method {near[0]!r}?")
    name, found = load_recipe(recipe)
    shown = figures(name, at_scale(found, scale), scale=scale)
    if as_json:
        typer.echo(json.dumps(shown.to_json(), indent=1))
        return
    print_shown(shown, found.paper, notes=recipe_notes(recipe))


def doctor(
    what: Annotated[str, typer.Argument(help="A recipe, or a data file.")],
    scale: Annotated[str, typer.Option(help=SCALE)] = "starter",
    data: Annotated[Path | None, typer.Option(help="What the recipe's last stage learns from.", exists=True)] = None,
    samples: Annotated[int, typer.Option(help="Rows to show and to run.", min=1)] = 8,
    limit: Annotated[int, typer.Option(help="Rows of a source to read, at most.", min=1)] = 5000,
    as_json: JSON = False,
) -> None:
    """Render samples, prove every contract from file to loss, and name each fault; exits with 1 if there is one."""
    from quintet.cli.progress import Bars
    from quintet.cli.screen import screen
    from quintet.lab.doctor import diagnose

    with Bars(screen(stderr=True)) as bars:
        found = diagnose(what, scale=scale, data=data, samples=samples, limit=limit, progress=bars.update)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        found.render(screen())
    if not found.ok:
        raise typer.Exit(1)


def _print_anatomy(entries: "list[Entry]") -> None:
    """The table of systems, whose cells break between words; a block a system where the window is too narrow for it."""
    from rich.padding import Padding
    from rich.table import Table

    from quintet.cli.screen import screen
    from quintet.lab.listing import anatomy

    console = screen()
    heads = ("recipe", "encoder", "connector", "fusion", "LLM", "what trains, stage by stage", "paper")
    rows = [(e.name, *anatomy(e), f"{e.paper.authors} {e.paper.year}") for e in entries]
    columns = list(zip(heads, *rows, strict=True))
    least = [max(len(word) for cell in column for word in cell.split()) for column in columns]
    most = [max(map(len, column)) for column in columns]
    spare = console.width - sum(least) - 2 * (len(heads) - 1)
    if spare < 0:
        for name, encoder, connector, fusion, llm, trains, paper in rows:
            built = f"{encoder} → {connector} → {fusion} → {llm}"
            said = f"[bold]{name}[/], {paper}\n{built}\n[dim]{trains}[/]"
            console.print(Padding(said, (0, 0, 1, 0)), highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    wanted = sum(most) - sum(least)
    for head, low, high in zip(heads, least, most, strict=True):
        table.add_column(head, width=low + min(high - low, spare * (high - low) // max(1, wanted)))
    for name, *rest in rows:
        table.add_row(f"[bold]{name}", *rest)
    console.print(table)


def print_methods(*, as_json: bool = False, markdown: bool = False) -> None:
    """The table of alignment methods."""
    from rich.table import Table

    from quintet.cli.screen import screen
    from quintet.lab import methods

    found = methods.methods()
    if as_json:
        typer.echo(json.dumps([entry.to_json() for entry in found], indent=1, ensure_ascii=False))
        return
    if markdown:
        typer.echo(methods.markdown(found))
        return
    table = Table(box=None, pad_edge=False)
    for head in ("method", "what it is", "stages: learns by, what learns", "pairs of its own", "paper"):
        table.add_column(head, overflow="fold")
    for e in found:
        paper = f"{e.paper.authors} {e.paper.year}, arXiv:{e.paper.arxiv}"
        table.add_row(f"[bold]{e.name}", e.says, " → ".join(e.learns), e.pairs, paper)
    screen().print(table)


def _print_parts(*, as_json: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from quintet.cli.screen import screen
    from quintet.lab.parts import parts

    found = parts()
    if as_json:
        typer.echo(json.dumps([entry.to_json() for entry in found], indent=1, ensure_ascii=False))
        return
    table = Table("role", "part", "what it is", "used by", "import from", box=None, pad_edge=False)
    for e in found:
        more = f" and {len(e.used_by) - 4} more" if len(e.used_by) > 4 else ""
        users = ", ".join(e.used_by[:4]) + more or "–"
        table.add_row(e.role, f"[bold]{e.name}", escape(e.what), users, e.module.removeprefix("quintet.components."))
    screen().print(table)
    screen().print("\n[dim]Import from quintet.components.…; --json has all who use a part.[/]", highlight=False)
