"""Comparisons: equal data, equal budgets, honest statistics, and that nothing is lost or run twice. About a minute."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from quintet.cli.app import app
from quintet.data.pipeline import Plan, Planner, measure_with
from quintet.data.scenes import make_scenes
from quintet.errors import CheckpointError, ConfigError
from quintet.evaluation.bootstrap import interval, percentiles, resampled
from quintet.evaluation.run import evaluate
from quintet.evaluation.tasks.scenes import scenes_task
from quintet.lab.compare import Budget, Comparison, compare, dumped
from quintet.lab.compare.budget import share
from quintet.lab.compare.differs import differing, recipe_differs, said
from quintet.lab.compare.page import html
from quintet.lab.compare.runs import Asked
from quintet.lab.compare.table import Judged, _statistics, judge
from quintet.lab.compare.words import markdown, versus
from quintet.lab.pretrained import load_tokenizer
from quintet.lab.run import Job, load_recipe, resolve, stage_source
from quintet.lab.show import show
from quintet.recipes._scale import at_scale
from quintet.recipes._templates import MINIGPT_V2, VICUNA_V1
from quintet.values import Region, Sample

ROOT = Path(__file__).parents[2]
TASKS = {"scenes.vqa": 6, "scenes.pope": 6}
COMMON = ("--scale", "tiny", "--precision", "fp32", "--tasks", "scenes.vqa,scenes.pope", "--limit", "6")


class Quiet:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.counted: list[tuple[str, int, int]] = []
        self.done: list[tuple[float, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def runs(self, done: float, total: int) -> None:
        self.done.append((done, total))

    def count(self, what: str, done: int, total: int) -> None:
        self.counted.append((what, done, total))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("compare") / "scenes", 24, seed=3, splits={"val": 2, "test": 8})


def comparison(scenes: Path, out: Path, **more: Any) -> Comparison:
    settings: dict[str, Any] = {"recipes": ("llava", "llava15"), "scale": "tiny", "precision": "fp32", "tasks": TASKS}
    settings |= {"scenes": scenes, "out": out}
    return Comparison(**(settings | more))


@pytest.fixture(scope="module")
def whole(scenes: Path) -> tuple[Path, dict[str, Any]]:
    """Two recipes, two seeds, nothing in between."""
    out = scenes.parent / "whole"
    return out, compare(comparison(scenes, out, seeds=(0, 1)), Quiet(), command="quintet compare llava llava15")


# ---- budgets -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [("40k-tokens", 4e4, "tokens"), ("2.5T-flops", 2.5e12, "flops"), ("500-samples", 500, "samples"),
     ("1.5-minutes", 1.5, "minutes"), ("3e6-tokens", 3e6, "tokens")],
)  # fmt: skip
def test_a_budget_is_a_number_and_a_unit(text: str, amount: float, unit: str) -> None:
    assert Budget.parse(text) == Budget(amount, unit, text)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "text", ["40", "tokens", "40k", "40 apples", "-3-tokens", "0-tokens", "40k tokens", "4q-flops"]
)
def test_another_spelling_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match="40k-tokens"):
        Budget.parse(text)


def test_stages_keep_their_shares() -> None:
    """Own: 10 × 100 + 30 × 50 = 2,500 tokens. Half of it: 5 and 15 steps."""
    own, costs = {"a": 10, "b": 30}, {"a": 100.0, "b": 50.0}
    assert share(Budget.parse("1250-tokens"), "x", own=own, costs=costs) == {"a": 5, "b": 15}
    assert share(Budget.parse("5k-tokens"), "x", own=own, costs=costs) == {"a": 20, "b": 60}
    assert share(Budget.parse("150-tokens"), "x", own=own, costs=costs) == {"a": 1, "b": 2}


def test_a_budget_below_one_step_of_each_stage_says_what_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"gives llava no step in every stage: .* give at least 150"):
        share(Budget.parse("149-tokens"), "llava", own={"a": 10, "b": 30}, costs={"a": 100.0, "b": 50.0})


@pytest.mark.parametrize(("text", "amount"), [("6k-tokens", 6_000), ("100-samples", 100), ("2G-flops", 2e9)])
def test_what_was_spent_is_what_was_budgeted(scenes: Path, tmp_path: Path, text: str, amount: float) -> None:
    """Up to half a step of each stage, which for tokens is an estimate; read from the runs and not from the plan."""
    budget = Budget.parse(text)
    found = compare(comparison(scenes, tmp_path / "out", budget=budget, tasks={"scenes.pope": 3}), Quiet(), command="")
    for row in found["rows"]:
        stages = row["stages"].values()
        assert row["spent"][budget.unit] == sum(stage[budget.unit] for stage in stages)
        step = sum(stage[budget.unit] / stage["steps"] for stage in stages)
        assert row["spent"][budget.unit] == pytest.approx(amount, abs=0.5 * step + 0.03 * amount)
        assert all(stage["flops"] == stage["samples"] * stage["flops_per_sample"] for stage in stages)


def test_minutes_are_planned_by_a_few_steps_and_stay_planned(scenes: Path, tmp_path: Path) -> None:
    asked = comparison(
        scenes, tmp_path / "out", recipes=["llava"], budget=Budget.parse("0.01-minutes"), tasks={"scenes.pope": 3}
    )
    one = compare(asked, Quiet(), command="")
    plans = json.loads((tmp_path / "out" / "plans.json").read_text())
    assert plans["llava"]["steps"] == {name: stage["steps"] for name, stage in one["rows"][0]["stages"].items()}
    assert not one["rows"][0]["failed"]
    again = Quiet()
    compare(asked, again, command="")
    assert json.loads((tmp_path / "out" / "plans.json").read_text()) == plans
    assert not any("how fast" in note for note in again.notes)
    assert not list((tmp_path / "out").glob(".probe*"))


# ---- equal data --------------------------------------------------------------------------------------------------
def order(name: str, scenes: Path, *, steps: int, seed: int) -> dict[str, list[tuple[str, int | None]]]:
    """Kind of data → (file, row) of what the recipe's stages read, sample by sample, over several epochs."""
    job = Job(recipe=name, out=scenes, scale="tiny", scenes=scenes)
    recipe = resolve(job)[1]
    tokenizer = load_tokenizer(recipe.model)
    read: dict[str, list[tuple[str, int | None]]] = {}
    for stage in recipe.stages:
        specs = {kind: recipe.model.spec(kind) for kind in recipe.model.encoders}
        plan = Plan(batch=stage.batch, steps=steps, row=stage.row, micro=stage.micro, seed=seed)
        source = stage_source(job, recipe, stage)
        planner = Planner(source, stage.template, tokenizer, measure_with(specs, recipe.model.columns), plan)
        samples = [planner.tokens(n) for n in range(steps * stage.batch)]
        read[stage.data.kind] = [(Path(str(t.origin.file)).name, t.origin.row) for t in samples]
    return read


