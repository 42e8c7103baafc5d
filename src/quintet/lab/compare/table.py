"""What a comparison found, as the data of `compare.json`: one row a recipe, and the paired differences.

Every number is read from the folders of the runs. Scores are judged again from the answers in eval/*.jsonl, for two
reasons: the control with shuffled pictures gets an interval too, and recipes can be paired item by item.

A score is the mean over seeds. Its 95 % interval draws items and seeds again (`quintet.evaluation.bootstrap`), all
recipes in the same draws, so the interval of a difference is that of paired items and paired seeds.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quintet.data.template import Template
from quintet.errors import CheckpointError
from quintet.evaluation.bootstrap import percentiles, resampled
from quintet.evaluation.metrics.metric import Floats
from quintet.evaluation.run import scored
from quintet.evaluation.task import Task
from quintet.lab.compare.machine import machine_of
from quintet.lab.compare.runs import Asked, Comparison, Failures, System
from quintet.lab.differs import recipe_differs
from quintet.lab.listing import entry
from quintet.lab.recipe import load_recipe
from quintet.lab.show import Shown, show
from quintet.model.checkpoint import read_json
from quintet.values import Region, Sample

__all__ = ["Judged", "judge", "table"]

FORMAT = 1


@dataclass(frozen=True)
class Judged:
    """One run's answers to one task: sums float[N, K] of its headline's items, and those with others' media."""

    own: Floats
    shuffled: Floats | None
    result: dict[str, Any]
    """eval/<task>.json."""


Known = dict[tuple[Path, str], Judged]
"""What was judged already, by run and task."""


def judge(run: Path, asked: Asked, template: Template) -> Judged | None:
    """A run's answers to a task, judged item by item; None if it was not asked yet.

    `template` says how the run's answers spell regions.

    Raises:
        CheckpointError: the answers are not to these items, or are not what the score is of.
    """
    name = asked.task.name
    place = run / "eval" / f"{name}.json"
    if not place.exists():
        return None
    result = read_json(place)
    lines = [json.loads(line) for line in place.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    if any(line["id"] not in asked.items for line in lines):
        raise CheckpointError(f"{place} is of other items than this task has; delete it and compare again")
    items = [asked.items[line["id"]] for line in lines]

    def read(prompt: Sample, text: str) -> list[Region]:
        return template.read_regions(text, prompt.media())

    own = scored(asked.task, items, [line["output"] for line in lines], read)
    if abs(own.score - result["score"]) > 1e-9:
        raise CheckpointError(f"{place} has {result['score']} for answers that score {own.score}; delete it")
    others = [(item, line["shuffled"]["output"]) for item, line in zip(items, lines, strict=True) if "shuffled" in line]
    blind = scored(asked.task, [item for item, _ in others], [text for _, text in others], read) if others else None
    return Judged(own.sums, blind.sums if blind is not None and blind.n else None, result)


def table(
    comparison: Comparison,
    systems: Sequence[System],
    tasks: Mapping[str, Asked],
    failures: Failures,
    *,
    command: str,
    known: Known,
) -> dict[str, Any]:
    """The content of `compare.json`. `known` is filled, so that the next call judges only what is new."""
    failures = dict(failures)
    shown = {}
    for system in systems:
        try:
            shown[system.name] = show(system.name, system.recipe, scale=comparison.scale)
        except Exception as error:  # a part that cannot be built: its run has failed, and its row says so
            for seed in comparison.seeds:
                failures.setdefault((system.name, seed), f"{type(error).__name__}: {error}")
    templates = {s.name: s.recipe.template for s in systems}
    runs = {(s.name, seed): comparison.out / f"{s.name}-{seed}" for s in systems for seed in comparison.seeds}
    scores: dict[str, dict[str, Any]] = {s.name: {} for s in systems}
    differences: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, asked in tasks.items():
        judged: dict[str, dict[int, Judged]] = {}
        for (system, seed), path in runs.items():
            if (system, seed) in failures:
                continue
            try:
                found = known.get((path, name)) or judge(path, asked, templates[system])
            except CheckpointError as error:
                failures[system, seed] = str(error)
                continue
            if found is not None:
                known[path, name] = found
                judged.setdefault(system, {})[seed] = found
        if judged:
            of_task, differences[name] = _statistics(asked.task, judged)
            for system, score in of_task.items():
                scores[system][name] = score
    base = systems[0]
    rows = []
    for system in systems:
        row = _facts(system, shown.get(system.name)) | _cost(system, comparison, shown.get(system.name))
        row["scores"] = scores[system.name]
        row["unfit"] = [name for name, asked in tasks.items() if not asked.fits(system.recipe)]
        row["failed"] = {str(seed): why for (name, seed), why in failures.items() if name == system.name}
        row["differs"] = {path: list(pair) for path, pair in recipe_differs(base.recipe, system.recipe).items()}
        rows.append(row)
    return {
        "format": FORMAT,
        "command": command,
        "conditions": read_json(comparison.out / "comparison.json"),
        "seeds": list(comparison.seeds),
        "baseline": base.name,
        "machine": machine_of([comparison.out / f"{s.name}-{seed}" for s in systems for seed in comparison.seeds]),
        "rows": rows,
        "differences": differences,
    }


# ---- scores ------------------------------------------------------------------------------------------------------
def _statistics(
    task: Task, judged: Mapping[str, Mapping[int, Judged]]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, list[float]]]]:
    """System → its score, and A → B → B's score minus A's with the interval of that."""
    value = task.metric.value
    names = list(judged)
    drawn = dict(zip(names, resampled([[j.own for j in judged[n].values()] for n in names], value), strict=True))
    blind = {n: [j.shuffled for j in judged[n].values() if j.shuffled is not None] for n in names}
    seen = [n for n in names if len(blind[n]) == len(judged[n])]
    blindly = dict(zip(seen, resampled([blind[n] for n in seen], value), strict=True)) if seen else {}
    means = {n: _mean([j.own for j in judged[n].values()], value) for n in names}
    scores = {}
    for n in names:
        result = next(iter(judged[n].values())).result
        by_seed = {str(seed): j.result["score"] for seed, j in judged[n].items()}
        control = {"score": _mean(blind[n], value), "interval": percentiles(blindly[n])} if n in blindly else None
        interval = percentiles(drawn[n])
        scores[n] = {  # as `compare.json` has it
            "metric": result["metric"],
            "higher_is_better": task.higher_is_better,
            "n": result["n"],
            "asked": result["counts"]["items"],
            "score": means[n],
            "interval": interval,
            "seeds": by_seed,
            "deviation": float(np.std(list(by_seed.values()), ddof=1)) if len(by_seed) > 1 else None,
            "beside": task.metric.beside,
            "majority": result["controls"]["majority"],
            "shuffled": control,
            "beats_shuffled": control is not None and _apart(interval, control["interval"], task.higher_is_better),
            "measures": {
                key: float(np.mean([j.result["measures"][key] for j in judged[n].values()]))
                for key in result["measures"]
            },
            "seconds": float(np.mean([j.result["seconds"] for j in judged[n].values()])),
        }
    between = {
        a: {b: [round(x, 5) for x in (means[b] - means[a], *percentiles(drawn[b] - drawn[a]))] for b in names[i + 1 :]}
        for i, a in enumerate(names)
    }
    return scores, between


