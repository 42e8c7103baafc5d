"""Comparisons: tables that hold everything, folders of their own, and that nothing is lost or run twice. About 40 s."""

import copy
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import compare_fixtures
import numpy as np
import pytest
from compare_fixtures import TASKS, Quiet, comparison
from rich.console import Console
from typer.testing import CliRunner

from quintet.cli.app import app
from quintet.cli.progress import CompareBars
from quintet.data.scenes import make_scenes
from quintet.errors import CheckpointError, ConfigError
from quintet.evaluation.tasks.scenes import scenes_task
from quintet.lab.compare import Budget, compare, dumped
from quintet.lab.compare.machine import machine, machine_of
from quintet.lab.compare.page import html
from quintet.lab.compare.runs import Asked
from quintet.lab.compare.words import facts, heads, markdown, title, versus
from quintet.lab.listing import entry
from quintet.lab.recipe import load_recipe
from quintet.lab.show import show
from quintet.model.checkpoint import write_json
from quintet.recipes._scale import at_scale

ROOT = Path(__file__).parents[2]
COMMON = ("--scale", "tiny", "--precision", "fp32", "--tasks", "scenes.vqa,scenes.pope", "--limit", "6")
scenes = compare_fixtures.scenes


@pytest.fixture(scope="module")
def whole(scenes: Path) -> tuple[Path, dict[str, Any]]:
    """Two recipes, two seeds, nothing in between."""
    out = scenes.parent / "whole"
    return out, compare(comparison(scenes, out, seeds=(0, 1)), Quiet(), command="quintet compare llava llava15")


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


def test_what_experts_cost_is_marked_as_not_counted() -> None:
    costs = {"stages": {}, "spent": None, "flops_per_sample": 2e12}
    rows = [
        costs | {"recipe": name, "anatomy": entry(*load_recipe(name)).to_json(), "tokens": tokens}
        for name, tokens in (("captioner", {}), ("llava", {"image": 256}))
    ]
    told, seen = (facts(row, {"rows": rows}) for row in rows)
    assert heads({"rows": rows})[1:4] == ["tokens per image", "trainable", "FLOPs per sample"]
    assert told[1:4] == ["in words", "–", "2 T + experts"]
    assert seen[1:4] == ["256", "–", "2 T"]


def test_the_page_holds_everything_and_loads_nothing(whole: tuple[Path, dict[str, Any]]) -> None:
    out, found = whole
    text = (out / "compare.html").read_text()
    assert text == html(found)
    page = (out / "compare.md").read_text()
    assert page == markdown(found)
    assert "2 recipes, each with its own amounts" in text.split("<h1>")[1].split("</h1>")[0]
    assert page.startswith("# 2 recipes, each with its own amounts\n")
    assert "scenes.pope, F1, n = 2 of 6" in page
    assert text.count("<svg") == 2 * len(TASKS)
    for loading in ("src=", "<script", "<link", "url(", "@import"):
        assert loading not in text
    for row in found["rows"]:
        assert row["recipe"] in text


def test_the_title_says_how_much_each_may_train(whole: tuple[Path, dict[str, Any]]) -> None:
    found = whole[1] | {"conditions": whole[1]["conditions"] | {"budget": "500k-tokens"}, "rows": whole[1]["rows"][:1]}
    assert title(found) == "1 recipe, equal budgets of 500k tokens"
    assert "Equal budgets are met up to half a step" in markdown(found)
    assert "Equal budgets" not in markdown(whole[1])


def test_what_differs_is_a_list_with_numbers_as_people_write_them(whole: tuple[Path, dict[str, Any]]) -> None:
    found = copy.deepcopy(whole[1])
    found["rows"][1]["differs"] = {"stages.0.clip": [0.1, 0.004999999999999999], "model.tie": [True, False]}
    page = markdown(found)
    assert "<summary><code>llava15</code>: 2 settings</summary>" in page
    assert "\n- `model.tie: True → False`\n- `stages.0.clip: 0.1 → 0.005`\n" in page


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


def test_a_table_says_where_its_runs_were_made_and_not_where_it_was_collected(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    runs = sorted(path.parent for path in whole[0].glob("*/machine.json"))
    assert [run.name for run in runs][:2] == ["llava-0", "llava-1"]
    assert whole[1]["machine"] == machine_of(runs) == machine()
    for name, threads in (("a", 7), ("b", 7), ("c", 1)):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "machine.json", machine() | {"threads": threads})
    assert machine_of([tmp_path / "a", tmp_path / "b"]) == machine() | {"threads": 7}
    assert machine_of([tmp_path / "a", tmp_path / "c"])["threads"] == "7 or 1"


def test_runs_on_other_starter_parts_are_not_mixed_in(
    scenes: Path, whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe is the same, the LLM that it starts from is not."""
    monkeypatch.setattr("quintet.lab.compare.runs.starter_fingerprint", lambda: "another")
    with pytest.raises(CheckpointError, match="whose starter is"):
        compare(comparison(scenes, whole[0]), Quiet(), command="")


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


def test_a_line_of_progress_speaks_of_the_time_only_where_it_is_known() -> None:
    console = Console(file=io.StringIO(), width=200)
    with CompareBars(console) as bars:
        bars.said = -1e9
        bars.count("plans", 1, 2)
        bars.said, bars.left = -1e9, ", about 3 min left"
        bars.count("plans", 2, 2)
    assert console.file.getvalue() == "plans: 1 of 2\nplans: 2 of 2; all runs, about 3 min left\n"  # pyright: ignore


def test_runs_that_were_there_already_do_not_shorten_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("quintet.cli.progress.time.monotonic", lambda: now)
    bars = CompareBars(Console(file=io.StringIO()))
    for done in (0, 1, 2, 3):
        bars.runs(done, 5)
        now += 0.1
    assert bars.left == ""
    now += 120
    bars.runs(4, 5)
    assert bars.left == ", about 2 min left"


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
        "2 recipes, each with its own amounts",
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
