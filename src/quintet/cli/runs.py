"""Commands that use a run: eval, chat, report; and quickstart, which makes one and uses it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quintet.cli.describe import JSON

if TYPE_CHECKING:
    from quintet.evaluation.run import Result
    from quintet.lab.talk import Talk

__all__ = ["OWN", "RUN", "know", "register"]

RUN = Annotated[Path, typer.Argument(help="The folder of a run.", exists=True, file_okay=False)]
OWN = Annotated[
    Path | None,
    typer.Option(
        "--recipe", help="Your recipe's file, if it defines a part of the model.", exists=True, dir_okay=False
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command()(quickstart)
    app.command("eval")(evaluate)
    app.command()(chat)
    app.command()(report)


def quickstart(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("quickstart"),
    pictures: Annotated[int, typer.Option(help="Pictures to train on.", min=100)] = 5000,
    seed: Annotated[int, typer.Option(help="Of the pictures and of training.", min=0)] = 0,
) -> None:
    """The whole arc on the small parts of the package: make data, train, evaluate, report, and how to chat."""
    from quintet.cli.screen import screen
    from quintet.cli.training import bars, stoppable
    from quintet.lab import quickstart as arc
    from quintet.lab.run import Job, resolve

    console = screen()
    _, recipe = resolve(Job(recipe="llava15", out=out))
    with stoppable("give the same command again"), bars(console, recipe) as shown:
        done = arc.quickstart(
            out, pictures=pictures, seed=seed, note=shown.note, progress=shown.step, count=shown.count
        )
    _print_scores(list(done.scores.values()))
    for said in done.said:
        mark = "[green]✓[/]" if said.answer.strip().lower() == said.truth.lower() else f"[red]✗[/] ({said.truth})"
        console.print(f"{said.picture.name}  {said.question} [bold]{said.answer}[/] {mark}")
    spent = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in done.seconds.items())
    console.print(f"\n{spent}\n\nThe report: [bold]{done.report}[/]", highlight=False)
    console.print(f"Chat with a picture of yours: [bold]quintet chat {done.run} --image PICTURE[/]", highlight=False)


def evaluate(
    run: RUN,
    recipe: OWN = None,
    tasks: Annotated[str, typer.Option(help="Names with commas between; `all` of Scenes by default.")] = "",
    data: Annotated[
        Path | None, typer.Option(help="A folder of Scenes, or a file. Default: the Scenes that the run trained on.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that pictures are named from.")] = None,
    split: Annotated[str, typer.Option(help="Of Scenes.")] = "test",
    limit: Annotated[
        int | None, typer.Option(help="Ask at most so many items a task, drawn by lot; POPE scores one kind.", min=1)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts answered together; scores do not depend on it.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Of lots and of shuffled pictures.", min=0)] = 0,
    judge: Annotated[
        str, typer.Option(help="Who rates mmhal's answers: the folder of a run or of transformers, a URL.")
    ] = "",
    as_json: JSON = False,
) -> None:
    """Measure a run; every score comes with its 95 % interval and with two controls. Writes RUN/eval/."""
    from quintet import dist
    from quintet.cli.progress import bar
    from quintet.cli.screen import screen
    from quintet.evaluation.run import evaluate as ask
    from quintet.evaluation.tasks.catalogue import TASKS, find_task
    from quintet.lab.judges import rater_of
    from quintet.lab.record import note_pictures, scenes_of
    from quintet.lab.run import cache_folder
    from quintet.serving.engine import Engine

    know(recipe)
    place = data if data is not None else scenes_of(run)
    names = _task_names(tasks, place)
    if data is None and (others := [name for name in names if name in TASKS and not name.startswith("scenes.")]):
        raise typer.BadParameter(f"{', '.join(others)} reads a file of yours; name it", param_hint="--data")
    if judge and "mmhal" not in names:
        raise typer.BadParameter("of these tasks none is rated by a judge; mmhal is", param_hint="--judge")
    rater = rater_of(judge, cache=cache_folder() / "judge") if judge else None
    found = {name: find_task(name, data=place, images=images, split=split, judge=rater) for name in names}
    engine = Engine.open(run, device=dist.device())
    if not tasks or tasks == "all":
        found = {name: task for name, task in found.items() if engine.fits(task)}
    screen(stderr=True).print(f"asking about {place}", highlight=False, markup=False)
    results: list[Result] = []
    for name, task in found.items():
        with bar(screen(stderr=True), name) as update:
            result = ask(
                engine.answers(task, batch_size=batch_size),
                task,
                read=engine.processor.regions,
                limit=limit,
                batch_size=max(256, batch_size),
                seed=seed,
                out=run,
                progress=update,
            )
        note_pictures(run, name, images or (place if place.is_dir() else place.parent))
        results.append(result)
    if as_json:
        typer.echo(json.dumps({result.task: result.to_json() for result in results}, indent=1))
    else:
        _print_scores(results)


def chat(
    run: RUN,
    recipe: OWN = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", help="A picture; more than one may be given.", exists=True, dir_okay=False),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="One question; without it, a session.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", min=0)] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 128,
) -> None:
    """Ask a trained model, once (-p) or in a session: /image PATH shows a picture, /new forgets, /exit ends."""
    from quintet import dist
    from quintet.lab.talk import Talk
    from quintet.model.generate import Sampling
    from quintet.serving.engine import Engine

    know(recipe)
    engine = Engine.open(run, device=dist.device())
    talk = Talk(engine, sampling=Sampling(max_tokens=max_tokens, temperature=temperature))
    for image in images or []:
        _show(talk, image)
    if prompt is not None:
        if not prompt.strip():
            raise typer.BadParameter("the question is empty", param_hint="--prompt")
        _say(talk.ask(prompt))
        return
    typer.echo("Ask; /image PATH shows a picture, /new forgets everything, /exit ends.", err=True)
    _session(talk)


def report(
    run: Annotated[Path, typer.Argument(help="A run, or a folder of runs.", exists=True, file_okay=False)],
    out: Annotated[Path | None, typer.Option(help="The file to write. Default: report.html in the folder.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder that pictures are named from.", file_okay=False)] = None,
) -> None:
    """Write one HTML page with curves, scores, samples and cost; it holds everything and loads nothing."""
    from quintet.lab.report import write_report

    typer.echo(write_report(run, out=out, pictures=pictures))


# ---- pieces ------------------------------------------------------------------------------------------------------
def know(recipe: Path | None) -> None:
    """Runs a recipe's file, so that the parts which are defined there can be read from a run."""
    if recipe is not None:
        from quintet.lab.recipe import load_recipe

        load_recipe(str(recipe))


