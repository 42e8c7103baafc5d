"""What whoever adds a system reads and writes: parts with who uses them, and the README's table. About 5 s."""

import importlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quintet.cli.app import app
from quintet.errors import ConfigError
from quintet.lab.listing import write_into
from quintet.lab.parts import ROLES, PartEntry, parts
from quintet.lab.recipe import load_recipe, recipe_names


@pytest.fixture(scope="module")
def found() -> list[PartEntry]:
    return parts()


def test_every_part_is_listed_once_in_its_role_with_what_it_is(found: list[PartEntry]) -> None:
    assert len({(part.module, part.name) for part in found}) == len(found)
    assert [part.role for part in found] == sorted((p.role for p in found), key=list(ROLES).index)
    assert {part.role for part in found} == set(ROLES)
    for part in found:
        assert issubclass(getattr(importlib.import_module(part.module), part.name).Config, ROLES[part.role])
        assert part.what.endswith((".", ":")), part


def test_who_uses_a_part_is_found_also_inside_another(found: list[PartEntry]) -> None:
    users = {part.name: part.used_by for part in found}
    assert {"fuyu", "llava"} <= set(users["Linear"]), "Fuyu's stands inside a Newline"
    assert users["Views"] == ()
    assert set(users["Newline"]) == {"fuyu", "llava_next"}
    for name in recipe_names():
        model = load_recipe(name)[1].model
        for config in (*model.connectors.values(), model.fusion, model.llm):
            assert name in users[type(config).__qualname__.split(".")[0]]


ELSEWHERE = {
    "AveragePool": "unit/test_connectors.py",
    "ConvNeXt": "unit/test_convnext.py",
    "PixelShuffle": "unit/test_connectors.py",
    "Views": "unit/test_connectors.py",
    "NoLLM": "parity/test_blip2_retrieval.py",
    "Tint": "../src/quintet/recipes/_scale.py",
}
"""What no recipe uses at full scale, and so is not under the contract tests by one → the file that tries it; `Tint`
stands for every expert at the tiny scale."""


def test_a_part_is_under_the_contract_by_a_recipe_or_tried_elsewhere(found: list[PartEntry]) -> None:
    assert {part.name for part in found if not part.used_by} == ELSEWHERE.keys()
    for name, file in ELSEWHERE.items():
        assert name in (Path(__file__).parents[1] / file).read_text(encoding="utf-8"), file


def test_the_command_prints_parts_for_people_and_for_scripts(found: list[PartEntry]) -> None:
    shown = CliRunner().invoke(app, ["recipes", "--parts"])
    assert shown.exit_code == 0, shown.output
    assert all(part.name in shown.output for part in found)
    data = json.loads(CliRunner().invoke(app, ["recipes", "--parts", "--json"]).output)
    assert [(row["name"], tuple(row["used_by"])) for row in data] == [(part.name, part.used_by) for part in found]
    assert CliRunner().invoke(app, ["recipes", "--parts", "--markdown"]).exit_code == 2


def test_the_table_goes_between_its_markers_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("Before\n<!-- recipes: start (made) -->\nold\nlines\n<!-- recipes: end -->\nafter\n")
    write_into(page, r"| a \1 |")
    assert page.read_text() == "Before\n<!-- recipes: start (made) -->\n| a \\1 |\n<!-- recipes: end -->\nafter\n"
    done = CliRunner().invoke(app, ["recipes", "--markdown", "--into", str(page)])
    assert done.exit_code == 0, done.output
    assert "| `llava15` | text, image |" in page.read_text()
    page.write_text("no markers\n")
    with pytest.raises(ConfigError, match="recipes: start"):
        write_into(page, "")
    assert page.read_text() == "no markers\n"
