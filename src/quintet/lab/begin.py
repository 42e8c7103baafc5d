"""Which run a folder holds, whether it may go on there, and what it leaves when it cannot begin."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import quintet
from quintet import dist
from quintet.data.sources import Source
from quintet.errors import CheckpointError, ConfigError, DataError, QuintetError
from quintet.lab.differs import differing, said
from quintet.lab.recipe import trains_as
from quintet.model.checkpoint import ends_digest, read_json, write_json
from quintet.recipes._recipe import Recipe
from quintet.training.folder import RunFolder

if TYPE_CHECKING:
    from quintet.lab.run import Job

__all__ = ["as_begun", "begun", "check_folder", "look_for_pictures", "run_facts"]

LOOKED = 20
"""Rows whose pictures are looked for before a run begins."""
SHOWN = 4
"""Settings that are named where a run is resumed with others."""


def run_facts(job: "Job", name: str, recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """What says which run this is: the content of recipe.json."""
    last = recipe.stages[-1].name
    data = {stage or last: _fingerprint(path) for stage, path in job.data.items()}
    if run.recipe.exists():
        # Files of stages that this call does not name are those of the calls before.
        data = read_json(run.recipe).get("data", {}) | data
    return {
        "name": name,
        "scale": job.scale,
        "recipe": recipe.to_json(),
        "data": data,
        "scenes": str(job.scenes.resolve()) if job.scenes else None,
        "seed": job.settings.seed,
        "precision": job.settings.precision,
        **({"from": job.start.identity()} if job.start else {}),
        **({"reward": job.reward} if job.reward else {}),
        **({"judge": job.judge.name} if job.judge.name != "truth" else {}),
        **({"facts": _fingerprint(job.facts)} if job.facts else {}),
        "versions": {"quintet": quintet.__version__, "torch": torch.__version__, "python": sys.version.split()[0]},
    }


def _fingerprint(path: Path) -> dict[str, Any]:
    """A data file and what tells it from another (`ends_digest`)."""
    if not path.is_file():
        return {"path": str(path)}
    return {"path": str(path), "bytes": path.stat().st_size, "ends_sha256": ends_digest(path)}


def check_folder(run: RunFolder, job: "Job", facts: Mapping[str, Any]) -> None:
    """Whether the folder is free, or holds this very run and `resume` is asked for."""
    if not run.recipe.exists():
        if run.path.exists() and (not run.path.is_dir() or any(not p.name.startswith(".") for p in run.path.iterdir())):
            raise ConfigError(f"{run.path} is not empty and holds no run; name another --out")
        if job.resume:
            job.note(f"there is no run in {run.path} yet; it begins with the first step")
        return
    if not job.resume:
        raise ConfigError(f"{run.path} holds a run; go on with --resume, or name another --out")
    old = read_json(run.recipe)
    changed = differing(_settings(old), _settings(facts))
    wrong = said(dict(list(changed.items())[:SHOWN]))
    wrong += [f"{len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
    wrong += [
        f"the data of stage {stage}"
        for stage, file in old.get("data", {}).items()
        if {**file, "path": ""} != {**facts["data"][stage], "path": ""}
    ]
    wrong += [f"the data of stage {stage}" for stage in facts["data"].keys() - old.get("data", {}).keys()]
    if wrong:
        raise CheckpointError(
            f"{run.path} is another run. What differs (there → here): {'; '.join(wrong)}. "
            "--resume needs the same, or name another --out"
        )


def _settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same when a run goes on, by the paths that `--set` takes."""
    recipe = trains_as(facts.get("recipe"))
    stages = {stage["name"]: stage for stage in recipe.get("stages", ())}
    rest = {key: facts.get(key) for key in ("scale", "scenes", "seed", "precision", "from", "reward", "facts", "judge")}
    return {**recipe, "stages": stages, **rest}


def as_begun(job: "Job", run: RunFolder) -> "Job":
    """The job with what need not be named again when a run goes on: the Scenes that it learns from."""
    if not job.resume or job.scenes is not None or not run.recipe.exists():
        return job
    known = read_json(run.recipe).get("scenes")
    return replace(job, scenes=Path(known)) if known else job


def look_for_pictures(source: Source, file: Path, *, given: bool) -> None:
    """Whether any picture of the first rows is there: if none is, the folder that they are named from is another.

    Raises:
        ConfigError: none is.
    """
    missing: list[Path] = []
    for index in range(min(LOOKED, len(source))):
        try:
            media = source.sample(index).media()
        except DataError as error:
            if error.fault != "missing-file":
                return  # rows have other faults, which are told of as they are met
            media = []
        paths = [each.ref.path for each in media if each.ref.path is not None]
        if any(path.exists() for path in paths) or (media and not paths):
            return
        missing += paths
    if missing:
        how = "--root names another folder" if given else "name it: --root FOLDER"
        raise ConfigError(
            f"{file}: of the pictures of its first rows none is there, as {missing[0]}; they are named from the folder "
            f"of the file unless another is given, {how}"
        )


@contextmanager
def begun(run: RunFolder, facts: Mapping[str, Any]) -> Iterator[None]:
    """First what says that a run is here: whatever stops it after that can be resumed.

    A run that cannot begin leaves nothing that stands in the way of the next one.
    """
    dist.barrier()  # until every process has seen that the folder is free
    if dist.is_first():
        run.path.mkdir(parents=True, exist_ok=True)
        if not run.recipe.exists():
            write_json(run.recipe, dict(facts))
        run.checkpoints.mkdir(exist_ok=True)
    dist.barrier()
    try:
        yield
    except QuintetError:
        if dist.is_first():
            run.give_up()
        raise