def _task_names(tasks: str, data: Path) -> list[str]:
    from quintet.evaluation.tasks.scenes import names_in

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if names and names != ["all"]:
        return list(dict.fromkeys(names))
    return names_in(data) if data.is_dir() else ["vqa"]


def _print_scores(results: "list[Result]") -> None:
    from rich.table import Table

    from quintet.cli.screen import screen
    from quintet.evaluation.metrics.metric import beside

    table = Table("task", "metric", box=None, pad_edge=False)
    for name in ("score", "95 % interval", "items", "majority", "shuffled", "seconds"):
        table.add_column(name, justify="right")
    for r in results:
        controls = [f"{v:.3f}" if (v := r.controls[c]) is not None else "–" for c in ("majority", "shuffled")]
        low, high = r.interval
        metric = r.metric if r.higher_is_better else f"{r.metric} (lower is better)"
        asked = r.counts["items"]
        cells = (
            f"[bold]{r.score:.3f}[/]{beside(r.to_json())}",
            f"{low:.3f} – {high:.3f}",
            f"{r.n:,}" if r.n == asked else f"{r.n:,} of {asked:,}",
        )
        table.add_row(r.task, metric, *cells, *controls, f"{r.seconds:.1f}")
    screen().print(table)
    if any(r.n != r.counts["items"] for r in results):
        screen().print(
            "[dim]Where more were asked than are counted, the score is of one kind (POPE's random setting)[/]"
        )


def _say(pieces: Iterator[str]) -> None:
    for piece in pieces:
        typer.echo(piece, nl=False)
    typer.echo()


def _show(talk: "Talk", picture: Path) -> None:
    if (frames := talk.show(picture)) > 1:
        typer.echo(f"{picture.name} has {frames} frames; the first is shown", err=True)


def _session(talk: "Talk") -> None:
    """Reads lines until the end of input. A command that fails says why, and the session goes on."""
    from quintet.errors import QuintetError

    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        try:
            if line == "/exit":
                return
            if line == "/new":
                talk.forget()
            elif line == "/image":
                typer.echo("/image PATH shows a picture; name its file", err=True)
            elif line.startswith("/image "):
                _show(talk, Path(line.removeprefix("/image").strip().strip("\"'")))
            elif line.startswith("/"):
                typer.echo("/image PATH, /new, /exit", err=True)
            elif line:
                _say(talk.ask(line))
        except QuintetError as error:
            typer.secho(str(error), fg="red", err=True)
