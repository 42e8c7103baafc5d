"""docs/papers.md and docs/compare.md are what their generators make of the recipes and of docs/results/; seconds."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quintet.cli.app import app
from quintet.errors import CheckpointError
from quintet.lab.compare.words import markdown
from quintet.lab.listing import listing
from quintet.lab.papers import Notes, page, read, read_notes
from quintet.lab.recipe import recipe_names

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = sorted((DOCS / "results").glob("papers*.json"))
NOTES = read_notes(DOCS / "results" / "notes.json")


def score(own: tuple[float, float], control: tuple[float, float], **more: Any) -> dict[str, Any]:
    """A score in the middle of its interval."""
    facts = {"metric": "exact match", "higher_is_better": True, "n": 800, "score": sum(own) / 2, "interval": list(own)}
    facts |= {"seeds": {"0": sum(own) / 2}, "deviation": None, "majority": 0.31, "measures": {}, "seconds": 12.0}
    facts |= {"shuffled": {"score": sum(control) / 2, "interval": list(control)}, "beats_shuffled": own[0] > control[1]}
    return facts | more


@pytest.fixture
def found() -> dict[str, Any]:
    """A result of two recipes, the second of which failed."""
    stage = {"trainable": 74_112, "trains": ["connectors.image"], "flops_per_sample": 2e9, "steps": 10, "samples": 320,
             "tokens": 31_000, "flops": 6.4e11, "seconds": 67.2, "loss": 1.0, "dropped": 0}  # fmt: skip
    good = {
        "recipe": "llava15", "given": "llava15", "tokens": {"image": 64}, "flops_per_sample": 2e9,
        "parameters": 4_085_184,
        "stages": {"pretrain": stage}, "spent": {k: stage[k] for k in ("samples", "tokens", "flops", "seconds")},
        "scores": {"scenes.vqa": score((0.82, 0.87), (0.2, 0.27)), "scenes.ocr": score((0.1, 0.3), (0.05, 0.2))},
        "unfit": [], "failed": {}, "differs": {},
    }  # fmt: skip
    bad = good | {"recipe": "llava", "given": "llava", "spent": None, "scores": {}, "failed": {"0": "no such kernel"}}
    return {
        "format": 1,
        "command": "quintet compare llava15 llava --budget 40k-tokens --seeds 1",
        "conditions": {"scale": "starter", "budget": "40k-tokens", "precision": "auto", "scenes": "abc",
                       "scenes_seed": 0,
                       "tasks": {"scenes.vqa": 800, "scenes.ocr": 200}, "pictures": {"train": 6000}},
        "seeds": [0], "baseline": "llava15", "machine": {"processor": "a processor", "threads": 2},
        "rows": [good, bad],
        "differences": {"scenes.vqa": {}, "scenes.ocr": {}},
    }  # fmt: skip


def test_the_page_of_papers_is_up_to_date() -> None:
    text = (DOCS / "papers.md").read_text(encoding="utf-8")
    assert text == page(read(RESULTS), NOTES), "run `make papers`, which takes seconds"


def test_the_page_of_the_comparison_is_up_to_date() -> None:
    """The table is committed with the data that it was made of, or neither is there yet."""
    data, text = DOCS / "results" / "compare.json", DOCS / "compare.md"
    assert data.exists() == text.exists()
    if data.exists():
        assert text.read_text(encoding="utf-8") == markdown(json.loads(data.read_text(encoding="utf-8")))


def test_equal_results_give_equal_pages_whatever_order_their_keys_have(found: dict[str, Any]) -> None:
    turned = copy.deepcopy(found)
    turned["rows"] = [dict(reversed(row.items())) for row in turned["rows"]]
    turned["rows"][0]["scores"] = dict(reversed(turned["rows"][0]["scores"].items()))
    turned["conditions"] = dict(reversed(turned["conditions"].items()))
    assert page([turned]) == page([found])
    assert markdown(turned) == markdown(found)


def test_every_recipe_has_a_section_and_what_is_not_measured_says_so(found: dict[str, Any]) -> None:
    text = page([])
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")][2:] == recipe_names()
    assert text.count("Not measured yet.") == len(recipe_names())
    assert page([found]).count("Not measured yet.") == len(recipe_names()) - 2


def test_a_result_comes_with_command_seeds_time_and_whether_the_control_is_beaten(found: dict[str, Any]) -> None:
    text = page([found])
    assert "`quintet compare llava15 --budget 40k-tokens --seeds 1`" in text
    assert "1 min 07 s of training on 320 samples (31 k tokens, 640 GFLOP), 24.0 s of evaluation" in text
    assert "training seeds 0" in text
    row = next(line for line in text.splitlines() if line.startswith("| scenes.vqa"))
    assert row == ("| scenes.vqa | exact match | 800 | 0.845 [0.820, 0.870] | 0.235 [0.200, 0.270] | 0.310 | ✓ |")
    row = next(line for line in text.splitlines() if line.startswith("| scenes.ocr"))
    assert row.endswith("| 0.310 | ✗ |"), "the intervals meet at 0.1 … 0.2"
    assert "1 of 2 (not scenes.ocr)" in text
    assert "Failed: seed 0: no such kernel" in text


def test_the_command_of_one_row_of_all_names_that_recipe(found: dict[str, Any]) -> None:
    found["command"] = "quintet compare --all --seeds 3"
    assert "`quintet compare llava15 --seeds 3`" in page([found])
    found["command"] = "quintet compare --all"
    assert "`quintet compare llava15`" in page([found])


def test_the_first_result_of_a_recipe_counts(found: dict[str, Any]) -> None:
    other = copy.deepcopy(found)
    other["rows"][0]["scores"]["scenes.vqa"]["score"] = 0.111
    assert "0.111 [" not in page([found, other])
    assert "0.111 [" in page([other, found])


def test_the_command_writes_the_page_and_refuses_what_is_no_result(found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text(json.dumps(found))
    done = CliRunner().invoke(app, ["papers", str(tmp_path / "compare.json"), "--out", str(tmp_path / "papers.md")])
    assert done.exit_code == 0
    assert (tmp_path / "papers.md").read_text() == page([found])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"no result of `quintet compare`"):
        read([tmp_path / "other.json"])
    assert CliRunner().invoke(app, ["papers", str(tmp_path / "nothing.json")]).exit_code == 1


def test_what_should_beat_its_control_and_does_not_is_said_with_its_cause(found: dict[str, Any]) -> None:
    """OCR of llava15 is 0.1 to 0.3 and its control's 0.05 to 0.2: they meet; VQA is beaten, its cause not told."""
    causes = {"llava15": {"scenes.vqa": "stale", "scenes.ocr": "too few tokens"}}
    assigned = {"": ["scenes.vqa"], "llava15": ["scenes.ocr", "scenes.retrieval"], "llava": ["scenes.ocr"]}
    text = page([found], Notes(assigned, causes))
    line = "- `llava15`, scenes.ocr: 0.200 [0.100, 0.300], pictures shuffled 0.125 [0.050, 0.200]; too few tokens.\n"
    assert line in text
    assert text.count("pictures shuffled 0.") == 1
    assert "; cause not shown.\n" in page([found], Notes(assigned))
    assert "did not beat their control" not in page([found])