def _mean(runs: Sequence[Floats], value: Callable[[Floats], Floats]) -> float:
    return float(np.mean([value(sums.sum(axis=0)) for sums in runs]))


def _apart(own: Sequence[float], control: Sequence[float], higher_is_better: bool) -> bool:
    """Whether the intervals do not touch, and the score is on the better side."""
    return own[0] > control[1] if higher_is_better else own[1] < control[0]


# ---- a row's other columns -----------------------------------------------------------------------------------------
def _facts(system: System, shown: Shown | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"recipe": system.name, "given": system.given}
    facts["anatomy"] = entry(*load_recipe(system.given)).to_json()
    if shown is not None:
        facts["parameters"] = shown.parameters
        facts["parts"] = shown.parts
        facts["tokens"] = shown.tokens
        facts["flops_per_sample"] = shown.flops_per_sample
    return facts


def _cost(system: System, comparison: Comparison, shown: Shown | None) -> dict[str, Any]:
    """What each stage trained and spent, the mean over the seeds that finished it, and what they sum to.

    Seconds are those of the quickest seed: what else a machine does can only add to them.
    """
    stages: dict[str, dict[str, Any]] = {}
    for stage in shown.stages if shown else ():
        places = [comparison.out / f"{system.name}-{seed}" / "stages" / stage.name for seed in comparison.seeds]
        done = [read_json(place / "stage.json") for place in places if (place / "stage.json").exists()]
        facts: dict[str, Any] = {
            "trainable": stage.trainable,
            "trains": list(stage.rates),
            "flops_per_sample": stage.flops_per_sample,
        }
        if done:
            samples = done[0]["steps"] * stage.batch
            facts |= {
                "steps": done[0]["steps"],
                "samples": samples,
                "tokens": round(float(np.mean([each["tokens"] for each in done]))),
                "flops": samples * stage.flops_per_sample,
                "seconds": min(each["seconds"] for each in done),
                "loss": float(np.mean([each["last_loss"] for each in done])),
                "dropped": sum(sum(each["dropped"].values()) for each in done),
            }
        stages[stage.name] = facts
    whole = bool(stages) and all("steps" in facts for facts in stages.values())
    keys = ("samples", "tokens", "flops", "seconds")
    spent = {key: sum(facts[key] for facts in stages.values()) for key in keys} if whole else None
    return {"stages": stages, "spent": spent}
