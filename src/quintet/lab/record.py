"""A run's folder as a value: its recipe, steps, results and pictures, read once.

Pictures are looked for where the evaluation noted them (`note_pictures`), then beside the run, then among the Scenes of
the cache folder.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quintet.errors import CheckpointError
from quintet.evaluation.tasks.catalogue import TASKS
from quintet.lab.page import Picture, picture
from quintet.lab.run import cache_folder, scenes_folder
from quintet.model.checkpoint import read_json, write_json
from quintet.training.folder import Metrics, RunFolder
from quintet.values import Ref

__all__ = ["RunRecord", "find_runs", "note_pictures", "scenes_of"]

_NOTED = ".pictures.json"


@dataclass(frozen=True)
class RunRecord:
    """A run's folder, read."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    """recipe.json."""
    steps: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Stage → its lines of metrics."""
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Stage → stage.json."""
    results: tuple[dict[str, Any], ...] = ()
    """eval/<task>.json, in the order of the catalogue."""
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Task → eval/<task>.jsonl."""
    roots: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    """Task → folders that its pictures may be named from."""

    @property
    def name(self) -> str:
        return str(self.facts.get("name", self.path.name))

    def picture(self, task: str, name: str) -> Picture:
        """A picture of an evaluation's line."""
        for root in self.roots.get(task, ()):
            if (path := root / name).is_file():
                return picture(Ref(name, path=path))
        return Picture("", (0, 0), f"{name} was not found; name its folder with --pictures")

    @staticmethod
    def read(path: Path, *, pictures: Path | None = None) -> "RunRecord":
        """The record of a run's folder.

        Raises:
            CheckpointError: a file of the run is broken.
        """
        folder = RunFolder(path)
        steps: dict[str, list[dict[str, Any]]] = {}
        for row in Metrics.read(folder.metrics) if folder.metrics.exists() else []:
            steps.setdefault(str(row["stage"]), []).append(row)
        found = [read_json(p) for p in sorted((path / "eval").glob("*.json")) if not p.name.startswith(".")]
        order = {task: n for n, task in enumerate(TASKS)}
        kept = (r for r in found if isinstance(r, dict) and "task" in r)
        results = tuple(sorted(kept, key=lambda r: (order.get(r["task"], len(order)), r["task"])))
        tasks = [str(r["task"]) for r in results]
        return RunRecord(
            path=path,
            facts=read_json(folder.recipe) if folder.recipe.exists() else {},
            steps=steps,
            finished={p.parent.name: read_json(p) for p in sorted((path / "stages").glob("*/stage.json"))},
            results=results,
            lines={task: _lines(path / "eval" / f"{task}.jsonl") for task in tasks},
            roots={task: _roots(path, task, pictures) for task in tasks},
        )


def find_runs(path: Path) -> list[Path]:
    """The run at `path`, or the runs right below it, by name.

    Raises:
        CheckpointError: neither.
    """
    if _is_run(path):
        return [path]
    found = sorted(child for child in path.glob("*/") if _is_run(child))
    if not found:
        raise CheckpointError(f"{path} holds no run: no recipe.json, metrics.jsonl or eval/ in it or right below it")
    return found


def note_pictures(run: Path, task: str, folder: Path) -> None:
    """Remembers the folder that a task's pictures are named from, for the report."""
    path = run / "eval" / _NOTED
    noted = read_json(path) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, noted | {task: os.path.relpath(folder, run)})


def scenes_of(run: Path) -> Path:
    """The Scenes to evaluate a run on: those it was trained on, those beside it, else those of the cache."""
    given = read_json(run / "recipe.json").get("scenes") if (run / "recipe.json").exists() else None
    if given and (Path(given) / "scenes.json").exists():
        return Path(given)
    for folder in (run / "scenes", run.parent / "scenes"):
        if (folder / "scenes.json").exists():
            return folder
    return scenes_folder()


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in ("recipe.json", "metrics.jsonl", "eval"))


def _roots(run: Path, task: str, pictures: Path | None) -> tuple[Path, ...]:
    noted = read_json(run / "eval" / _NOTED) if (run / "eval" / _NOTED).exists() else {}
    roots = [pictures] if pictures is not None else []
    roots += [run / noted[task]] if task in noted else []
    # Scenes name pictures by their pixels, so one of the same name is the same picture wherever it is.
    scenes = [run / "scenes", run.parent / "scenes", *sorted((cache_folder() / "scenes").glob("*/"))]
    return tuple(roots + (scenes if task.startswith("scenes.") else []))


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is broken ({error}); run `quintet eval` again") from None