def test_equal_seeds_give_the_same_samples_in_the_same_order_whatever_the_recipe(scenes: Path) -> None:
    one = order("llava", scenes, steps=9, seed=1)
    assert one == order("llava15", scenes, steps=9, seed=1)
    assert one != order("llava15", scenes, steps=9, seed=2)
    assert {file for rows in one.values() for file, _ in rows} == {"train.json", "train_captions.json"}


def test_a_larger_budget_begins_with_the_samples_of_a_smaller_one(scenes: Path) -> None:
    small, large = (order("llava", scenes, steps=steps, seed=0) for steps in (3, 9))
    assert all(large[kind][: len(rows)] == rows for kind, rows in small.items())


# ---- statistics --------------------------------------------------------------------------------------------------
def shares(right: "slice | np.ndarray", n: int = 100) -> np.ndarray:
    sums = np.zeros((n, 2))
    sums[right, 0], sums[:, 1] = 1, 1
    return sums


def value(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def test_one_run_has_the_interval_of_an_evaluation() -> None:
    sums = shares(slice(30))
    assert percentiles(resampled([[sums]], value)[0]) == interval(sums, value)


def test_a_difference_is_paired_item_by_item() -> None:
    """70 and 62 of 100 right, the 62 among the 70. Alone the intervals overlap; paired, 8 items differ and all one way:
    0.08 ± 1.96·√(0.08·0.92/100) = 0.027 … 0.133."""
    one, two = resampled([[shares(slice(62))], [shares(slice(70))]], value, resamples=4000)
    assert percentiles(one)[1] > percentiles(two)[0]
    assert percentiles(two - one) == pytest.approx((0.027, 0.133), abs=0.011)


def test_seeds_that_disagree_widen_the_interval() -> None:
    """The same mean of 0.5: two equal seeds, and one that has 0.1 with one that has 0.9."""
    equal, unequal = resampled([[shares(slice(50))] * 2, [shares(slice(10)), shares(slice(90))]], value)
    assert percentiles(equal)[1] < 0.62
    assert percentiles(unequal)[1] > 0.85
    assert unequal.mean() == pytest.approx(0.5, abs=0.03)


def test_a_control_is_beaten_only_where_intervals_do_not_touch() -> None:
    task = scenes_task("scenes.vqa", Path())
    result = {
        "score": 0.0,
        "metric": "exact match",
        "n": 100,
        "controls": {"majority": 0.3},
        "measures": {},
        "seconds": 1,
    }
    judged = {
        name: {0: Judged(shares(slice(own)), shares(slice(100 - control, 100)), result)}
        for name, own, control in (("clear", 80, 40), ("close", 50, 45), ("below", 20, 60))
    }
    scores, between = _statistics(task, judged)
    assert {name: score["beats_shuffled"] for name, score in scores.items()} == {
        "clear": True, "close": False, "below": False,
    }  # fmt: skip
    assert scores["clear"]["shuffled"]["score"] == 0.4
    assert between["clear"]["close"][0] == pytest.approx(-0.3)
    lower, _ = _statistics(scenes_task("scenes.chair", Path()), {"a": {0: replaced(0.1, 0.6, result)}})
    assert lower["a"]["beats_shuffled"]


def replaced(own: float, control: float, result: dict[str, Any]) -> Judged:
    """CHAIR's sums: wrong mentions and all mentions in the first two columns."""
    made = [np.zeros((100, 7)) for _ in range(2)]
    for sums, wrong in zip(made, (own, control), strict=True):
        sums[: round(100 * wrong), 0], sums[:, 1] = 1, 1
    return Judged(made[0], made[1], result)


def test_answers_are_judged_again_to_the_score_that_was_written(scenes: Path, tmp_path: Path) -> None:
    """A model that always says yes, and that with shuffled pictures."""
    task = scenes_task("scenes.pope", scenes)
    asked = Asked(task, {item.id: item for item in task.items()}, 20)
    assert judge(tmp_path, asked, VICUNA_V1) is None

    def yes(samples: list[Sample]) -> list[str]:
        return ["yes"] * len(samples)

    result = evaluate(yes, task, limit=20, out=tmp_path)
    found = judge(tmp_path, asked, VICUNA_V1)
    assert found is not None
    assert float(task.metric.value(found.own.sum(axis=0))) == result.score
    assert found.shuffled is not None
    assert float(task.metric.value(found.shuffled.sum(axis=0))) == result.controls["shuffled"]
    place = tmp_path / "eval" / "scenes.pope.jsonl"
    place.write_text(place.read_text().replace('"output": "yes"', '"output": "no"'))
    with pytest.raises(CheckpointError, match="delete it"):
        judge(tmp_path, asked, VICUNA_V1)


def test_boxes_are_judged_again_as_the_recipe_spells_them(scenes: Path, tmp_path: Path) -> None:
    task = scenes_task("scenes.grounding", scenes)
    asked = Asked(task, {item.id: item for item in task.items()}, 10)
    truths = {(item.media[0].ref.name, item.prompt): item.truth for item in asked.items.values()}

    def right(samples: list[Sample]) -> list[str]:
        parts = [sample.root.turns[0].parts for sample in samples]
        boxes = [Region("box", tuple(truths.get((p[0].ref.name, p[1].text), (0.0, 0.0, 0.1, 0.1)))) for p in parts]  # type: ignore[union-attr]
        return [MINIGPT_V2.regions.format([box]) for box in boxes]

    def read(prompt: Sample, text: str) -> list[Region]:
        return MINIGPT_V2.read_regions(text, prompt.media())

    result = evaluate(right, task, read=read, limit=10, out=tmp_path)
    assert result.score == 1
    found = judge(tmp_path, asked, MINIGPT_V2)
    assert found is not None
    assert float(task.metric.value(found.own.sum(axis=0))) == 1
    with pytest.raises(CheckpointError, match="delete it"):
        judge(tmp_path, asked, VICUNA_V1)


# ---- what differed -----------------------------------------------------------------------------------------------
def test_what_differs_is_named_by_its_path() -> None:
    one, two = (at_scale(load_recipe(name)[1], "tiny") for name in ("llava", "llava15"))
    found = recipe_differs(one, two)
    assert found["model.encoders.image.image.fit"] == ("crop", "pad")
    assert "model.connectors.image: Linear → Mlp" in said(found)
    assert not any(path.startswith("paper") or (path.endswith(".name") and "data" in path) for path in found)
    assert recipe_differs(one, one) == {}


def test_parts_of_different_classes_differ_as_wholes() -> None:
    one, two = {"type": "m:A.Config", "x": 1}, {"type": "m:B.Config", "x": 1}
    assert differing({"part": one}, {"part": two}) == {"part": (one, two)}
    assert differing({"stages": [1]}, {"stages": [1, 2]}) == {"stages.1": ("absent", 2)}


# ---- a comparison ------------------------------------------------------------------------------------------------
def test_a_table_has_everything_that_was_promised(whole: tuple[Path, dict[str, Any]]) -> None:
    out, found = whole
    assert json.loads((out / "compare.json").read_text()) == json.loads(json.dumps(found))
    assert [row["recipe"] for row in found["rows"]] == ["llava", "llava15"]
    for row in found["rows"]:
        shown = show(row["recipe"], at_scale(load_recipe(row["recipe"])[1], "tiny"), scale="tiny")
        assert [stage["trainable"] for stage in row["stages"].values()] == [view.trainable for view in shown.stages]
        assert row["tokens"] == shown.tokens
        assert row["flops_per_sample"] == shown.flops_per_sample
        assert row["spent"]["seconds"] > 0
        assert not row["failed"]
        for task in TASKS:
            score = row["scores"][task]
            assert score["score"] == pytest.approx(np.mean(list(score["seeds"].values())))
            assert score["interval"][0] <= score["score"] <= score["interval"][1]
            assert score["deviation"] is not None
            assert set(score["seeds"]) == {"0", "1"}
    assert found["rows"][0]["differs"] == {}
    assert found["rows"][1]["differs"]
    assert set(versus(found, "llava15")) == set(TASKS)


def test_the_page_holds_everything_and_loads_nothing(whole: tuple[Path, dict[str, Any]]) -> None:
    out, found = whole
    text = (out / "compare.html").read_text()
    assert text == html(found)
    assert (out / "compare.md").read_text() == markdown(found)
    assert text.count("<svg") == 2 * len(TASKS)
    for loading in ("src=", "<script", "<link", "url(", "@import"):
        assert loading not in text
    for row in found["rows"]:
        assert row["recipe"] in text


def test_lists_of_numbers_are_one_line_and_the_data_is_the_same(whole: tuple[Path, dict[str, Any]]) -> None:
    text = dumped(whole[1])
    assert json.loads(text) == json.loads(json.dumps(whole[1]))
    assert any(
        line.strip().startswith('"interval": [') and line.rstrip(",").endswith("]") for line in text.splitlines()
    )


def stamps(out: Path) -> dict[str, int]:
    kept = ("model", "stages", "eval", "metrics.jsonl")
    return {str(p): p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and any(k in p.parts for k in kept)}


def test_finished_runs_are_not_run_again_and_more_may_join(scenes: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    out, found = whole
    before, watch = stamps(out), Quiet()
    again = compare(comparison(scenes, out, seeds=(0, 1)), watch, command="quintet compare llava llava15")
    assert again == found
    assert stamps(out) == before
    assert watch.done[-1] == (4.0, 4)
    more = compare(comparison(scenes, out, recipes=["llava15"], seeds=(0, 1, 2)), Quiet(), command="")
    assert set(stamps(out)) > set(before)
    assert {path: stamp for path, stamp in stamps(out).items() if path in before} == before
    assert set(more["rows"][0]["scores"]["scenes.vqa"]["seeds"]) == {"0", "1", "2"}


def test_one_folder_holds_one_set_of_conditions(
    scenes: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"whose budget is 'own', this one's is '9k-tokens'.*another --out"):
        compare(comparison(scenes, whole[0], budget=Budget.parse("9k-tokens")), Quiet(), command="")
    other = make_scenes(tmp_path / "scenes", 24, seed=4, splits={"val": 2, "test": 8})
    with pytest.raises(CheckpointError, match="whose scenes is"):
        compare(comparison(other, whole[0]), Quiet(), command="")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "one.tex").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no comparison"):
        compare(comparison(scenes, tmp_path / "thesis"), Quiet(), command="")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["one.tex"]
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        compare(comparison(scenes, tmp_path / "thesis" / "one.tex"), Quiet(), command="")
    with pytest.raises(ConfigError, match="two recipes are named"):
        compare(comparison(scenes, tmp_path / "new", recipes=["llava", "llava"]), Quiet(), command="")
    assert not (tmp_path / "new").exists()


def test_progress_never_goes_back_and_ends_at_all(scenes: Path, tmp_path: Path) -> None:
    watch = Quiet()
    compare(comparison(scenes, tmp_path / "out", tasks={"scenes.pope": 3}), watch, command="")
    shares = [done for done, _ in watch.done]
    assert shares == sorted(shares)
    assert shares[-1] == 2.0
    assert len(set(shares)) > 6
    assert all(done <= total for _, done, total in watch.counted)


BROKEN = """
from dataclasses import dataclass, replace
from quintet.components.connectors.linear import Linear
from quintet.recipes import llava

@dataclass(frozen=True, kw_only=True)
class Config(Linear.Config):
    def build(self, **kwargs):
        raise RuntimeError("no such\\nkernel")

def recipe():
    base = llava.recipe()
    return replace(base, model=replace(base.model, connectors={"image": Config()}))
"""


def test_a_recipe_that_fails_is_a_row_that_says_why(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    asked = comparison(
        scenes, tmp_path / "out", recipes=["llava", str(tmp_path / "broken.py")], tasks={"scenes.pope": 3}
    )
    found = compare(asked, Quiet(), command="")
    good, bad = found["rows"]
    assert (good["failed"], bad["failed"]) == ({}, {"0": "RuntimeError: no such kernel"})
    assert good["scores"]
    assert not bad["scores"]
    assert "Traceback" in (tmp_path / "out" / "failures" / "broken-0.txt").read_text()
    for name in ("compare.html", "compare.md"):
        assert "no such kernel" in (tmp_path / "out" / name).read_text()
    budgeted = compare(replace(asked, out=tmp_path / "b", budget=Budget.parse("1G-flops")), Quiet(), command="")
    assert budgeted["rows"][1]["failed"] == {"0": "RuntimeError: no such kernel"}
    (tmp_path / "broken.py").write_text(BROKEN.replace("raise RuntimeError", "return super().build(**kwargs) #"))
    sys.modules.pop("broken")
    mended = compare(asked, Quiet(), command="")
    assert not mended["rows"][1]["failed"]
    assert mended["rows"][1]["scores"]
    assert not (tmp_path / "out" / "failures" / "broken-0.txt").exists()


def test_shares_of_the_runs_make_one_table(scenes: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Two processes, each with half of the runs; the one that ends last has everything, what failed elsewhere too."""
    (tmp_path / "broken.py").write_text(BROKEN)
    recipes = ["llava", str(tmp_path / "broken.py"), "llava15"]
    one = comparison(scenes, tmp_path / "out", recipes=recipes, seeds=(0, 1), share=(1, 2))
    watches = Quiet(), Quiet()
    first = compare(one, watches[0], command="")
    assert set(first["rows"][0]["scores"]["scenes.vqa"]["seeds"]) == {"0"}
    both = compare(replace(one, share=(2, 2)), watches[1], command="")
    assert [watch.done[-1] for watch in watches] == [(3.0, 3), (3.0, 3)]
    assert [set(row["failed"]) for row in both["rows"]] == [set(), {"0", "1"}, set()]
    for mine, alone in zip((both["rows"][0], both["rows"][2]), whole[1]["rows"], strict=True):
        assert mine["scores"]["scenes.vqa"]["seeds"] == alone["scores"]["scenes.vqa"]["seeds"]
    with pytest.raises(ConfigError, match="a share of 3/2 is none"):
        replace(one, share=(3, 2))


def test_a_run_of_a_recipe_that_has_changed_since_is_never_a_row(scenes: Path, tmp_path: Path) -> None:
    text = "from quintet.recipes import {0}\n\ndef recipe():\n    return {0}.recipe()\n"
    (tmp_path / "mine.py").write_text(text.format("llava"))
    asked = comparison(scenes, tmp_path / "out", recipes=[str(tmp_path / "mine.py")], tasks={"scenes.pope": 3})
    assert compare(asked, Quiet(), command="")["rows"][0]["scores"]
    (tmp_path / "mine.py").write_text(text.format("llava15"))
    [row] = compare(asked, Quiet(), command="")["rows"]
    assert "delete the folder to run it anew" in row["failed"]["0"]
    assert not row["scores"]


def test_a_task_that_shows_what_a_recipe_does_not_read_is_not_asked(scenes: Path) -> None:
    task = scenes_task("scenes.pope", scenes)
    asked = Asked(task, {item.id: item for item in task.items()}, 5)
    recipe = at_scale(load_recipe("llava")[1], "tiny")
    assert asked.fits(recipe)
    assert not replace(asked, task=replace(task, learnt_from="regions")).fits(recipe)
    assert not asked.fits(replace(recipe, model=replace(recipe.model, encoders={}, connectors={})))


# ---- the command -------------------------------------------------------------------------------------------------
def run(*args: str | Path) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["llava51"], "did you mean 'llava15'"),
        ([], "there is nothing to compare; name recipes, or --all"),
        (["llava", "llava"], "two recipes are named 'llava'"),
        (["llava", "--all"], "not both"),
        (["llava", "--budget", "40 apples"], "40k-tokens"),
        (["llava", "--budget", "10-tokens"], "gives llava no step in every stage"),
        (["llava", "--tasks", "scenes.vqq"], "did you mean 'scenes.vqa'"),
        (["llava", "--scale", "full"], "equal parts exist at starter and tiny scale"),
        (["llava", "--scenes", "."], "make them with `quintet data make scenes"),
    ],
    ids=str,
)
def test_a_fault_is_one_line(args: list[str], message: str, scenes: Path, tmp_path: Path) -> None:
    given = [*args, *(() if "--scale" in args else ("--scale", "tiny")), "--out", tmp_path / "out"]
    result = run("compare", *given, *(() if "--scenes" in args else ("--scenes", scenes)))
    assert result.exit_code == 1, result.output
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out" / "compare.json").exists()


def test_a_budget_that_was_too_small_may_be_mended_in_the_same_folder(scenes: Path, tmp_path: Path) -> None:
    args = ("compare", "llava", *COMMON, "--scenes", scenes, "--out", tmp_path / "out", "--budget")
    assert run(*args, "10-samples").exit_code == 0
    assert "is '10-samples', this one's is '12-samples'" in run(*args, "12-samples").stderr
    other = (*args[:-3], "--out", tmp_path / "other", "--budget")
    assert "give at least 8" in run(*other, "7-samples").stderr
    assert run(*other, "8-samples").exit_code == 0


def test_the_command_prints_a_table_or_json(scenes: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    args = ("compare", "llava", "llava15", *COMMON, "--seeds", "2", "--scenes", scenes, "--out", whole[0])
    shown = run(*args)
    assert shown.exit_code == 0, shown.output
    for word in (
        "scenes.vqa",
        "scenes.pope",
        "against llava",
        "FLOPs per sample",
        "model.connectors.image: Linear → Mlp",
    ):
        assert word in shown.stdout
    found = json.loads(run(*args, "--json").stdout)
    assert found["rows"] == json.loads(json.dumps(whole[1]["rows"]))
    assert found["command"] == (
        "quintet compare llava llava15 --seeds 2 --tasks scenes.vqa,scenes.pope --limit 6 --scenes SCENES --scale tiny "
        "--precision fp32"
    )


def test_a_comparison_that_was_killed_goes_on_to_the_same_answers(
    scenes: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """kill -9 while the second recipe trains or is asked; then the same command."""
    out = tmp_path / "out"
    args = ["compare", "llava", "llava15", *COMMON, "--seeds", "2", "--scenes", str(scenes), "--out", str(out)]
    code = "import torch; torch.set_num_threads(1); from quintet.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([sys.executable, "-c", code, *args], env=environment, stderr=subprocess.PIPE) as process:
        try:
            until = time.monotonic() + 120
            while not (out / "llava15-0" / "stages" / "pretrain" / "stage.json").exists():
                assert time.monotonic() < until
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
    assert not (out / "compare.json").exists()
    assert run(*args).exit_code == 0
    for name in ("llava-0", "llava-1", "llava15-0", "llava15-1"):
        for task in TASKS:
            at = Path(name) / "eval" / f"{task}.jsonl"
            assert (out / at).read_bytes() == (whole[0] / at).read_bytes()
