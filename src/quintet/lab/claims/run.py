"""Runs claims: from one tuned model every arm with every seed, equal steps, the same items asked; then the verdicts.

OUT/study.json           what all arms go on from, and the conditions; a folder never mixes two
OUT/pools/NAME.jsonl     a pool of pairs, made once for all arms that name it
OUT/ARM-SEED/            a run like any other; ARM is a hash of what it is, so claims share arms
OUT/claims.json, .md, .html   each claim: supported, not supported or not testable, with its differences and intervals
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quintet.data.template import Template
from quintet.errors import ConfigError, QuintetError, nearest
from quintet.evaluation.bootstrap import percentiles, resampled
from quintet.evaluation.run import Answer, evaluate
from quintet.evaluation.tasks.scenes import scenes_task
from quintet.lab.align import Start
from quintet.lab.change import measure_text
from quintet.lab.claims.claim import Arm, Claim, Expected
from quintet.lab.claims.measure import fits, measured
from quintet.lab.claims.pools import POOLS
from quintet.lab.claims.swap import margins
from quintet.lab.claims.table import CLAIMS
from quintet.lab.claims.told import html, markdown
from quintet.lab.compare.folder import alone, check_folder
from quintet.lab.compare.runs import Watcher
from quintet.lab.page import write_page
from quintet.lab.pairs import Work
from quintet.lab.pairs.build import fill
from quintet.lab.run import Job, scenes_folder, train
from quintet.model.checkpoint import read_json, write_json
from quintet.serving.engine import Engine
from quintet.training.loop import Interrupted, Settings
from quintet.values import Sample, Text

__all__ = ["Study", "study"]

LEAST = 0.05
"""CHAIR-i of the tuned model under which there is nothing to lower."""

DESCRIBED = "scenes.chair"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Which claims, from which model, under which conditions."""

    claims: Sequence[str]
    start: Path
    out: Path
    seeds: Sequence[int] = (0, 1, 2)
    steps: int = 125
    limit: int = 200
    scenes: Path | None = None
    share: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        for name in self.claims:
            if name not in CLAIMS:
                raise ConfigError(f"no claim {name!r}{nearest(name, CLAIMS)}")


def study(asked: Study, watch: Watcher) -> dict[str, Any]:
    """Runs what has not run yet, and returns what is found.

    Raises:
        Interrupted: a signal asked to stop; the same call goes on.
    """
    check_folder(asked.out)
    scenes = asked.scenes or scenes_folder()
    facts = {"from": Start(asked.start).identity(), "steps": asked.steps, "limit": asked.limit}
    with alone(asked.out):
        place = asked.out / "study.json"
        if place.exists() and read_json(place) != facts:
            raise ConfigError(f"{asked.out} holds a study under other conditions; name another --out")
        write_json(place, facts)
        write_json(asked.out / "comparison.json", facts)
    arms = {_name(arm): arm for claim in _chosen(asked) for arm in claim.arms.values()}
    # What several claims share is asked what any of them shows.
    shown = {
        name: [show for claim in _chosen(asked) if name in map(_name, claim.arms.values()) for show in claim.shows]
        for name in arms
    }
    order = [(name, seed) for seed in asked.seeds for name in arms if arms[name].method or seed == asked.seeds[0]]
    first, step = asked.share
    failed: dict[str, str] = {}
    for number, (name, seed) in enumerate(order[first - 1 :: step]):
        try:
            _run(asked, arms[name], seed, shown[name], scenes, watch)
        except Interrupted:
            raise
        except QuintetError as error:
            failed[name] = str(error)
            watch.note(f"{name}, seed {seed}: failed, {error}")
        watch.runs(number + 1.0, len(order[first - 1 :: step]))
    return _collected(asked, scenes, failed)


def _chosen(asked: Study) -> list[Claim]:
    return [CLAIMS[name] for name in asked.claims]


def _name(arm: Arm) -> str:
    """Equal arms of different claims have one folder."""
    if not arm.method:
        return "tuned"
    plain, given = asdict(Arm()), asdict(arm)
    facts = {key: value for key, value in given.items() if value != plain[key]}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    return f"{arm.method}-{arm.pairs}-{digest}"


