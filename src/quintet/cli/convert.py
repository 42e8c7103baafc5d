"""Commands that bring models in and out, and build the parts that ship with the package: import, export, starter."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quintet.cli.runs import OWN, RUN, know

if TYPE_CHECKING:
    from quintet.model.convert import Conversion

__all__ = ["register"]

starter = typer.Typer(no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command("import")(import_)
    app.command()(export)
    app.add_typer(starter, name="starter", help="The small trained parts that ship with the package.")


def import_(
    source: Annotated[
        Path, typer.Argument(help="A folder as transformers saves it, or of --as.", exists=True, file_okay=False)
    ],
    out: Annotated[Path, typer.Option(help="The run's folder to write.")],
    template: Annotated[
        str, typer.Option(help="The recipe whose conversations the checkpoint was trained on.", show_default="its own")
    ] = "",
    as_: Annotated[
        str, typer.Option("--as", help="The recipe whose authors' own release this is (docs/released.md).")
    ] = "",
    download: Annotated[
        bool, typer.Option("--download", help="With --as: fetch published parts that the release leaves out.")
    ] = False,
) -> None:
    """Take in a transformers checkpoint; the logits of both are compared and recorded in parity.json.

    With --as, take in a release that transformers has no class for: its names and shapes are matched to the last one.
    """
    from quintet.lab.recipe import load_recipe
    from quintet.lab.talk import silent
    from quintet.model.convert import import_run, retrieves, spoken_as

    if download and not as_:
        message = "it is for a release of --as; nothing is downloaded for a folder of transformers"
        raise typer.BadParameter(message, param_hint="--download")
    if not as_ and retrieves(source):
        if template:
            message = "the folder has no LLM to talk to; its captions are spelt as in blip2's first stage"
            raise typer.BadParameter(message, param_hint="--template")
        [align] = load_recipe("blip2")[1].only(["align"])
        _print(import_run(source, out, processor={"template": align.template.to_json()}))
        _warn(silent(out))
        return
    spelt, recipe = load_recipe(template or as_ or spoken_as(source))
    if as_:
        from quintet.lab.released import import_released

        made = import_released(source, out, of=load_recipe(as_), template=recipe.template, download=download)
        typer.echo(f"{made.line()}\nno class of transformers to compare logits with; names and shapes all match")
    else:
        _print(import_run(source, out, processor={"template": recipe.template.to_json()}))
    hint = f"as --template says, not as in {as_}" if as_ and template else "--template names another recipe"
    typer.echo(f"conversations are spelt as in {spelt} ({recipe.template.name}); {hint}")
    _warn(silent(out))


def export(
    run: RUN,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    recipe: OWN = None,
    chat_template: Annotated[
        Path | None, typer.Option(help="The conversation's spelling in Jinja, for transformers and vLLM.", exists=True)
    ] = None,
) -> None:
    """Write a run's model as transformers loads it; the logits of both are compared and recorded in parity.json."""
    from quintet.model.convert import export_run

    know(recipe)
    template = chat_template.read_text(encoding="utf-8") if chat_template is not None else ""
    _print(export_run(run, out, chat_template=template))


@starter.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder to write; the package's own is src/quintet/starter.")],
    parts: Annotated[str, typer.Option(help="vision, llm, or both with a comma between.")] = "vision,llm",
    steps: Annotated[int | None, typer.Option(help="Steps of each part, to try it out.", min=1)] = None,
    pictures: Annotated[int | None, typer.Option(help="Pictures for the encoder, to try it out.", min=1)] = None,
) -> None:
    """Train the starter parts on Scenes: the encoder on pictures, the LLM on text alone, and write their card."""
    from dataclasses import replace
    from typing import Any

    from quintet.lab.starter.build import LlmSchedule, build_llm, build_vision, write_card
    from quintet.lab.starter.vision import VisionSchedule

    chosen = [part.strip() for part in parts.split(",") if part.strip()]
    if not chosen or set(chosen) - {"vision", "llm"}:
        raise typer.BadParameter(f"{parts!r}; choose from vision, llm", param_hint="--parts")
    facts: dict[str, Any] = {}
    if "vision" in chosen:
        schedule = VisionSchedule()
        schedule = replace(schedule, steps=steps or schedule.steps, pictures=pictures or schedule.pictures)
        facts["vision"] = build_vision(out, schedule, note=typer.echo)
    if "llm" in chosen:
        reading = LlmSchedule()
        if steps:
            reading = replace(reading, phases=tuple(replace(phase, steps=steps) for phase in reading.phases))
        run = out.with_name(f"{out.name}.run")
        facts["llm"] = build_llm(out, reading, run=run, note=typer.echo)
    write_card(out, facts)
    typer.echo(out / "CARD.md")


def _warn(why: str) -> None:
    if why:
        typer.echo(f"warning: the run cannot be talked to or measured: {why}", err=True)


def _print(made: "Conversion") -> None:
    near = made.parity.max_abs_logit_difference
    typer.echo(f"{made.place}: {made.parameters:,} parameters; {', '.join(made.files)}")
    typer.echo(f"largest difference of a logit: {near:.3g} of {made.parity.max_abs_logit:.3g} ({made.parity.dtype})")
