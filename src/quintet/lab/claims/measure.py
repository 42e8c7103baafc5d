"""What an arm is measured by: sums over items that can be drawn again, or one number a seed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quintet.data.scenes import Scene, read_truth
from quintet.data.scenes.claims import claims, severity
from quintet.data.template import Template
from quintet.errors import ConfigError
from quintet.evaluation.metrics.metric import Floats, ratio
from quintet.evaluation.tasks.scenes import scenes_task
from quintet.lab.change import perplexity, text
from quintet.lab.claims.claim import Arm
from quintet.lab.compare.runs import Asked
from quintet.lab.compare.table import judge
from quintet.lab.rewards import worth
from quintet.model.checkpoint import read_json
from quintet.training.folder import Metrics, RunFolder

__all__ = ["Measured", "fits", "measured"]

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


def fits(name: str, arm: Arm) -> bool:
    """Whether an arm has the measure: what is noted while training, only one that trains."""
    kind = name.partition(":")[0]
    asked = name.startswith("scenes.") or kind in ("text", "swap")
    return asked or bool(arm.reward if kind in ("judge", "rollouts") else arm.method)


def measured(name: str, runs: list[Path], *, scenes: Path, template: Template) -> Measured:
    """A measure of runs, as `Expected.measure` names it.

    Raises:
        ConfigError: no such measure.
    """
    task_name, _, part = name.partition(":")
    if task_name == "text":
        return Measured([text(run) for run in runs], perplexity)
    if task_name == "swap":
        return Measured([_margins(run) for run in runs], _ratio(("picture", "crop").index(part), 2))
    if task_name == "pairs":
        return Measured([_labels(run, scenes) for run in runs], _ratio(0, 1))
    if not name.startswith("scenes."):
        notes = {
            "judge": lambda run: _noted(Path(read_json(RunFolder(run).recipe)["reward"]), part),
            "rollouts": lambda run: _true(run, scenes),
        }
        note = notes.get(task_name, lambda run: _noted(run, name))
        return Measured([np.array([[note(run), 1.0]]) for run in runs], _ratio(0, 1))
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


def _margins(run: Path) -> Floats:
    """What `quintet.lab.claims.swap` wrote."""
    return np.array(read_json(run / "eval" / "swap.json")["items"], dtype=np.float64)


def _labels(run: Path, scenes: Path) -> Floats:
    """Of each of a run's pairs: whether the chosen answer has fewer false claims, and whether one of them has."""
    known = {each.image.stem: each.scene for each in read_truth(scenes / "train.truth.jsonl")}
    made = []
    for row in _rows(run):
        scene = known[Path(row["image"]).stem]
        won, lost = (sum(severity(each, scene) > 0 for each in claims(row[side])) for side in ("chosen", "rejected"))
        made.append([won < lost, won != lost])
    return np.array(made, dtype=np.float64)


def _rows(run: Path) -> list[dict[str, Any]]:
    """What a run of one stage learnt from."""
    [data] = read_json(RunFolder(run).recipe)["data"].values()
    return [json.loads(line) for line in Path(data["path"]).read_text(encoding="utf-8").splitlines()]


def _true(run: Path, scenes: Path) -> float:
    """How the rewards of the last iterations' answers go with the truth about them: Pearson's correlation."""
    known = {each.image.stem: each.scene for each in read_truth(scenes / "train.truth.jsonl")}
    names = [Path(row["image"]).stem for row in _rows(run)]
    files = sorted((run / "rollouts").glob("*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))
    pairs: list[tuple[float, float]] = []
    for facts in map(read_json, files[-max(1, round(LAST * len(files))) :]):
        for row, rewards, said in zip(facts["rows"], facts["rewards"], facts["answers"], strict=True):
            scene = known[names[row - 1]]
            pairs += [(reward, worth(answer, scene)) for reward, answer in zip(rewards, said, strict=True)]
    rewards, truths = np.array(pairs).T
    # What is always the same goes with nothing.
    return float(np.corrcoef(rewards, truths)[0, 1]) if rewards.std() > 0 and truths.std() > 0 else 0.0


def _severities(run: Path, task: str, truth: dict[str, Scene]) -> Floats:
    """Of each answer: the sum of its claims' severities, and how many claims there are."""
    lines = (run / "eval" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    made = []
    for line in map(json.loads, lines):
        scene, said = truth[line["id"].split("/")[0]], claims(line["output"])
        made.append([sum(severity(each, scene) for each in said), len(said)])
    return np.array(made, dtype=np.float64)
