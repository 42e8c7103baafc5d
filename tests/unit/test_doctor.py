"""`quintet doctor`: every planted fault is found by its own word, and what is right has none. 20 s."""

import ast
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import doctor_fixture_parts as wrong
import doctor_fixtures as planted
import pytest
import torch
from rich.console import Console

from quintet.data.processor import Processor
from quintet.data.scenes import make_scenes
from quintet.data.sources import open_source
from quintet.data.tokenizer import Tokenizer
from quintet.errors import ConfigError
from quintet.lab.doctor import CONTRACTS, Diagnosis, diagnose
from quintet.lab.doctor.bench import parents
from quintet.lab.starter.text import train_tokenizer
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale
from quintet.values import Node, Sample, Text, Tokens, Turn

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(vocab=512, texts=100)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.write(tmp_path_factory.mktemp("clean"), planted.clean_rows())


@pytest.fixture
def examine(tokenizer: Tokenizer, clean: Path) -> Callable[..., Diagnosis]:
    """A diagnosis at the tiny scale, on the clean file unless another is named."""

    def run(recipe: Recipe, data: Path = clean, **settings: Any) -> Diagnosis:
        return diagnose(recipe, scale="tiny", data=data, samples=4, tokenizer=tokenizer, **settings)

    return run


def faults(diagnosis: Diagnosis) -> set[str]:
    return {finding.fault for finding in diagnosis.findings}


def status(diagnosis: Diagnosis) -> dict[str, str]:
    return {verdict.contract: verdict.status for verdict in diagnosis.verdicts}


# ---- nothing is wrong --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["llava", "llava15"])
def test_a_clean_recipe_with_a_clean_file_has_no_fault(
    name: str, tokenizer: Tokenizer, clean: Path, tmp_path: Path
) -> None:
    scenes = make_scenes(tmp_path / "scenes", 4, 0, splits={"val": 1, "test": 1})
    diagnosis = diagnose(name, scale="tiny", data=clean, samples=4, tokenizer=tokenizer, scenes=scenes)
    assert [finding.line for finding in diagnosis.findings] == []
    assert diagnosis.ok
    first, last = {v.stage: None for v in diagnosis.verdicts}
    skipped = {(v.stage, v.contract) for v in diagnosis.verdicts if v.status == "skipped"}
    assert skipped == {(first, "chat")}
    assert [v.contract for v in diagnosis.verdicts if v.stage == last] == list(CONTRACTS)
    assert [(s.stage, s.kept) for s in diagnosis.sources] == [(first, 4), (last, 6)]


def test_pictures_of_their_own_sizes_are_each_run(examine: Callable[..., Diagnosis]) -> None:
    """a.png is 40 × 30, b.png 24 × 48, c.png 32 × 32: with patches of 8, rounded up, 5·4, 3·6 and 4·4 features."""
    diagnosis = examine(planted.recipe(native=True))
    assert diagnosis.ok
    (note,) = [v.note for v in diagnosis.verdicts if v.contract == "columns"]
    assert note == "3 of 3 sizes of image"
    shown = {s.text for sample in diagnosis.samples for s in sample.segments if s.kind == "media"}
    assert shown <= {"▣ image 4×5=20", "▣ image 6×3=18", "▣ image 4×4=16"}
    assert len(shown) >= 2


def test_a_full_scale_is_counted_without_weights(examine: Callable[..., Diagnosis], clean: Path) -> None:
    """336 pixels in patches of 14 are 24 × 24 = 576 places; the decoder has 7 billion weights, and none is made."""
    recipe = planted.recipe()
    tokenizer = train_tokenizer(vocab=512, texts=100)
    diagnosis = diagnose(recipe, scale="full", data=clean, samples=2, tokenizer=tokenizer)
    assert diagnosis.ok
    assert any(s.text == "▣ image 24×24=576" for sample in diagnosis.samples for s in sample.segments)
    broken = diagnose(
        planted.recipe(connector=wrong.DropsLast), scale="full", data=clean, samples=2, tokenizer=tokenizer
    )
    assert any("575 features" in f.found and f.expected.startswith("576") for f in broken.findings)


