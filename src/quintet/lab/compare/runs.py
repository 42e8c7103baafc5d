"""`quintet compare`: recipes trained on the same pictures in the same order with equal budgets, then asked the same.

    OUT/comparison.json      the conditions; a folder never mixes two
    OUT/plans.json           recipe → how many steps of each stage the budget pays for
    OUT/NAME-SEED/           a run like any other, with its eval/ and machine.json; a finished one is not run again
    OUT/failures/            why a run failed; the same command tries it again
    OUT/compare.json         the table, with compare.html and compare.md beside it

Everything is written whole or not at all and read back from the folder, so the same command goes on after whatever
stopped it, and may name more recipes or seeds. Seeds are the outer loop: stopped early, recipes have as many each.
"""

import hashlib
import json
import shutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quintet.errors import CheckpointError, ConfigError, QuintetError, nearest
from quintet.evaluation.run import evaluate
from quintet.evaluation.task import Item, Task
from quintet.evaluation.tasks.scenes import NAMES, scenes_task
from quintet.lab.compare.budget import Budget, share, tokens_per_sample
from quintet.lab.compare.folder import alone, check_folder, fingerprint, hold, starter_fingerprint
from quintet.lab.compare.machine import MACHINE, machine
from quintet.lab.pretrained import load_tokenizer
from quintet.lab.quickstart import TASKS as PLAIN
from quintet.lab.recipe import load_recipe, trains_as
from quintet.lab.run import STARTER_PICTURES, Job, resolved, scenes_folder, stage_source, train
from quintet.lab.show import show
from quintet.log import logger
from quintet.model.checkpoint import read_json, write_json
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.serving.engine import Engine
from quintet.training.folder import Metrics, RunFolder
from quintet.training.hardware import Precision, prepare_cpu
from quintet.training.loop import Interrupted, Settings
from quintet.training.stage import Stage

__all__ = ["TASKS", "Asked", "Comparison", "Failures", "System", "Watcher", "failed_before", "prepare", "run_all"]

log = logger(__name__)

TASKS = PLAIN | {"scenes.referring": 300, "scenes.fewshot": 300, "scenes.retrieval": 300}
"""Task → items asked at most; those of a kind that a recipe is not taught are left out of its row (`Asked.fits`)."""

PROBE_STEPS = 6
"""Steps of a stage that are run to see how fast it is; the first two, which allocate, do not count."""
TINY_PICTURES = 64
TRAINING_SHARE = 0.8
"""Of a run's time, for the estimate of what is left."""

Failures = dict[tuple[str, int], str]
"""(recipe, seed) → why its run failed."""


