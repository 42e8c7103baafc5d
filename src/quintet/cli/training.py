"""`quintet train`, and what the commands that train share: progress bars, files by stage, stopping."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quintet.cli.describe import RECIPE, ROOT, SCALE

if TYPE_CHECKING:
    from quintet.cli.progress import TrainingBars
    from quintet.training.loop import Result

__all__ = ["bars", "files", "noted", "print_results", "register", "stoppable"]

INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command()(train)


def train(
    recipe: RECIPE,
    scale: Annotated[str, typer.Option(help=SCALE)] = "starter",
    data: Annotated[
        list[str] | None,
        typer.Option(help="A data file for the last stage, or STAGE=PATH; may be repeated.", metavar="[STAGE=]PATH"),
    ] = None,
    root: ROOT = None,
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
        recipe=recipe, out=folder, scale=scale, data=files(data or [], [stage.name for stage in found.stages]),
        stages=[s.strip() for s in stages.split(",") if s.strip()], sets=sets or [], scenes=scenes, root=root,
        resume=resume,
        download=download, settings=settings,
    )  # fmt: skip
    console = screen()
    with dist.group(), stoppable(), bars(console, run.resolve(job)[1], precision=precision) as shown:
        first = dist.is_first()
        results = run.train(noted(job, shown if first else None), progress=shown.step if first else None)
    if dist.is_first():
        print_results(console, results)
        own = f" --recipe {shlex.quote(recipe)}" if recipe.endswith(".py") else ""
        console.print(
            f"The model: [bold]{folder / 'model'}[/]. Next: quintet eval {shlex.quote(str(folder))}{own}",
            highlight=False,
        )


# ---- pieces ------------------------------------------------------------------------------------------------------
@contextmanager
def stoppable(advice: str = "go on with --resume") -> Iterator[None]:
    """A run that was asked to stop has written a checkpoint: say so and exit with 130."""
    from quintet.training.loop import Interrupted

    try:
        yield
    except Interrupted as stopped:
        typer.secho(f"{stopped}; {advice}", fg="yellow", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except KeyboardInterrupt:
        # Between steps, as while pairs are made or pictures encoded.
        typer.secho(f"interrupted; {advice}", fg="yellow", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def bars(console: Any, recipe: Any, *, precision: str = "auto") -> Iterator["TrainingBars"]:
    """Progress of training, with its share of what the machine can compute."""
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
    with TrainingBars(console, flops=flops, peak=peak) as shown:
        yield shown


def print_results(console: Any, results: Mapping[str, "Result"]) -> None:
    """What each stage did, and what it lost."""
    for stage, result in results.items():
        lost = _lost(result.dropped, "samples dropped")
        lost += _lost(result.left_out, "pictures left out of their documents")
        console.print(
            f"{stage}: {result.steps:,} steps in {result.seconds:.0f} s, loss {result.first_loss:.3f} → "
            f"{result.last_loss:.3f}{lost}",
            highlight=False,
            markup=False,
        )


def _lost(counts: Mapping[str, int], what: str) -> str:
    """', 3 samples dropped (2 too-long, 1 broken)', or nothing."""
    reasons = ", ".join(f"{n:,} {why}" for why, n in sorted(counts.items()))
    return f", {sum(counts.values()):,} {what} ({reasons})" if counts else ""


def noted(job: Any, shown: "TrainingBars | None") -> Any:
    """The job, whose notes are printed above the bars."""
    from dataclasses import replace

    return replace(job, note=shown.note) if shown is not None else job


def files(given: list[str], stages: list[str]) -> dict[str, Path]:
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