def test_a_diagnosis_repeats_and_leaves_random_numbers_alone(examine: Callable[..., Diagnosis]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = examine(planted.recipe(llm=wrong.Leaky))
    assert torch.equal(torch.rand(1), expected)
    assert examine(planted.recipe(llm=wrong.Leaky)).to_json() == first.to_json()


# ---- faults of data ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fault", planted.DATA_FAULTS)
def test_a_fault_of_the_data_is_found_by_its_word_and_row(
    fault: str, examine: Callable[..., Diagnosis], tmp_path: Path
) -> None:
    rows = planted.clean_rows()
    at, change = planted.DATA_FAULTS[fault]
    change(rows)
    path = planted.write(tmp_path, rows)
    diagnosis = examine(planted.recipe(), path)
    assert {(f.fault, f.row, f.file) for f in diagnosis.findings} == {(fault, at, str(path))}
    line = next(f.line for f in diagnosis.findings)
    assert line.startswith(f"{fault}: {path}, row {at}")
    assert "\n" not in line
    (source,) = diagnosis.sources
    # Training takes rows with a doubtful id or picture; all others it would drop.
    lost = {} if fault in ("duplicate-id", "late-image") else {fault: 1}
    assert (source.dropped, source.kept) == (lost, 6 - len(lost))
    assert status(diagnosis)["dropped"] == ("broken" if lost else "proved")


def test_a_row_that_is_not_utf8_is_found(examine: Callable[..., Diagnosis], tmp_path: Path) -> None:
    path = planted.write(tmp_path, planted.clean_rows(), raw={2: '{"conversations": "é"}'.encode("latin-1")})
    found = [(f.fault, f.row) for f in examine(planted.recipe(), path).findings]
    assert found == [("not-utf8", 3)]


def test_questions_and_annotations_of_unequal_number_are_found(tmp_path: Path) -> None:
    assert "unequal-counts" in faults(diagnose(planted.vqa_pair(tmp_path)))


def test_a_file_alone_is_checked_and_shown_without_a_recipe(tmp_path: Path) -> None:
    rows = planted.clean_rows()
    planted.DATA_FAULTS["missing-file"][1](rows)
    diagnosis = diagnose(planted.write(tmp_path, rows), samples=2)
    assert faults(diagnosis) == {"missing-file"}
    assert status(diagnosis) == {"data": "broken", "dropped": "broken"}
    assert diagnosis.sources[0].dropped == {"missing-file": 1}
    assert [s.text for s in diagnosis.samples[0].segments if s.learnt] == ["red"]
    assert diagnose(planted.write(tmp_path, planted.clean_rows())).ok


def test_a_file_that_cannot_be_read_at_all_is_one_fault(examine: Callable[..., Diagnosis], tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('[{"conversations": [')
    diagnosis = examine(planted.recipe(), path)
    assert len(diagnosis.findings) == 1
    assert set(status(diagnosis).values()) == {"broken", "skipped"}


def test_no_row_left_is_a_fault_of_its_own(examine: Callable[..., Diagnosis], tmp_path: Path) -> None:
    rows = planted.clean_rows()[:1]
    rows[0]["image"] = "gone.png"
    diagnosis = examine(planted.recipe(), planted.write(tmp_path, rows))
    assert faults(diagnosis) == {"missing-file", "no-rows"}
    assert {c for c, s in status(diagnosis).items() if s == "proved"} == set()


def test_rows_beyond_the_limit_are_said_to_be_unread(examine: Callable[..., Diagnosis]) -> None:
    diagnosis = examine(planted.recipe(), limit=2)
    assert (diagnosis.sources[0].read, diagnosis.sources[0].rows) == (2, 6)
    assert "2 of 6 rows" in next(v.note for v in diagnosis.verdicts if v.contract == "data")


# ---- faults of templates -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("fault", planted.TEMPLATE_FAULTS)
def test_a_fault_of_the_template_is_found_by_its_word(fault: str, examine: Callable[..., Diagnosis]) -> None:
    diagnosis = examine(planted.recipe(template=planted.TEMPLATE_FAULTS[fault]))
    assert faults(diagnosis) == {fault}, [f.line for f in diagnosis.findings]
    finding = diagnosis.findings[0]
    assert finding.row
    assert finding.found
    assert finding.expected
    assert finding.do


def _cut(most: int) -> Recipe:
    right = planted.recipe()
    settings = {name: getattr(right.template, name) for name in right.template.to_json() if name != "type"}
    return replace(right, stages=(replace(right.stages[0], template=planted.Cuts(**settings, most=most)),))


def _tokens(clean: Path, row: int, tokenizer: Tokenizer) -> Tokens:
    recipe = at_scale(planted.recipe(), "tiny")
    return Processor(tokenizer, recipe.template, recipe.model).tokens(open_source(clean).sample(row - 1))


def test_an_answer_that_is_cut_by_length_is_found(
    examine: Callable[..., Diagnosis], clean: Path, tokenizer: Tokenizer
) -> None:
    """The fourth row, "Hello there!", loses its end marker and one token more."""
    most = len(_tokens(clean, 4, tokenizer)) - 2
    found = [(f.fault, f.row) for f in examine(_cut(most)).findings]
    assert ("answer-cut", 4) in found


def test_media_whose_columns_are_cut_are_found_and_not_run(
    examine: Callable[..., Diagnosis], clean: Path, tokenizer: Tokenizer
) -> None:
    """Every row but the fourth has a picture behind the system's message; of its 16 columns 8 are left."""
    diagnosis = examine(_cut(_tokens(clean, 1, tokenizer).items[0].start + 8))
    assert [(f.fault, f.row) for f in diagnosis.findings if f.fault == "media-cut"] == [
        ("media-cut", row) for row in (1, 2, 3, 5, 6)
    ]
    assert status(diagnosis)["packing"] == "skipped"


def test_an_answer_without_a_learnt_token_is_found(examine: Callable[..., Diagnosis]) -> None:
    diagnosis = examine(planted.recipe(template=planted.LearnsNothingOfOne))
    found = [(f.fault, f.row) for f in diagnosis.findings if f.contract == "answers"]
    assert ("answer-not-learnt", 2) in found


def test_an_end_marker_inside_an_answer_is_found(examine: Callable[..., Diagnosis], tmp_path: Path) -> None:
    """LLaVA's first template ends with ###, which an answer in Markdown may hold: chat would stop there."""
    from quintet.recipes._templates import LLAVA_V0

    rows = planted.clean_rows()
    rows[0]["conversations"][1]["value"] = "### Colours\nred"
    right = planted.recipe()
    recipe = replace(right, stages=(replace(right.stages[0], template=LLAVA_V0),))
    found = [(f.fault, f.row) for f in examine(recipe, planted.write(tmp_path, rows)).findings]
    assert found == [("end-inside-answer", 1)]


def test_an_end_marker_that_the_tokenizer_does_not_know_is_found(examine: Callable[..., Diagnosis]) -> None:
    right = planted.recipe()
    recipe = replace(right, stages=(replace(right.stages[0], template=replace(right.template, end="<|end|>")),))
    diagnosis = examine(recipe)
    # Such a processor is also refused when it is loaded.
    assert faults(diagnosis) == {"missing-special", "processor-differs"}
    assert "'<|end|>'" in diagnosis.findings[0].line


def test_a_template_without_an_end_is_found(examine: Callable[..., Diagnosis]) -> None:
    right = planted.recipe()
    recipe = replace(right, stages=(replace(right.stages[0], template=replace(right.template, end="")),))
    assert "end-missing" in faults(examine(recipe))


# ---- faults of parts ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ({"llm": wrong.Leaky}, "packing-leak"),
        ({"llm": wrong.Placed}, "place-matters"),
        ({"llm": wrong.Thaws, "train": ("connectors",)}, "frozen-learns"),
        ({"connector": wrong.Unused}, "unused-parameter"),
        ({"connector": wrong.DropsLast}, "feature-count"),
        ({"connector": wrong.SwapsItems, "native": True}, "feature-count"),
        ({"fusion": wrong.OneMore}, "column-count"),
        ({"fusion": wrong.Overflows}, "packing-leak"),
        ({"fusion": wrong.Spills}, "media-early"),
        ({"fusion": wrong.Blind}, "media-ignored"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value.values())).__name__,
)
def test_a_fault_of_a_part_is_found_by_its_word(
    parts: dict[str, Any], fault: str, examine: Callable[..., Diagnosis]
) -> None:
    diagnosis = examine(planted.recipe(**parts))
    own = faults(diagnosis) - ({"unused-parameter"} if parts.get("fusion") is wrong.Blind else set())
    assert own == {fault}, [f.line for f in diagnosis.findings]


