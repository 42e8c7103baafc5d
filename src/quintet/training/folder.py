"""RUN/: what a run writes, and nothing is written elsewhere.

recipe.json          the resolved recipe and the command's settings
metrics.jsonl        one line a logged step
checkpoints/         STAGE-STEP folders, the newest two
stages/STAGE/        the parts that a finished stage trained
model/               the finished model: config, one safetensors file a part, the processor
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from quintet import dist
from quintet.errors import CheckpointError
from quintet.model.checkpoint import read_json, replace_folder, write_json

__all__ = ["Checkpoint", "Metrics", "RunFolder"]

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """A saved moment: after `step` steps of `stage`."""

    path: Path
    stage: str
    step: int


class RunFolder:
    """The paths of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model"
        self.recipe = path / "recipe.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"

    def stage(self, name: str) -> Path:
        """Where a finished stage's parts are."""
        return self.path / "stages" / name

    def finished(self, name: str) -> bool:
        """Whether a stage has run to its end."""
        return (self.stage(name) / "stage.json").exists()

    def latest(self, stage: str) -> Checkpoint | None:
        """The newest whole checkpoint of a stage. Half-written ones have other names and do not count."""
        found = [c for c in self._all() if c.stage == stage]
        return max(found, key=lambda c: c.step, default=None)

    def give_up(self) -> None:
        """Removes a run in which nothing has happened yet: one that cannot begin must not stand in the way."""
        if self.recipe.exists() and {path for path in self.path.rglob("*") if path.is_file()} == {self.recipe}:
            shutil.rmtree(self.path)

    def _all(self) -> list[Checkpoint]:
        found = []
        for path in self.checkpoints.glob("*/state.json"):
            if not path.parent.name.startswith("."):
                state = read_json(path)
                found.append(Checkpoint(path.parent, state["stage"], state["step"]))
        return found

    def forget(self, stage: str) -> None:
        """Removes a stage's checkpoints, half-written ones too."""
        number = re.compile(rf"\.?{re.escape(stage)}-\d+(\.old)?")
        for path in list(self.checkpoints.iterdir()):
            if number.fullmatch(path.name):
                shutil.rmtree(path)

    def aside(self, name: str) -> Path:
        """An empty folder to write a checkpoint into; `commit` puts it in its place."""
        path = self.checkpoints / f".{name}"
        if dist.is_first():
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        dist.barrier()
        return path

    def commit(self, aside: Path, state: dict[str, Any]) -> None:
        """Completes a checkpoint and removes old ones."""
        dist.barrier()
        if dist.is_first():
            write_json(aside / "state.json", state)
            replace_folder(aside, aside.with_name(aside.name.removeprefix(".")))
            same = sorted((c for c in self._all() if c.stage == state["stage"]), key=lambda c: c.step)
            for old in same[:-KEEP]:
                shutil.rmtree(old.path)
        dist.barrier()


class Metrics:
    """metrics.jsonl, one JSON object a line; written line by line, so a crash loses nothing that was logged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: TextIO | None = None

    def rewind(self, stage: str, step: int) -> None:
        """Drops lines after a step of a stage: they will be written again, equal."""
        if not dist.is_first() or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that a kill cut short
            if row.get("stage") != stage or row.get("step", 0) <= step:
                kept.append(line)
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        aside.replace(self.path)

    def write(self, row: dict[str, Any]) -> None:
        """Adds a line."""
        if not dist.is_first():
            return
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a", encoding="utf-8")
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()
            self.file = None

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """All lines; a missing file is a CheckpointError."""
        if not path.exists():
            raise CheckpointError(f"{path} does not exist; is {path.parent} the folder of a run?")
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
