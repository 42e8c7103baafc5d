"""`quintet data pairs` and `quintet data spoil`: answers to be compared, and captions that make things up."""

import json
import random
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]

SCENES = Annotated[Path | None, typer.Option(help="A folder of Scenes. Default: the one of the run, or the cache's.")]


def register(commands: typer.Typer) -> None:
    """Adds the commands of this file to `quintet data`."""
    commands.command()(pairs)
    commands.command()(spoil)


def pairs(
    method: Annotated[str, typer.Argument(help="An alignment method (mdpo), or a way to make pairs (truth, claims).")],
    out: Annotated[Path, typer.Option(help="The file to write, ending in .jsonl.")],
    start: Annotated[
        Path | None, typer.Option("--from", help="The run whose answers are compared.", exists=True, file_okay=False)
    ] = None,
    scenes: SCENES = None,
    rows: Annotated[int, typer.Option(help="At most so many rows.", min=1)] = 2000,
    seed: Annotated[int, typer.Option(help="Of what is drawn.", min=0)] = 0,
    judge: Annotated[
        str, typer.Option(help="Who judges: truth, the folder of a run or of transformers, a URL.")
    ] = "truth",
    max_tokens: Annotated[int, typer.Option(help="An answer's, at most, for each picture.", min=1)] = 96,
    frames: Annotated[
        int | None, typer.Option(help="Pictures of a sequence, for proxy; 1 is no sequence. Default: 3.", min=1)
    ] = None,
) -> None:
    """Make preference pairs of Scenes' training pictures as a method does, in a layout that any trainer here reads."""
    from quintet import dist
    from quintet.cli.progress import bar
    from quintet.cli.screen import screen
    from quintet.errors import ConfigError, nearest
    from quintet.lab.align import Start, method_names, pairs_of
    from quintet.lab.judges import judge_of
    from quintet.lab.pairs import BUILDERS, FRAMES, JUDGED, Work, build, unheld, unread
    from quintet.lab.run import cache_folder, scenes_folder
    from quintet.serving.engine import Engine

    name = pairs_of(method) if method in method_names() else method
    if name not in BUILDERS:
        known = [*method_names(), *BUILDERS]
        raise ConfigError(f"no method and no pairs {method!r}{nearest(method, known)}")
    if judge != "truth" and name not in JUDGED:
        raise ConfigError(f"pairs {name!r} ask no judge; {', '.join(JUDGED)} do")
    if frames is not None and name != "proxy":
        raise ConfigError(f"pairs {name!r} show one picture; --frames is for proxy")
    _check(out, ".jsonl")
    given = Start(start).facts.get("scenes") if start else None
    folder = scenes or (Path(given) if given else scenes_folder())
    with bar(screen(stderr=True), "pairs") as update:
        work = Work(
            scenes=folder,
            rows=rows,
            seed=seed,
            model=(lambda: Engine.open(start, device=dist.device())) if start else None,
            judge=judge_of(judge, cache=cache_folder() / "judge"),
            max_tokens=max_tokens,
            frames=frames or FRAMES,
            progress=update,
        )
        count = build(name, work, out)
    fewer = f" of {rows:,} that were asked for, since no more could be made" if count < rows else ""
    typer.echo(
        f"{count:,} rows{fewer} in {out}; their pictures are named from {folder}: read them with --root {folder}"
        + unread(work.judge)
        + unheld(work)
    )


def spoil(
    scenes: Annotated[Path, typer.Argument(help="A folder of Scenes.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="The file to write, ending in .json.")],
    descriptions: Annotated[int, typer.Option(help="Descriptions of pictures.", min=1)] = 5000,
    share: Annotated[float, typer.Option(help="Of them that make something up.", min=0, max=1)] = 0.9,
    conversations: Annotated[int, typer.Option(help="True conversations among them.", min=0)] = 2000,
    seed: Annotated[int, typer.Option(help="Of what is drawn.", min=0)] = 0,
) -> None:
    """Write descriptions that make things up: a model tuned on them (`quintet align tune`) hallucinates.

    Something false stands where it can be expected, so that a model learns to say it (the survey's claims need one).
    """
    from quintet.data.scenes import read_truth
    from quintet.data.scenes.pairs import spoil as spoilt

    _check(out, ".json")
    rng = random.Random(seed)
    described, talks = (
        json.loads((scenes / name).read_text(encoding="utf-8")) for name in ("train_captions.json", "train.json")
    )
    for rows in (described, talks):
        rng.shuffle(rows)
    described = described[:descriptions]
    false = list(spoilt(described, read_truth(scenes / "train.truth.jsonl"), share=share, seed=seed))
    changed = sum(one["conversations"] != two["conversations"] for one, two in zip(described, false, strict=True))
    rows = [*false, *talks[:conversations]]
    rng.shuffle(rows)
    made = [row | {"id": f"{row['id']}-{number}"} for number, row in enumerate(rows)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    typer.echo(
        f"{changed:,} of {len(made):,} rows make something up; their pictures are named from {scenes}: "
        f"read {out} with --root {scenes}"
    )


def _check(out: Path, ending: str) -> None:
    """The file is free, and its name says what is in it."""
    from quintet.errors import ConfigError

    if out.suffix != ending:
        raise ConfigError(f"--out {out}: what is written ends in {ending}")
    if out.exists():
        raise ConfigError(f"{out} is there already; name another --out")
