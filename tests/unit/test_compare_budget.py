"""What a comparison gives each recipe: the same budget, and the same data in the same order. About 15 s."""

import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import compare_fixtures
import pytest
from compare_fixtures import Quiet, comparison

from quintet.data.pipeline import Plan, Planner, measure_with
from quintet.errors import ConfigError
from quintet.lab.compare import Budget, compare
from quintet.lab.compare.budget import share, tokens_per_sample
from quintet.lab.compare.runs import prepare
from quintet.lab.pretrained import load_tokenizer
from quintet.lab.run import Job, resolve, stage_source

scenes = compare_fixtures.scenes


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


@pytest.mark.parametrize("name", ["pali_x", "kosmos2"])
def test_tokens_that_a_recipe_adds_are_planned_as_one_each(name: str, scenes: Path, tmp_path: Path) -> None:
    """Its sentinels and places: spelt in pieces they would be many, or nothing that the tokenizer knows."""
    asked = comparison(scenes, tmp_path / "out", recipes=[name], budget=Budget.parse("20k-tokens"))
    [system], _, _, failures = prepare(asked, Quiet())
    assert not failures
    planned = json.loads((tmp_path / "out" / "plans.json").read_text())[name]["costs_of_a_step"]
    tokenizer = load_tokenizer(system.recipe.model, added=system.recipe.added_tokens)
    job = Job(recipe=name, out=scenes, scale="tiny", scenes=scenes)
    for stage in system.recipe.stages:
        source = stage_source(job, system.recipe, stage)
        assert planned[stage.name] == stage.batch * tokens_per_sample(system.recipe, stage, source, tokenizer, seed=0)


def test_minutes_are_planned_by_a_few_steps_and_stay_planned(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on 0.01 s whenever the loop looks at it, so that every step takes 0.02 s, however fast the
    machine is: of 0.002 minutes, 0.12 s, there are six steps, shared evenly by stages of as many steps."""
    ticks = count()
    monkeypatch.setattr("quintet.training.loop.time", SimpleNamespace(monotonic=lambda: 0.01 * next(ticks)))
    asked = comparison(
        scenes, tmp_path / "out", recipes=["llava"], budget=Budget.parse("0.002-minutes"), tasks={"scenes.pope": 3}
    )
    one = compare(asked, Quiet(), command="")
    plans = json.loads((tmp_path / "out" / "plans.json").read_text())
    assert plans["llava"]["steps"] == {"align": 3, "instruct": 3}
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
