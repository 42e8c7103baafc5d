"""A comparison read against another recipe than it was made against: the same as if it had been made so. Seconds."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quintet.cli.app import app
from quintet.cli.compare import _named
from quintet.errors import ConfigError
from quintet.lab.compare.baseline import against
from quintet.lab.compare.words import MOST, markdown, versus
from quintet.lab.differs import recipe_differs
from quintet.lab.recipe import load_recipe, recipe_names
from quintet.recipes._scale import at_scale

COMMITTED = Path(__file__).parents[2] / "docs" / "results" / "compare.json"
SHAPES = {name: at_scale(load_recipe(name)[1], "starter") for name in recipe_names()}


def rows(base: str) -> list[dict[str, object]]:
    """What a comparison of all recipes says of their settings, as it is read from its file."""
    made = [
        {"recipe": name, "differs": {path: list(pair) for path, pair in recipe_differs(SHAPES[base], shape).items()}}
        for name, shape in SHAPES.items()
    ]
    return json.loads(json.dumps(made))


@pytest.mark.parametrize("old", ["blip2", "kosmos2", "pali_x"])
def test_what_differs_is_what_it_would_have_been(old: str) -> None:
    found = against({"baseline": old, "rows": rows(old)}, "llava15")
    assert found["baseline"] == "llava15"
    for row, made in zip(found["rows"], rows("llava15"), strict=True):
        assert row["differs"] == made["differs"], row["recipe"]


def test_pairs_are_read_the_other_way_round() -> None:
    pairs = {"blip2": {"llava15": [0.1, 0.05, 0.15], "vila": [0.3, 0.2, 0.4]}, "llava15": {"vila": [0.2, 0.1, 0.3]}}
    made = {"baseline": "blip2", "rows": [{"recipe": n, "differs": {}} for n in ("blip2", "llava15", "vila")]}
    found = against(made | {"differences": {"scenes.vqa": pairs}}, "llava15")
    assert versus(found, "vila") == {"scenes.vqa": (0.2, 0.1, 0.3)}
    assert versus(found, "blip2") == {"scenes.vqa": (-0.1, -0.15, -0.05)}
    with pytest.raises(ConfigError, match="no 'llava16' in this comparison; did you mean 'llava15'"):
        against(made, "llava16")


def test_the_command_reads_a_table_against_another_recipe_and_runs_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", "vila", "--again", str(COMMITTED), "--out", str(tmp_path / "made")])
    assert done.exit_code == 0, done.output
    assert "## Against `vila`, on the same items" in (tmp_path / "made" / "compare.md").read_text()
    found = json.loads((tmp_path / "made" / "compare.json").read_text())
    assert against(found, "llava15") == json.loads(COMMITTED.read_text(encoding="utf-8"))
    two = CliRunner().invoke(app, ["compare", "vila", "llava", "--again", str(COMMITTED), "--out", str(tmp_path)])
    assert two.exit_code == 1
    assert "against one recipe; 2 are named" in " ".join(two.output.split())


def test_the_page_says_how_it_was_made_and_folds_what_differs() -> None:
    found = json.loads(COMMITTED.read_text(encoding="utf-8"))
    page = markdown(found | {"made": ["Beside other work."]})
    assert page.index("- Beside other work.") < page.index("## Scores")
    differs = {f"model.a{n:02}": [0, 1] for n in range(MOST + 3)} | {"stages.0.template.end": ["a", "b"]}
    many = [row | {"differs": differs} for row in found["rows"]]
    page = markdown(found | {"rows": many})
    assert f"- `model.a{MOST - 1:02}: 0 → 1`\n- and 3 more, 1 of its templates\n" in page
    assert f"<summary><code>vila</code>: {MOST + 4} settings</summary>" in page


def test_all_recipes_are_compared_with_llava15() -> None:
    assert _named([], every=True)[0] == "llava15"
    assert sorted(_named([], every=True)) == recipe_names()
    assert _named(["vila", "llava"], every=False) == ["vila", "llava"]
    with pytest.raises(ConfigError, match="not both"):
        _named(["vila"], every=True)