def test_an_unused_parameter_is_named(examine: Callable[..., Diagnosis]) -> None:
    (finding,) = examine(planted.recipe(connector=wrong.Unused)).findings
    assert "spare.weight, spare.bias" in finding.line
    assert "connectors.image" in finding.line
    assert finding.stage == "instruct"


def test_rows_without_pictures_leave_a_connector_without_gradient(
    examine: Callable[..., Diagnosis], tmp_path: Path
) -> None:
    rows = [row for row in planted.clean_rows() if "image" not in row]
    diagnosis = examine(planted.recipe(), planted.write(tmp_path, rows))
    assert faults(diagnosis) == {"unused-parameter"}
    assert "these rows hold no image" in diagnosis.findings[0].line


def test_a_rate_for_a_part_that_is_not_there_is_found(examine: Callable[..., Diagnosis]) -> None:
    right = planted.recipe()
    train = {"conector": next(iter(right.stages[0].train.values()))}
    diagnosis = examine(replace(right, stages=(replace(right.stages[0], train=train),)))
    assert faults(diagnosis) == {"unknown-part"}
    assert "connectors" in diagnosis.findings[0].line


# ---- faults of the pipeline --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("collate", "fault"), [(wrong.collates_shifted, "label-shift"), (wrong.collates_fewer, "target-count")]
)
def test_a_collation_that_shifts_or_loses_labels_is_found(
    collate: Any, fault: str, examine: Callable[..., Diagnosis], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quintet.lab.doctor.bench.collate", collate)
    assert faults(examine(planted.recipe())) == {fault}


def test_an_objective_that_shifts_labels_again_is_found(
    examine: Callable[..., Diagnosis], monkeypatch: pytest.MonkeyPatch
) -> None:
    from quintet.training.objectives import OBJECTIVES

    monkeypatch.setitem(OBJECTIVES, "lm", wrong.learns_shifted)
    diagnosis = examine(planted.recipe())
    assert faults(diagnosis) == {"loss-differs"}
    assert "labels shifted twice" in diagnosis.findings[0].line


def test_parents_follow_the_rule_in_a_tree(tokenizer: Tokenizer) -> None:
    """Two answers to one question: the first token of each is predicted from the question's last column."""
    answer = [Node((Turn("assistant", (Text(word),)),)) for word in ("yes", "no")]
    tree = Sample(Node((Turn("user", (Text("Is it red?"),)),), tuple(answer)))
    made = planted.recipe().template.tokens(tree, tokenizer, lambda medium: ((1, 1), 1))
    assert torch.equal(parents(made), made.parent)
    assert (made.parent != torch.arange(len(made)) - 1).sum() == 1


# ---- what is said ------------------------------------------------------------------------------------------------
def test_what_is_learnt_is_shown_in_colour_and_text_of_a_file_is_never_obeyed(
    examine: Callable[..., Diagnosis], tmp_path: Path
) -> None:
    rows = planted.clean_rows()
    rows[0]["conversations"][0]["value"] = "<image>\n[bold]What[/bold] \x1b[2Jcolour?"
    out = io.StringIO()
    diagnosis = examine(planted.recipe(), planted.write(tmp_path, rows))
    diagnosis.render(Console(file=out, force_terminal=True, width=110, color_system="standard"))
    shown = out.getvalue()
    assert "\x1b[1;32m red\x1b[0m" in shown
    assert "▣ image 4×4=16" in shown
    assert "</s>" in shown
    assert "[bold]What[/bold] \\x1b[2Jcolour?" in shown
    assert shown.count("✓") == len(CONTRACTS)
    assert "No fault found." in shown


def test_every_fault_has_one_line_and_the_rest_is_counted(examine: Callable[..., Diagnosis]) -> None:
    out = io.StringIO()
    diagnosis = examine(planted.recipe(template=planted.NoEnd))
    diagnosis.render(Console(file=out, width=300), most=2)
    lines = [line for line in out.getvalue().splitlines() if line.startswith("✗ end-not-learnt")]
    assert len(lines) == 2
    assert "instruct" in lines[0]
    assert "… and 4 more of end-not-learnt" in out.getvalue()


def test_the_machine_readable_form_is_plain_data(examine: Callable[..., Diagnosis]) -> None:
    import json

    data = json.loads(json.dumps(examine(planted.recipe(llm=wrong.Leaky)).to_json()))
    assert (data["ok"], data["scale"]) == (False, "tiny")
    assert [c["contract"] for c in data["contracts"]] == list(CONTRACTS)
    (fault,) = data["faults"]
    assert (fault["contract"], fault["fault"], fault["stage"]) == ("packing", "packing-leak", "instruct")
    assert fault["message"].startswith("packing-leak: ")
    assert data["sources"][0]["kept"] == 6
    assert any(s["learnt"] for s in data["samples"][0]["segments"])


def test_a_question_that_makes_no_sense_is_refused(clean: Path) -> None:
    with pytest.raises(ConfigError, match="data file already"):
        diagnose(clean, data=clean)
    with pytest.raises(ConfigError, match="at least 1"):
        diagnose("llava", samples=0)
    with pytest.raises(ConfigError, match="did you mean 'llava15'"):
        diagnose("lava15")


def test_planted_templates_differ_from_the_right_one_in_the_fault_alone(tokenizer: Tokenizer) -> None:
    """Else a fault might be found for another reason: the settings of each are those of the recipe's template."""
    right = planted.recipe().template
    for kind in planted.TEMPLATE_FAULTS.values():
        template = planted.recipe(template=kind).template
        assert type(template) is kind
        assert {n: getattr(template, n) for n in right.to_json() if n != "type"} == {
            n: getattr(right, n) for n in right.to_json() if n != "type"
        }


def test_every_test_that_the_page_of_footguns_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/footguns.md").read_text(encoding="utf-8"))
    assert len(named) >= 12
    for file, test in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{test}"