def _folder(asked: Study, arm: Arm, seed: int) -> Path:
    return asked.out / ("tuned" if not arm.method else f"{_name(arm)}-{seed}")


def _run(asked: Study, arm: Arm, seed: int, tasks: Sequence[str], scenes: Path, watch: Watcher) -> None:
    out, start = _folder(asked, arm, seed), Start(asked.start)
    if arm.reward:
        # Whoever needs it first makes it.
        with alone(asked.out / "locks" / _name(arm.reward)):
            _run(asked, arm.reward, seed, (), scenes, watch)
    if arm.method and not (out / "model" / "config.json").exists():
        pool = _pool(asked, arm, scenes, watch)
        stages = start.aligned(arm.method).stages
        steps = [f"stages.{stage.name}.steps={max(1, asked.steps // len(stages))}" for stage in stages]
        job = Job(
            recipe=arm.method, out=out, scale=start.scale, scenes=scenes, start=start, sets=(*steps, *arm.sets),
            data={stage.name: pool for stage in stages}, root=scenes,
            reward=str(_folder(asked, arm.reward, seed)) if arm.reward else "", resume=(out / "recipe.json").exists(),
            settings=Settings(seed=seed, save_seconds=60.0),
        )  # fmt: skip
        title = f"{_name(arm)}, seed {seed}"
        train(job, progress=lambda row: watch.count(f"{title}: {row['stage']}", row["step"], row["steps"]))
    if missing := _unasked(out, tasks):
        engine = Engine.open(out if arm.method else start.run)
        # Arms are asked alike: what is asked under a condition says so itself (`asks`), whatever a method's chat asks.
        engine.processor = replace(engine.processor, template=start.processor().template)
        for name in missing:
            _ask(asked, arm, engine, name, out, scenes, watch)


def _ask(asked: Study, arm: Arm, engine: Engine, name: str, out: Path, scenes: Path, watch: Watcher) -> None:
    """Writes `out/eval/NAME.json`."""
    progress = partial(watch.count, f"{_name(arm)}: {name}")
    if name == "text":
        measure_text(engine, out, scenes=scenes)
    elif name == "swap":
        write_json(out / "eval" / "swap.json", {"items": list(margins(engine, scenes, limit=asked.limit))})
    else:
        task = scenes_task(name, scenes)
        answer = _asking(engine.answers(task), arm.asks if name == DESCRIBED else "")
        evaluate(answer, task, read=engine.processor.regions, limit=asked.limit, out=out, progress=progress)


def _asking(answer: Answer, words: str) -> Answer:
    """Asks with these words behind every question."""

    def more(sample: Sample) -> Sample:
        *turns, last = sample.root.turns
        return replace(
            sample, root=replace(sample.root, turns=(*turns, replace(last, parts=(*last.parts, Text(f" {words}")))))
        )

    return (lambda samples: answer([more(sample) for sample in samples])) if words else answer


def _pool(asked: Study, arm: Arm, scenes: Path, watch: Watcher) -> Path:
    """The arm's pairs, made once, where their pictures are named from."""
    place = asked.out / "pools" / f"{arm.pairs}-{arm.rows}.jsonl"
    with alone(asked.out / "locks" / place.stem):
        if not place.exists():
            watch.note(f"making the pool {arm.pairs}")
            work = Work(scenes=scenes, rows=arm.rows, model=lambda: Engine.open(asked.start))
            fill(POOLS[arm.pairs](work), work, place)
    return place


# ---- verdicts ----------------------------------------------------------------------------------------------------
def _collected(asked: Study, scenes: Path, failed: Mapping[str, str]) -> dict[str, Any]:
    template = Start(asked.start).processor().template
    found = {"seeds": list(asked.seeds), "steps": asked.steps, "limit": asked.limit, "claims": []}
    for claim in _chosen(asked):
        found["claims"].append(_judged(asked, claim, scenes, template, failed))  # type: ignore[union-attr, attr-defined]
    write_json(asked.out / "claims.json", found)
    (asked.out / "claims.md").write_text(markdown(found), encoding="utf-8")
    write_page(asked.out / "claims.html", html(found))
    return found


