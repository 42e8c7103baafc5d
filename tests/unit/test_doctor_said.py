"""What the doctor says of a recipe: how many rows it needs, rows of every kind, each fault once. About 15 s."""

import io
import json
from dataclasses import replace
from pathlib import Path

import doctor_fixtures as planted
import pytest
from rich.console import Console

from quintet.components.connectors.pool import AveragePool
from quintet.data.processor import Processor
from quintet.data.scenes import make_scenes
from quintet.data.sources import open_source
from quintet.data.tokenizer import Tokenizer
from quintet.lab.doctor import Diagnosis, Finding, diagnose
from quintet.lab.doctor.findings import said_once
from quintet.lab.doctor.spelling import answers
from quintet.lab.pretrained import folder_of
from quintet.lab.recipe import load_recipe
from quintet.recipes._recipe import Recipe
from quintet.recipes._scale import at_scale


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.write(tmp_path_factory.mktemp("clean"), planted.clean_rows()[:2])


def examine(recipe: Recipe, data: Path, letters: Tokenizer, *, limit: int = 8) -> Diagnosis:
    return diagnose(recipe, scale="tiny", data=data, samples=1, limit=limit, tokenizer=letters)


def first_stage(name: str) -> Recipe:
    whole = load_recipe(name)[1]
    [align] = whole.only(["align"])
    return replace(whole, stages=(replace(align, row=4096),))


def test_a_contrastive_stage_is_examined_on_two_rows_where_one_is_asked_for(letters: Tokenizer, clean: Path) -> None:
    """A picture and a caption alone leave the heads that compare without a gradient, and that is no fault."""
    diagnosis = examine(first_stage("blip2"), clean, letters)
    assert [finding.line for finding in diagnosis.findings] == []
    assert len(diagnosis.samples) == 1
    [proof] = [v for v in diagnosis.verdicts if v.contract == "gradients"]
    assert (proof.status, proof.note) == ("proved", "2 samples")


def test_a_contrastive_stage_with_one_row_says_that_it_has_nothing_to_compare(letters: Tokenizer, clean: Path) -> None:
    diagnosis = examine(first_stage("blip2"), clean, letters, limit=1)
    assert diagnosis.ok
    [left] = [v for v in diagnosis.verdicts if v.contract == "gradients"]
    assert (left.status, left.note) == ("skipped", "'align' tells rows from each other, and there is one")


def test_a_fault_of_the_recipe_is_said_once_with_a_count(letters: Tokenizer, clean: Path) -> None:
    whole = load_recipe("llava15")[1]
    stages = tuple(replace(stage, row=4096, template=whole.stages[-1].template) for stage in whole.stages)
    wrong = replace(
        whole, stages=stages, model=replace(whole.model, connectors={"image": AveragePool.Config(factor=5)})
    )
    diagnosis = diagnose(wrong, scale="tiny", data=clean, samples=1, limit=2, tokenizer=letters)
    assert [(f.fault, f.times) for f in diagnosis.findings] == [("does-not-fit", 4)]
    out = io.StringIO()
    diagnosis.render(Console(file=out, width=300))
    assert out.getvalue().count("does not divide by 5") == 1
    assert "(4 times)" in out.getvalue()
    assert out.getvalue().endswith("1 fault found.\n")


def test_faults_of_rows_keep_their_rows() -> None:
    rows = [Finding(contract="data", fault="empty-answer", found="no word", file="a.json", row=n) for n in (1, 2)]
    recipe = [Finding(contract="columns", fault="does-not-fit", found="no fit", file="a.json", row=n) for n in (1, 2)]
    other = Finding(contract="columns", fault="does-not-fit", found="another", row=3)
    assert said_once([*rows, *recipe, other]) == (*rows, replace(recipe[0], times=2), other)


def mixing(kind: str, folder: Path, tokenizer: Tokenizer, **shares: float) -> Diagnosis:
    """Of LLaVA-1.5's last stage, with these rows."""
    recipe = load_recipe("llava15")[1]
    stage = recipe.stages[-1]
    stage = replace(stage, row=4096, data=replace(stage.data, kind=kind, mixed=shares))
    recipe = replace(recipe, stages=(stage,))
    return diagnose(recipe, scale="tiny", samples=1, tokenizer=tokenizer, scenes=folder)


def test_rows_that_are_mixed_into_a_stage_are_examined_as_its_own(letters: Tokenizer, tmp_path: Path) -> None:
    folder = make_scenes(tmp_path / "scenes", 8, 0, splits={"val": 1, "test": 1})
    whole = mixing("instructions", folder, letters, text=0.3, ocr=0.2)
    assert [finding.line for finding in whole.findings] == []
    names = [f"instruct{kind}" for kind in (": text", ": ocr", "")]
    assert list(dict.fromkeys(verdict.stage for verdict in whole.verdicts)) == names
    assert {(v.stage, v.contract) for v in whole.verdicts if v.status == "skipped"} == {
        (names[0], "media"),
        (names[0], "gradients"),
        (names[1], "gradients"),
    }
    rows = json.loads((folder / "train_ocr.json").read_text())
    rows[0]["conversations"][1]["from"] = "nobody"
    (folder / "train_ocr.json").write_text(json.dumps(rows))
    spoilt = mixing("instructions", folder, letters, text=0.3, ocr=0.2)
    assert {(f.stage, f.row) for f in spoilt.findings} == {(names[1], 1)}


def test_what_only_mixed_rows_reach_gets_its_gradient_from_them(letters: Tokenizer, tmp_path: Path) -> None:
    folder = make_scenes(tmp_path / "scenes", 8, 0, splits={"val": 1, "test": 1})
    alone = mixing("text", folder, letters)
    assert {finding.fault for finding in alone.findings} == {"unused-parameter"}
    assert mixing("text", folder, letters, instructions=0.5).ok
    assert mixing("instructions", folder, letters, regions=0.5).ok


@pytest.mark.parametrize("header", ["", "USER: "])
def test_questions_are_expected_to_be_learnt_where_the_template_says_so(header: str, clean: Path) -> None:
    """With the starter's tokenizer too, whose words take the space of a header that is not learnt."""
    recipe = load_recipe("llava15")[1]
    stage = recipe.stages[-1]
    for weight in (1.0, 0.5, 0.0):
        template = replace(stage.template, user_weight=weight, user=replace(stage.template.user, before=header))
        one = replace(recipe, stages=(replace(stage, row=4096, template=template),))
        diagnosis = examine(one, clean, Tokenizer.load(folder_of("starter/llm")))
        assert [finding.line for finding in diagnosis.findings] == []


def test_an_answer_that_is_not_learnt_is_found_where_questions_are(clean: Path) -> None:
    tokenizer = Tokenizer.load(folder_of("starter/llm"))
    template = replace(load_recipe("llava15")[1].stages[-1].template, user_weight=1.0)
    processor = Processor(tokenizer, template, at_scale(load_recipe("llava15")[1], "tiny").model)
    sample = open_source(clean).sample(0)
    tokens = processor.tokens(sample)
    assert not list(answers(sample, tokens, processor))
    # The end marker.
    last = max(i for i, weight in enumerate(tokens.weight.tolist()) if weight)
    weight = tokens.weight.clone()
    weight[last] = 0
    [finding] = answers(sample, replace(tokens, weight=weight), processor)
    assert finding.fault == "answer-not-learnt"
