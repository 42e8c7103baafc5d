"""Commands on data files: make, check, convert, filter, mix, view."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quintet.cli import pairs
from quintet.cli.describe import JSON, ROOT

if TYPE_CHECKING:
    from rich.console import Console

    from quintet.data.sources import Source
    from quintet.lab.rows import Rules

__all__ = ["register"]

FILE = Annotated[Path, typer.Argument(help="A data file, or a folder of tar shards.")]
FORMAT = Annotated[str | None, typer.Option(help="The file's format. Default: told by its content.")]
OUT = Annotated[Path, typer.Option(help="The file to write, ending in .jsonl.")]

commands = typer.Typer(no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds `quintet data …`."""
    pairs.register(commands)
    app.add_typer(commands, name="data", help="Make, check, convert, filter, mix and view data.")


@commands.command()
def make(
    world: Annotated[str, typer.Argument(help="What to make: scenes.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    n: Annotated[
        int,
        typer.Option("--n", help="Pictures to train on; a tenth more, and at least 50, for val and for test.", min=1),
    ] = 5000,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal files.", min=0)] = 0,
    size: Annotated[int, typer.Option(help="Side of a picture, pixels.", min=64)] = 64,
    objects: Annotated[int, typer.Option(help="At most so many objects a picture.", min=1, max=6)] = 4,
    format: Annotated[str, typer.Option(help="llava, webdataset or both.")] = "llava",
    workers: Annotated[int, typer.Option(help="Processes; the files are the same.", min=1)] = 1,
) -> None:
    """Make Scenes: pictures of shapes, digits and words; captions, questions, boxes, documents and exact answers."""
    from quintet.cli.progress import bar
    from quintet.cli.screen import screen
    from quintet.data.scenes import World, make_scenes

    if world != "scenes":
        raise typer.BadParameter(f"{world!r}; there is: scenes")
    with bar(screen(stderr=True), "pictures") as update:
        made = make_scenes(
            out,
            n,
            seed,
            World(size=size, max_objects=objects),
            format=format,  # pyright: ignore[reportArgumentType]  # make_scenes refuses what it does not know
            progress=update,
            workers=workers,
        )
    typer.echo(made)


@commands.command()
def check(
    file: FILE,
    root: ROOT = None,
    format: FORMAT = None,
    extra: Annotated[list[str] | None, typer.Option(help="A key of rows that is only a note; may be repeated.")] = None,
    media: Annotated[bool, typer.Option(help="Decode every picture, or only look for its file.")] = True,
    limit: Annotated[int | None, typer.Option(help="Look at the first rows only.", min=1)] = None,
    as_json: JSON = False,
) -> None:
    """Say for every fault its row, its field and what to do; exits with 1 if there is one."""
    from quintet.cli.progress import bar
    from quintet.cli.screen import screen
    from quintet.data.check import check as look

    with bar(screen(stderr=True), file.name) as update:
        report = look(
            file, root=root, format=format, extra=tuple(extra or ()), media=media, limit=limit, progress=update
        )
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        for fault in report.faults:
            place = ", ".join([fault.file or str(file), *([f"row {fault.row}"] if fault.row is not None else [])])
            where = f"{place}, field {fault.field}" if fault.field else place
            typer.echo(_visible(f"{where}: {fault.fault}: {fault.message}"))
        ignored = ", ".join(f"{key} ({n:,} rows)" for key, n in report.ignored.items())
        typer.echo(
            f"{report.rows:,} rows, {report.good:,} good, {report.faulty:,} faulty; {report.media:,} media looked at"
        )
        if 0 < len(report.without) < report.good:
            alone = f"{len(report.without):,} of {report.good:,}; the first: {report.without[0]}"
            typer.echo(_visible(f"good rows without a picture: {alone}"))
        if report.left_out:
            lost = ", ".join(f"{n:,} {rule}" for rule, n in report.left_out.most_common())
            typer.echo(f"pictures left out of their documents: {lost}")
        if ignored:
            typer.echo(f"left unread on purpose: {ignored}")
        elif report.rows and not any(fault.fault == "unknown-key" for fault in report.faults):
            typer.echo("every key was read")
    if report.faults:
        raise typer.Exit(1)


@commands.command()
def convert(file: FILE, out: OUT, root: ROOT = None, format: FORMAT = None, as_json: JSON = False) -> None:
    """Write any source as LLaVA JSONL with its pictures beside it; faulty rows are dropped and listed."""
    _write(_open(file, root, format), out, as_json=as_json)


@commands.command("filter")
def filter_(
    file: FILE,
    out: OUT,
    min_answer: Annotated[int, typer.Option(help="Words that every answer has at least.", min=0)] = 0,
    max_words: Annotated[int | None, typer.Option(help="Words that a row has at most.", min=1)] = None,
    unique: Annotated[bool, typer.Option("--unique", help="Drop rows of equal words and pictures.")] = False,
    media: Annotated[bool, typer.Option(help="Decode every picture; what cannot be opened is dropped.")] = True,
    root: ROOT = None,
    format: FORMAT = None,
    as_json: JSON = False,
) -> None:
    """Keep the rows that are whole and fit; what is dropped, and why, is written to OUT.dropped.jsonl."""
    from quintet.lab.rows import Rules

    rules = Rules(min_answer=min_answer, max_words=max_words, unique=unique, checked=media)
    _write(_open(file, root, format), out, rules=rules, as_json=as_json)


@commands.command()
def mix(
    files: Annotated[
        list[str], typer.Argument(help="Data files; FILE=WEIGHT gives one a share.", metavar="FILE[=WEIGHT]…")
    ],
    out: OUT,
    size: Annotated[
        int | None, typer.Option(help="Rows in all. Default: all rows of all files together.", min=1)
    ] = None,
    power: Annotated[
        float, typer.Option(help="Without weights: of a file of n rows, n to the power. 0.5 is InstructBLIP's.", min=0)
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the choice and the order.", min=0)] = 0,
    as_json: JSON = False,
) -> None:
    """Write several sources as one file, by weight; without weights each has its share of rows."""
    from quintet.data.sources import Mix, open_source

    names, weights = zip(*(_weighted(each) for each in files), strict=True)
    sources = [open_source(name) for name in names]
    given = [weight for weight in weights if weight is not None]
    if given and (len(given) < len(weights) or power != 1):
        raise typer.BadParameter("give every file a weight, or none and a --power")
    if given:
        mixed = Mix.weighted(sources, weights=given, size=size, seed=seed)
    else:
        mixed = Mix.tempered(sources, power=power, size=size, seed=seed)
    _write(mixed, out, as_json=as_json, facts={"rows_by_source": dict(mixed.counts)})


@commands.command()
def view(
    file: FILE,
    n: Annotated[int, typer.Option("--n", "-n", help="Rows to show.", min=1)] = 5,
    row: Annotated[int | None, typer.Option(help="The first of them, counted from 1.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Draw them by lot instead.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the pictures instead.")] = None,
    root: ROOT = None,
    format: FORMAT = None,
) -> None:
    """Show rows as they are understood: who says what, where pictures stand, what is wrong."""
    from quintet.cli.screen import screen
    from quintet.lab.sheet import pick, write_sheet

    source = _open(file, root, format)
    indices = pick(source, n=n, seed=seed, row=row)
    if html is not None:
        typer.echo(write_sheet(source, indices, html))
        return
    console = screen()
    for index in indices:
        _print_row(console, source, index)
    console.print(f"{len(indices):,} of {len(source):,} rows", highlight=False)


# ---- pieces ------------------------------------------------------------------------------------------------------
def _open(file: Path, root: Path | None, format: str | None) -> "Source":
    from quintet.data.sources import open_source

    return open_source(file, root=root, format=format)


def _print_row(console: "Console", source: "Source", index: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from quintet.lab.sheet import spoken, standing, words

    reading = source.read(index)
    origin = reading.origin
    console.print(Text(f"row {origin.row}  {_visible(origin.id)}", style="bold"))
    grid = Table.grid(padding=(0, 2))
    for by, turn in spoken(reading):
        style = "green" if turn.role in ("assistant", "document") and turn.weight else ""
        grid.add_row(Text(f"  {_visible(by)}", style="dim"), Text(_visible(words(turn)), style=style))
    if grid.rows:
        console.print(grid)
    if row := standing(source, index, reading):
        console.print(Text(f"  {_visible(row)}"))
    for fault in reading.faults:
        console.print(
            Text(_visible(f"  ✗ {f'{fault.field} ' if fault.field else ''}{fault.fault}: {fault.message}"), style="red")
        )
    console.print()


def _visible(text: str) -> str:
    """Characters that a terminal would obey are spelt out; line breaks stay."""
    return "".join(c if c == "\n" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _weighted(text: str) -> tuple[str, float | None]:
    """`a.json=2` → the file and its weight; a name that exists is a file, whatever is in it."""
    name, sign, weight = text.rpartition("=")
    if not sign or Path(text).exists():
        return text, None
    try:
        return name, float(weight)
    except ValueError:
        raise typer.BadParameter(f"{text!r}: the weight {weight!r} is no number") from None


def _write(
    source: "Source",
    out: Path,
    *,
    rules: "Rules | None" = None,
    as_json: bool,
    facts: dict[str, Any] | None = None,
) -> None:
    from quintet.cli.progress import bar
    from quintet.cli.screen import screen
    from quintet.lab.rows import write_rows

    with bar(screen(stderr=True), source.name) as update:
        written = write_rows(source, out, rules=rules, progress=update)
    if as_json:
        typer.echo(json.dumps(written.to_json() | (facts or {}), indent=1))
        return
    lost = ", ".join(f"{count:,} {fault}" for fault, count in written.dropped.most_common())
    typer.echo(f"{written.path}: {written.kept:,} of {written.read:,} rows{f'; dropped: {lost}' if lost else ''}")