def test_the_time_alone_is_marked_where_it_was_not_measured_whole(found: dict[str, Any]) -> None:
    notes = Notes(alone={"llava15": 158, "llava": 204}, whole=["llava"], says="from steps")
    text = page([found], notes)
    assert "| 1 min 07 s | 2 min 38 s \\* | 0 |" in text
    assert "| – | 3 min 24 s | 0 |" in text
    assert "\n\\* from steps.\n" in text


def test_notes_are_about_recipes_and_tasks_that_exist(tmp_path: Path) -> None:
    good = {"format": 1, "assigned": {}, "causes": {}, "alone": {"seconds": {}, "whole": [], "says": ""}}
    (tmp_path / "notes.json").write_text(json.dumps(good))
    assert read_notes(tmp_path / "notes.json") == Notes()
    for wrong, said in (
        ({"assigned": {"lava15": []}}, "'lava15', which is no recipe; did you mean 'llava15'"),
        ({"causes": {"llava": {"scenes.vqu": ""}}}, "'scenes.vqu', which is no task"),
        ({"format": 2}, "no notes on results"),
    ):
        (tmp_path / "notes.json").write_text(json.dumps(good | wrong))
        with pytest.raises(CheckpointError, match=said):
            read_notes(tmp_path / "notes.json")


def test_the_anatomy_says_what_trains_in_each_stage() -> None:
    entries = {entry.name: entry for entry in listing()}
    assert entries["llava15"].trains == {"pretrain": ("connectors",), "instruct": ("connectors", "llm")}
    assert "| CLIP ViT-L/14-336 | MLP, 2 layers | tokens | Vicuna-7B v1.5 | pretrain: connectors → instruct" in page([])
    for entry in entries.values():
        data = entry.to_json()
        assert {"name", "inputs", "outputs", "connector", "fusion", "llm", "stages", "paper"} <= set(data)
        assert list(data["stages"]) == list(data["trains"])
        assert all(data["trains"].values())
