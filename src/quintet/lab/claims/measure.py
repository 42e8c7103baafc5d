"""What an arm is measured by: sums over items that can be drawn again, or one number a seed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quintet.data.scenes import Scene, read_truth
from quintet.data.scenes.claims import claims, severity
from quintet.data.template import Template
from quintet.errors import ConfigError
from quintet.evaluation.metrics.metric import Floats, ratio
from quintet.evaluation.tasks.scenes import scenes_task
from quintet.lab.compare.runs import Asked
from quintet.lab.compare.table import judge
from quintet.training.folder import Metrics, RunFolder

__all__ = ["Measured", "measured"]

LAST = 0.2
"""Share of a training's steps, its last ones, that its numbers are the mean of."""


@dataclass(frozen=True)
class Measured:
    """One arm's runs: sums float[N, K] each, and what makes a score of their total."""

    runs: list[Floats]
    value: Callable[[Floats], Floats]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean([self.value(sums.sum(axis=0)) for sums in self.runs]))


def measured(name: str, runs: list[Path], *, scenes: Path, template: Template) -> Measured:
    """A measure of runs that were asked: `TASK`, `TASK:recall`, `TASK:words`, `TASK:severity`, or a note of training.

    Raises:
        ConfigError: no such measure.
    """
    if not name.startswith("scenes."):
        return Measured([np.array([[_noted(run, name), 1.0]]) for run in runs], _ratio(0, 1))
    task_name, _, part = name.partition(":")
    if part == "severity":
        truth = {each.image.stem: each.scene for each in read_truth(scenes / "test.truth.jsonl")}
        return Measured([_severities(run, task_name, truth) for run in runs], _ratio(0, 1))
    task = scenes_task(task_name, scenes)
    asked = Asked(task, {item.id: item for item in task.items()}, 0)
    found = [judge(run, asked, template) for run in runs]
    sums = [each.own for each in found if each is not None]
    assert len(sums) == len(runs), "every run was asked"
    # Columns of `Chair.judge`: wrong, said, any wrong, captions, found, there, words.
    columns = {"": None, "recall": (4, 5), "words": (6, 3), "chair_s": (2, 3)}
    if part not in columns:
        raise ConfigError(f"no measure {part!r} of {task_name}; there are {', '.join(filter(None, columns))}, severity")
    chosen = columns[part]
    return Measured(sums, task.metric.value if chosen is None else _ratio(*chosen))


def _ratio(top: int, bottom: int) -> Callable[[Floats], Floats]:
    return lambda total: np.asarray(ratio(total[..., top], total[..., bottom]))


def _noted(run: Path, name: str) -> float:
    """The mean of a number over the last steps of a run's training."""
    rows = [row for row in Metrics.read(RunFolder(run).metrics) if name in row]
    if not rows:
        raise ConfigError(f"{run}: its training notes no {name!r}")
    last = rows[-max(1, round(LAST * len(rows))) :]
    return float(np.mean([row[name] for row in last]))


def _severities(run: Path, task: str, truth: dict[str, Scene]) -> Floats:
    """Of each answer: the sum of its claims' severities, and how many claims there are."""
    lines = (run / "eval" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    made = []
    for line in map(json.loads, lines):
        scene, said = truth[line["id"].split("/")[0]], claims(line["output"])
        made.append([sum(severity(each, scene) for each in said), len(said)])
    return np.array(made, dtype=np.float64)