class Watcher(Protocol):
    """What is told of the progress."""

    def note(self, text: str) -> None: ...
    def runs(self, done: float, total: int) -> None: ...
    def count(self, what: str, done: int, total: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, and under which conditions."""

    recipes: Sequence[str]
    """Names, or paths of files; the first is what the others are compared with."""
    out: Path
    scale: str = "starter"
    budget: Budget | None = None
    """None leaves each recipe the scale's own amounts."""
    seeds: Sequence[int] = (0,)
    tasks: Mapping[str, int] = field(default_factory=lambda: dict(TASKS))
    """Task → items asked at most, each twice: with its own picture and with another's."""
    scenes: Path | None = None
    """None is the cache's."""
    precision: Precision = "auto"
    share: tuple[int, int] = (1, 1)
    """(k, n): only every n-th run from the k-th on is run here. The others are for more processes, on this machine
    or on others that have the same folder; the table is whole when the last of them ends."""

    def __post_init__(self) -> None:
        if not self.recipes:
            raise ConfigError("there is nothing to compare; name recipes, or --all for every one of the package")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds are {list(self.seeds)}; at least one, each once")
        if self.scale not in ("starter", "tiny"):
            raise ConfigError(f"no comparison at scale {self.scale!r}: equal parts exist at starter and tiny scale")
        if not 1 <= self.share[0] <= self.share[1]:
            raise ConfigError(f"a share of {self.share[0]}/{self.share[1]} is none; of n shares there are 1/n to n/n")
        if not self.tasks:
            raise ConfigError(f"there is no task to measure; known: {', '.join(NAMES)}")
        for name in self.tasks:
            if name not in NAMES:
                raise ConfigError(f"no task {name!r} of Scenes{nearest(name, NAMES)}")


@dataclass(frozen=True)
class System:
    """A recipe at the comparison's scale, with the steps that the budget pays for."""

    name: str
    given: str
    recipe: Recipe
    sets: tuple[str, ...] = ()

    def job(self, comparison: Comparison, scenes: Path, seed: int) -> Job:
        """Its run with a seed."""
        out = comparison.out / f"{self.name}-{seed}"
        settings = Settings(seed=seed, precision=comparison.precision, save_seconds=60.0)
        return Job(recipe=self.given, out=out, scale=comparison.scale, scenes=scenes, sets=self.sets,
                   resume=(out / "recipe.json").exists(), settings=settings)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A task with its items by id, and how many are asked at most."""

    task: Task
    items: dict[str, Item]
    limit: int

    @property
    def kinds(self) -> set[str]:
        """The modalities that its prompts show."""
        return {medium.kind for item in self.items.values() for medium in item.media}

    def fits(self, recipe: Recipe) -> bool:
        """Whether the recipe reads what the task shows, ranks where it asks for rankings, and was taught it at all."""
        ranks = any(not stage.reads for stage in recipe.stages)
        kinds = {kind for stage in recipe.stages for kind in (stage.data.kind, *stage.data.mixed)}
        taught = not self.task.learnt_from or self.task.learnt_from in kinds
        return taught and self.kinds <= set(recipe.model.kinds) and (ranks or not self.task.together)


def prepare(comparison: Comparison, watch: Watcher) -> tuple[list[System], dict[str, Asked], Path, Failures]:
    """Everything that comes before the first run: names, pictures, tasks, the budget's steps.

    Raises:
        ConfigError: a name is not known, or a budget gives no step.
        CheckpointError: the folder holds another comparison.
    """
    prepare_cpu()
    named = [(*load_recipe(given), given) for given in comparison.recipes]
    names = [name for name, *_ in named]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two recipes are named {name!r}; each is a row of its own, so give each once")
    check_folder(comparison.out)
    with alone(comparison.out):
        return _prepare(comparison, named, watch)


def _prepare(
    comparison: Comparison, named: Sequence[tuple[str, Recipe, str]], watch: Watcher
) -> tuple[list[System], dict[str, Asked], Path, Failures]:
    pictures = STARTER_PICTURES if comparison.scale == "starter" else TINY_PICTURES
    scenes = comparison.scenes or scenes_folder(pictures, progress=partial(watch.count, "pictures"))
    tasks: dict[str, Asked] = {}
    for name, limit in comparison.tasks.items():
        task = scenes_task(name, scenes)
        tasks[name] = Asked(task, {item.id: item for item in task.items()}, limit)
    hold(comparison.out, _conditions(comparison, scenes))
    systems: list[System] = []
    failures: Failures = {}
    for number, (name, recipe, given) in enumerate(named):
        system = System(name, given, recipe)
        with _failing(comparison, name, comparison.seeds, failures):
            system = System(name, given, at_scale(recipe, comparison.scale))
            if comparison.budget:
                system = _planned(system, comparison, scenes, watch)
        systems.append(system)
        watch.count("plans", number + 1, len(named))
    return systems, tasks, scenes, failures


def _conditions(comparison: Comparison, scenes: Path) -> dict[str, Any]:
    made = read_json(scenes / "scenes.json")
    return {
        "scale": comparison.scale,
        "budget": comparison.budget.text if comparison.budget else "own",
        "tasks": dict(comparison.tasks),
        "precision": comparison.precision,
        "starter": starter_fingerprint(),
        "scenes": fingerprint(scenes),
        "scenes_seed": made["seed"],
        "pictures": made["splits"],
    }


def run_all(
    comparison: Comparison, systems: Sequence[System], tasks: Mapping[str, Asked], scenes: Path, watch: Watcher
) -> Iterator[tuple[str, int, str]]:
    """Runs what of the share has not run yet, one after the other; yields (recipe, seed, why it failed if it did).

    Raises:
        Interrupted: a signal asked to stop; the same command goes on.
    """
    first, step = comparison.share
    order = [(seed, system) for seed in comparison.seeds for system in systems][first - 1 :: step]
    total = len(order)
    for number, (seed, system) in enumerate(order):
        failures: Failures = {}

        def part(share: float, number: int = number) -> None:
            watch.runs(number + share, total)

        part(0.0)
        with _failing(comparison, system.name, [seed], failures):
            _run(system, comparison, tasks, scenes, seed=seed, watch=watch, part=part)
        part(1.0)
        yield system.name, seed, failures.get((system.name, seed), "")


# ---- what fails --------------------------------------------------------------------------------------------------
@contextmanager
def _failing(comparison: Comparison, name: str, seeds: Sequence[int], failures: Failures) -> Iterator[None]:
    """What goes wrong in one recipe becomes its row's reason: a night's work must not end with the first fault.

    So any error is caught, ours and torch's alike, and kept with its traceback. Interruptions end everything, and so
    does a budget that is too small, which is the command's fault and not the recipe's.
    """
    paths = [comparison.out / "failures" / f"{name}-{seed}.txt" for seed in seeds]
    try:
        yield
    except (Interrupted, _TooSmall):
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, QuintetError) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split()) or type(error).__name__
        log.warning("%s failed: %s", name, reason)
        for seed, path in zip(seeds, paths, strict=True):
            failures[name, seed] = reason
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{reason}\n\n{traceback.format_exc()}", encoding="utf-8")
    else:
        for path in paths:
            path.unlink(missing_ok=True)


def failed_before(comparison: Comparison) -> Failures:
    """What failed in this folder and did not succeed since, in this process or in another's share."""
    found: Failures = {}
    for path in sorted((comparison.out / "failures").glob("*.txt")):
        name, _, seed = path.stem.rpartition("-")
        if int(seed) in comparison.seeds:
            found[name, int(seed)] = path.read_text(encoding="utf-8").partition("\n")[0]
    return found


# ---- budgets -----------------------------------------------------------------------------------------------------
class _TooSmall(ConfigError):
    """A budget that gives no step."""


def _planned(system: System, comparison: Comparison, scenes: Path, watch: Watcher) -> System:
    """The system with the steps that the budget pays for; those of an earlier call if its recipe is the same.

    Measured speeds are never quite the same twice, so what was planned stays planned.
    """
    assert comparison.budget is not None
    place = comparison.out / "plans.json"
    plans = read_json(place) if place.exists() else {}
    known = hashlib.sha256(json.dumps(trains_as(system.recipe.to_json()), sort_keys=True).encode()).hexdigest()[:16]
    if plans.get(system.name, {}).get("recipe") != known:
        first = system.job(comparison, scenes, comparison.seeds[0])
        own = {s.name: s.num_steps(len(stage_source(first, system.recipe, s))) for s in system.recipe.stages}
        costs = _costs(system, comparison, first, watch)
        try:
            steps = share(comparison.budget, system.name, own=own, costs=costs)
        except ConfigError as error:
            raise _TooSmall(str(error)) from None
        plans[system.name] = {"recipe": known, "steps": steps, "costs_of_a_step": costs, "own_steps": own}
        write_json(place, plans)
    steps = plans[system.name]["steps"]
    stages = tuple(replace(stage, steps=steps[stage.name]) for stage in system.recipe.stages)
    sets = tuple(f"stages.{name}.steps={count}" for name, count in steps.items())
    return replace(system, recipe=replace(system.recipe, stages=stages), sets=sets)


def _costs(system: System, comparison: Comparison, job: Job, watch: Watcher) -> dict[str, float]:
    """Stage → what one of its steps takes of the budget."""
    assert comparison.budget is not None
    stages = system.recipe.stages
    if comparison.budget.unit == "flops":
        views = show(system.name, system.recipe, scale=comparison.scale).stages
        return {view.name: view.flops_per_sample * view.batch for view in views}
    if comparison.budget.unit == "tokens":
        tokenizer = load_tokenizer(system.recipe.model, added=system.recipe.added_tokens)
        return {
            s.name: s.batch
            * tokens_per_sample(
                system.recipe, s, stage_source(job, system.recipe, s), tokenizer, seed=job.settings.seed
            )
            for s in stages
        }
    if comparison.budget.unit == "samples":
        return {stage.name: float(stage.batch) for stage in stages}
    return {stage.name: _minutes_a_step(system, stage, job, watch) for stage in stages}


def _minutes_a_step(system: System, stage: Stage, job: Job, watch: Watcher) -> float:
    """Trains a few steps of the stage in a folder that is thrown away."""
    out = job.out.with_name(f".probe-{system.name}")
    shutil.rmtree(out, ignore_errors=True)
    watch.note(f"{system.name}: how fast is {stage.name}?")
    sets = [f"stages.{stage.name}.steps={PROBE_STEPS}"]
    try:
        train(replace(job, out=out, stages=[stage.name], sets=sets, resume=False))
        rows = Metrics.read(RunFolder(out).metrics)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return float(np.median([row["step_seconds"] for row in rows[2:]])) / 60


# ---- one run -----------------------------------------------------------------------------------------------------
def _run(
    system: System,
    comparison: Comparison,
    tasks: Mapping[str, Asked],
    scenes: Path,
    *,
    seed: int,
    watch: Watcher,
    part: Any,
) -> None:
    job = system.job(comparison, scenes, seed)
    title = f"{system.name}, seed {seed}"
    steps = {s.name: s.num_steps(len(stage_source(job, system.recipe, s))) for s in system.recipe.stages}
    before, total = {}, 0
    for name, count in steps.items():
        before[name], total = total, total + count

    def step(row: dict[str, Any]) -> None:
        watch.count(f"{title}: {row['stage']}", row["step"], row["steps"])
        part(TRAINING_SHARE * (before[row["stage"]] + row["step"]) / total)

    if job.resume and trains_as(resolved(job.out).get("recipe")) != trains_as(system.recipe.to_json()):
        raise CheckpointError(f"{job.out} is a run of this recipe as it was before; delete the folder to run it anew")
    if not (job.out / "model" / "config.json").exists():
        train(replace(job, note=lambda text: watch.count(f"{title}: {text}", 0, 1)), progress=step)
        # Who collects the table may have other cores than who ran this.
        write_json(job.out / MACHINE, machine())
    missing = {
        name: asked
        for name, asked in tasks.items()
        if asked.fits(system.recipe) and not (job.out / "eval" / f"{name}.json").exists()
    }
    if not missing:
        return
    engine = Engine.open(job.out)
    for number, (name, asked) in enumerate(missing.items()):
        # Items and the pictures they are shuffled among are drawn by the same seed for all, so that they are the same.
        evaluate(
            engine.answers(asked.task), asked.task, read=engine.processor.regions, limit=asked.limit, batch_size=200,
            seed=0, out=job.out,
            progress=lambda done, total, name=name: watch.count(f"{title}: {name}", done, total),
        )  # fmt: skip
        part(TRAINING_SHARE + (1 - TRAINING_SHARE) * (number + 1) / len(missing))
