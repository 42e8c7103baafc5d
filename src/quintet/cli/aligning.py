"""`quintet align`: from a tuned run to an aligned one."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quintet.cli.describe import JSON, ROOT, print_methods

if TYPE_CHECKING:
    from quintet.lab.align import Start
    from quintet.lab.change import Change
    from quintet.training.stage import Stage

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command()(align)


def align(
    method: Annotated[str, typer.Argument(help="dpo, rlhf_v, mdpo, …; `--list` shows all.")] = "",
    start: Annotated[
        Path | None, typer.Option("--from", help="The run whose model is aligned.", exists=True, file_okay=False)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A file for all stages of preferences, or STAGE=PATH. Default: pairs of Scenes.",
            metavar="[STAGE=]PATH",
        ),
    ] = None,
    root: ROOT = None,
    out: Annotated[Path | None, typer.Option(help="The new run's folder. Default: FROM-METHOD.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting: stages.dpo.preference.beta=0.2; may be repeated."),
    ] = None,
    scenes: Annotated[
        Path | None, typer.Option(help="Scenes to make pairs of, and to measure on.", exists=True, file_okay=False)
    ] = None,
    reward: Annotated[
        str, typer.Option(help="What the model's own answers are worth: exact, truth, or a reward model's run.")
    ] = "",
    judge: Annotated[
        str, typer.Option(help="Who judges where pairs are made: truth, the folder of a run or of transformers, a URL.")
    ] = "truth",
    facts: Annotated[
        Path | None,
        typer.Option(
            help='What a reward model is told: {"picture": ["caption", …]}. Default: the truth of Scenes.',
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    seed: Annotated[int, typer.Option(help="Of pairs, data order and noise.", min=0)] = 0,
    limit: Annotated[int, typer.Option(help="Items a task, before and after.", min=10)] = 300,
    margin: Annotated[
        float,
        typer.Option(help="Share of itself that a capability may lose before the run is marked failed.", min=0, max=1),
    ] = 0.05,
    measure: Annotated[bool, typer.Option(help="Measure before and after.")] = True,
    list_: Annotated[bool, typer.Option("--list", help="List the methods and do nothing.")] = False,
    as_json: JSON = False,
) -> None:
    """Align a tuned model by preferences; ends with what changed, and fails when a capability was lost."""
    from quintet import dist
    from quintet.cli.screen import screen
    from quintet.cli.training import bars, noted, print_results, stoppable
    from quintet.lab import run as lab
    from quintet.lab.align import Start
    from quintet.lab.judges import judge_of
    from quintet.training.loop import Settings

    if list_:
        print_methods(as_json=as_json)
        return
    if not method or start is None:
        raise typer.BadParameter("name a method and a run: quintet align dpo --from RUN")
    if not 0 <= margin < 1:
        raise typer.BadParameter(f"{margin} is no share", param_hint="--margin")
    begin = Start(start)
    folder = out if out is not None else start.with_name(f"{start.name}-{method}")
    recipe = begin.aligned(method)
    given = begin.facts.get("scenes")
    job = lab.Job(
        recipe=method, out=folder, scale=begin.scale, data=_files(data or [], recipe.stages),
        sets=sets or [], scenes=scenes or (Path(given) if given else None), resume=resume, start=begin,
        reward=reward, facts=facts, root=root, judge=judge_of(judge, cache=lab.cache_folder() / "judge"),
        settings=Settings(seed=seed),
    )  # fmt: skip
    console = screen(stderr=as_json)
    with dist.group(), stoppable(), bars(console, lab.resolve(job)[1]) as shown:
        results = lab.train(noted(job, shown), progress=shown.step)
    if not dist.is_first():
        return
    print_results(console, results)
    console.print(f"The model: {folder / 'model'}", highlight=False)
    judges = all(stage.objective == "reward" for stage in recipe.stages)
    found = _measured(begin, folder, job.scenes, limit=limit, margin=margin) if measure and not judges else None
    if as_json:
        typer.echo(json.dumps({"model": str(folder / "model")} | (found.to_json() if found else {}), indent=1))
    elif found:
        _print_change(found)
    if found and found.failed:
        raise typer.Exit(1)
    run, made = shlex.quote(str(start)), shlex.quote(str(folder))
    if judges:
        console.print(
            f"It tells the better answer in {_accuracy(folder):.0%} of the last pairs, before it learnt from them"
        )
    follows = f"align llava_rlhf --from {run} --reward {made}" if judges else f"chat {made}"
    console.print(f"Next: quintet {follows}", highlight=False)


def _files(given: list[str], stages: Sequence["Stage"]) -> dict[str, Path]:
    """A file without a name is for all stages that learn from what the first one does; `files` has the others."""
    from quintet.cli.training import files

    found = files(given, [stage.name for stage in stages])
    if "" in found:
        everywhere = found.pop("")
        found = {s.name: everywhere for s in stages if s.data.kind == stages[0].data.kind} | found
    return found


def _accuracy(folder: Path) -> float:
    """Of a reward model, over the last fifth of its steps."""
    from quintet.training.folder import Metrics, RunFolder

    rows = [row["accuracy"] for row in Metrics.read(RunFolder(folder).metrics) if "accuracy" in row]
    last = rows[-max(1, len(rows) // 5) :]
    return sum(last) / max(1, len(last))


def _measured(begin: "Start", folder: Path, scenes: Path | None, *, limit: int, margin: float) -> "Change":
    from quintet import dist
    from quintet.cli.progress import bar
    from quintet.cli.screen import screen
    from quintet.lab.change import change, measure
    from quintet.lab.run import scenes_folder
    from quintet.model.checkpoint import write_json
    from quintet.serving.engine import Engine

    place = scenes or scenes_folder()
    for run, out in ((begin.run, folder / "before"), (folder, folder)):
        engine = Engine.open(run, device=dist.device())
        with bar(screen(stderr=True), out.name) as update:
            measure(engine, out, scenes=place, limit=limit, progress=lambda name, done, total: update(done, total))
    found = change(folder / "before", folder, engine, scenes=place, margin=margin)
    write_json(folder / "change.json", found.to_json())
    return found


def _print_change(found: "Change") -> None:
    from rich.table import Table

    from quintet.cli.screen import screen

    table = Table("measure", box=None, pad_edge=False)
    for head in ("before", "after", "change", "95 % interval"):
        table.add_column(head, justify="right")
    table.add_column("")
    for row in found.rows:
        name = f"{row.name} (lower is better)" if row.higher_is_better is False else row.name
        interval = "{:+.3f} – {:+.3f}".format(*row.interval)
        colour = {"lost": "red", "kept": "green"}.get(row.verdict, "yellow")
        verdict = f"[{colour}]{row.verdict}[/]" if row.verdict else ""
        table.add_row(
            name, f"{row.before:.3f}", f"{row.after:.3f}", f"{row.after - row.before:+.3f}", interval, verdict
        )
    screen().print(table)
    if found.mute:
        screen().print(
            "[yellow]Nothing is shown by this:[/] the model answered nothing right before; tune one that talks first"
        )
    if found.failed:
        screen().print(
            f"[red]Failed:[/] a capability fell by more than {found.margin:.0%} of what it was. Train for less, with a "
            "smaller rate or a larger beta; --margin sets what may be lost"
        )
