"""Commands that make a run and use it: quickstart, train, eval, chat, report."""

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quintet.cli.describe import JSON, RECIPE, SCALE

if TYPE_CHECKING:
    from quintet.cli.progress import TrainingBars
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
INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command()(quickstart)
    app.command()(train)
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
    from quintet.lab import quickstart as arc
    from quintet.lab.run import Job, resolve

    console = screen()
    _, recipe = resolve(Job(recipe="llava15", out=out))
    with _stoppable("give the same command again"), _bars(console, recipe) as bars:
        done = arc.quickstart(out, pictures=pictures, seed=seed, note=bars.note, progress=bars.step, count=bars.count)
    _print_scores(list(done.scores.values()))
    for said in done.said:
        mark = "[green]✓[/]" if said.answer.strip().lower() == said.truth.lower() else f"[red]✗[/] ({said.truth})"
        console.print(f"{said.picture.name}  {said.question} [bold]{said.answer}[/] {mark}")
    spent = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in done.seconds.items())
    console.print(f"\n{spent}\n\nThe report: [bold]{done.report}[/]", highlight=False)
    console.print(f"Chat with a picture of yours: [bold]quintet chat {done.run} --image PICTURE[/]", highlight=False)


def train(
    recipe: RECIPE,
    scale: Annotated[str, typer.Option(help=SCALE)] = "starter",
    data: Annotated[
        list[str] | None,
        typer.Option(help="A data file for the last stage, or STAGE=PATH; may be repeated.", metavar="[STAGE=]PATH"),
    ] = None,
    stages: Annotated[str, typer.Option(help="Only these stages, with commas between.")] = "",
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change a setting: stages.instruct.batch=64; may be repeated.", metavar="NAME=VALUE"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder. Default: runs/RECIPE-SCALE.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    scenes: Annotated[Path | None, typer.Option(help="Scenes for stages without a file.")] = None,
    seed: Annotated[int, typer.Option(help="Of data order, weights and noise.", min=0)] = 0,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that decode pictures.", min=0)] = 0,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the LLM's blocks.")] = False,
    features: Annotated[str, typer.Option(help="Keep a frozen encoder's features on disk: auto, on or off.")] = "auto",
    save_seconds: Annotated[float, typer.Option(help="Time between checkpoints.", min=1)] = 300.0,
    save_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints instead.", min=1)] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch published weights from the hub.")] = False,
) -> None:
    """Train a recipe, stage by stage. Stopped (Ctrl-C) it writes a checkpoint and exits with 130; --resume goes on."""
    from quintet import dist
    from quintet.cli.screen import screen
    from quintet.lab import run
    from quintet.lab.recipe import load_recipe
    from quintet.training.loop import Settings

    choices = {"precision": (precision, ("auto", "fp32", "bf16")), "features": (features, ("auto", "on", "off"))}
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise typer.BadParameter(f"{value!r}; choose from {', '.join(allowed)}", param_hint=f"--{name}")
    name, found = load_recipe(recipe)
    settings = Settings(
        seed=seed,
        precision=precision,  # pyright: ignore[reportArgumentType]  # checked above
        workers=workers,
        compile=compile,
        features=features,  # pyright: ignore[reportArgumentType]
        save_seconds=save_seconds,
        save_steps=save_steps,
    )
    folder = out if out is not None else Path("runs") / f"{name}-{scale}"
    job = run.Job(
        recipe=recipe, out=folder, scale=scale, data=_files(data or [], [stage.name for stage in found.stages]),
        stages=[s.strip() for s in stages.split(",") if s.strip()], sets=sets or [], scenes=scenes, resume=resume,
        download=download, settings=settings,
    )  # fmt: skip
    console = screen()
    with dist.group(), _stoppable(), _bars(console, run.resolve(job)[1], precision=precision) as bars:
        first = dist.is_first()
        results = run.train(_noted(job, bars if first else None), progress=bars.step if first else None)
    if dist.is_first():
        for stage, result in results.items():
            lost = _lost(result.dropped, "samples dropped")
            lost += _lost(result.left_out, "pictures left out of their documents")
            console.print(
                f"{stage}: {result.steps:,} steps in {result.seconds:.0f} s, loss {result.first_loss:.3f} → "
                f"{result.last_loss:.3f}{lost}",
                highlight=False,
                markup=False,
            )
        own = f" --recipe {shlex.quote(recipe)}" if recipe.endswith(".py") else ""
        console.print(
            f"The model: [bold]{folder / 'model'}[/]. Next: quintet eval {shlex.quote(str(folder))}{own}",
            highlight=False,
        )


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
    as_json: JSON = False,
) -> None:
    """Measure a run; every score comes with its 95 % interval and with two controls. Writes RUN/eval/."""
    from quintet import dist
    from quintet.cli.progress import bar
    from quintet.cli.screen import screen
    from quintet.evaluation.run import evaluate as ask
    from quintet.evaluation.tasks.catalogue import TASKS, find_task
    from quintet.lab.record import note_pictures, scenes_of
    from quintet.serving.engine import Engine

    know(recipe)
    place = data if data is not None else scenes_of(run)
    names = _task_names(tasks, place)
    if data is None and (others := [name for name in names if name in TASKS and not name.startswith("scenes.")]):
        raise typer.BadParameter(f"{', '.join(others)} reads a file of yours; name it", param_hint="--data")
    found = {name: find_task(name, data=place, images=images, split=split) for name in names}
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


@contextmanager
def _stoppable(advice: str = "go on with --resume") -> Iterator[None]:
    """A run that was asked to stop has written a checkpoint: say so and exit with 130."""
    from quintet.training.loop import Interrupted

    try:
        yield
    except Interrupted as stopped:
        typer.secho(f"{stopped}; {advice}", fg="yellow", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _bars(console: Any, recipe: Any, *, precision: str = "auto") -> Iterator["TrainingBars"]:
    from quintet import dist
    from quintet.cli.progress import TrainingBars
    from quintet.lab.show import llm_flops
    from quintet.training.hardware import matmul_peak, pick_precision

    device = dist.device()
    peak = 0.0
    if dist.is_first():
        chosen = pick_precision(precision, device)  # pyright: ignore[reportArgumentType]
        peak = matmul_peak(device, chosen) * dist.world()
    flops = {stage.name: llm_flops(recipe, stage) for stage in recipe.stages}
    with TrainingBars(console, flops=flops, peak=peak) as bars:
        yield bars


def _lost(counts: Mapping[str, int], what: str) -> str:
    """', 3 samples dropped (2 too-long, 1 broken)', or nothing."""
    reasons = ", ".join(f"{n:,} {why}" for why, n in sorted(counts.items()))
    return f", {sum(counts.values()):,} {what} ({reasons})" if counts else ""


def _noted(job: Any, bars: "TrainingBars | None") -> Any:
    from dataclasses import replace

    return replace(job, note=bars.note) if bars is not None else job


def _files(given: list[str], stages: list[str]) -> dict[str, Path]:
    """`PATH` for the last stage (the empty name), `STAGE=PATH` for one by name."""
    from quintet.errors import ConfigError, nearest

    files: dict[str, Path] = {}
    for each in given:
        name, sign, path = each.partition("=")
        if not sign or Path(each).exists():
            name, path = "", each
        elif name not in stages:
            raise ConfigError(f"--data {each}: no stage {name!r}{nearest(name, stages)}")
        if name in files:
            raise ConfigError(f"--data names {name or 'the last stage'} twice; mix files with `quintet data mix`")
        files[name] = Path(path)
    return files


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