def _judged(asked: Study, claim: Claim, scenes: Path, template: Template, failed: Mapping[str, str]) -> dict[str, Any]:
    facts: dict[str, Any] = {name: getattr(claim, name) for name in ("id", "says", "source", "not_run")}
    facts |= {"arms": {}, "needs": [], "expects": []}
    folders = {
        label: [_folder(asked, arm, seed) for seed in (asked.seeds if arm.method else asked.seeds[:1])]
        for label, arm in claim.arms.items()
    }
    lacking = [label for label, runs in folders.items() if any(_unasked(run, claim.shows) for run in runs)]
    if lacking:
        why = [failed.get(_name(claim.arms[label]), "not run yet") for label in lacking]
        return facts | {"verdict": "not testable", "why": f"{', '.join(lacking)}: {'; '.join(dict.fromkeys(why))}"}
    tested = [*claim.needs.values(), *claim.expects]
    names = [*claim.shows, "scenes.chair:recall", "scenes.chair:words", *(each.measure for each in tested)]
    for label, runs in folders.items():
        of_arm = {}
        for name in dict.fromkeys(names):
            if fits(name, claim.arms[label]):
                made = measured(name, runs, scenes=scenes, template=template)
                of_arm[name] = {"mean": made.mean, "interval": percentiles(resampled([made.runs], made.value)[0])}
        facts["arms"][label] = of_arm
    for why, each in claim.needs.items():
        facts["needs"].append(_tested(each, folders, scenes, template) | {"else": why})
    facts["expects"] = [_tested(each, folders, scenes, template) for each in claim.expects]
    if why := _untestable(facts):
        return facts | {"verdict": "not testable", "why": why}
    verdict = "supported" if all(each["holds"] for each in facts["expects"]) else "not supported"
    return facts | {"verdict": verdict, "why": ""}


def _untestable(facts: Mapping[str, Any]) -> str:
    """Why nothing can be seen, '' if something can."""
    before = facts["arms"].get("tuned", {}).get("scenes.chair")
    if before and before["mean"] < LEAST:
        return f"the tuned model makes up {before['mean']:.3f} of what it mentions; there is nothing to lower"
    if lacking := [each["else"] for each in facts["needs"] if not each["holds"]]:
        return "; ".join(lacking)
    same = [each for each in facts["expects"] if each["apart"] and each["interval"] == [0.0, 0.0]]
    return f"{same[0]['better']} and {same[0]['than']} do not differ in {same[0]['measure']}" if same else ""


def _unasked(run: Path, shows: Sequence[str]) -> list[str]:
    """What a run was not asked yet, each once."""
    names = dict.fromkeys(name.partition(":")[0] for name in shows)
    return [name for name in names if not (run / "eval" / f"{name}.json").exists()]


def _tested(expected: Expected, folders: Mapping[str, list[Path]], scenes: Path, template: Template) -> dict[str, Any]:
    """The difference in the direction that is expected, with its interval over items and seeds."""
    labels = [label for label in (expected.better, expected.than, *(expected.beyond or ())) if label]
    sides = [measured(expected.measure, folders[label], scenes=scenes, template=template) for label in labels]
    most = max(len(side.runs) for side in sides)
    # An arm that is not trained is the same with every seed.
    runs = [side.runs * most if len(side.runs) == 1 else side.runs for side in sides]
    drawn = resampled(runs, sides[0].value)
    signs = np.array([1.0, -1.0, -1.0, 1.0])[: len(sides)] * (-1.0 if expected.lower else 1.0)
    gain = float(signs @ [side.mean for side in sides])
    low, high = percentiles(signs @ drawn)
    holds = low > 0 if expected.apart else low >= -expected.room
    return asdict(expected) | {"gain": gain, "interval": [low, high], "holds": bool(holds)}
