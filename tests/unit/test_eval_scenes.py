"""The Scenes tasks on pictures made here: what a perfect, a blind and a cheating answerer score."""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from quintet.data.regions import Numbers, RegionFormat
from quintet.data.scenes import Truth, caption, make_scenes, read_truth
from quintet.data.template import Frame, Template
from quintet.errors import DataError
from quintet.evaluation.run import Answer, Result, evaluate
from quintet.evaluation.tasks.scenes import NAMES, named_mentions, scenes_task
from quintet.recipes._templates import LLAVA_V0, MINIGPT_V2, VICUNA_V1
from quintet.recipes._templates_query import KOSMOS2_CHAT, QWEN_VL
from quintet.recipes._templates_regions import CHATSPOT, SHIKRA
from quintet.values import Region, Sample, Text

Knows = Callable[[Truth, str], str]
"""The whole truth of a picture and a question → an answer."""

NOWHERE = Region("box", (0.0, 0.0, 0.125, 0.125))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("eval") / "scenes", 1, 7, splits={"val": 0, "test": 40})


def answers_by(folder: Path, knows: Knows) -> Answer:
    """Finds the picture by its bytes, so that shuffled media change what is known."""
    truths = {hashlib.sha256(t.image.read_bytes()).hexdigest(): t for t in read_truth(folder / "test.truth.jsonl")}

    def answer(samples: list[Sample]) -> list[str]:
        found = []
        for sample in samples:
            [medium] = sample.media()
            [turn] = sample.turns()
            question = next(part.text for part in turn.parts if isinstance(part, Text))
            found.append(knows(truths[hashlib.sha256(medium.ref.read()).hexdigest()], question))
        return found

    return answer


def right(truth: Truth, question: str) -> str:
    """The answer if this was asked of this picture; of another picture, what a model would say without looking."""
    asked = [*truth.questions, *truth.grounding, *(q for each in truth.pope.values() for q in each)]
    for each in asked:
        if each.text == question:
            return each.said
    if question.startswith(("Describe the picture briefly", "Describe the picture in detail")):
        style = "short" if "briefly" in question else "long"
        return caption(truth.scene, random.Random(0), style)
    there = {each.name for each in truth.scene.objects}
    return "yes" if any(name in question for name in there) else "no"


def run(name: str, folder: Path, knows: Knows = right) -> Result:
    return evaluate(answers_by(folder, knows), scenes_task(name, folder))


def test_the_tasks_have_their_names() -> None:
    names = {"vqa", "pope", "caption", "chair", "grounding", "referring", "retrieval", "ocr", "digits", "fewshot"}
    names |= {"amber", "amber_questions", "mmhal", "objhal"}
    assert set(NAMES) == {f"scenes.{name}" for name in names}


@pytest.mark.parametrize("name", ["scenes.vqa", "scenes.pope", "scenes.grounding", "scenes.ocr", "scenes.digits"])
def test_who_knows_all_is_right_and_falls_when_the_media_are_shuffled(folder: Path, name: str) -> None:
    result = run(name, folder)
    assert result.score == 1
    assert result.interval == (1, 1)
    assert set(result.kinds.values()) == {1}
    assert result.controls["majority"] < 0.75
    assert result.controls["shuffled"] < 0.75


def test_true_captions_have_no_hallucination_and_full_recall(folder: Path) -> None:
    result = run("scenes.chair", folder)
    assert (result.score, result.higher_is_better) == (0, False)
    assert result.measures["chair_s"] == 0
    assert result.measures["recall"] == 1
    assert result.measures["words"] > 5
    assert result.controls["shuffled"] > 0.5
    assert result.controls["majority"] > 0.5


def test_true_captions_are_like_their_references_and_others_are_not(folder: Path) -> None:
    result = run("scenes.caption", folder)
    assert result.score > 4, "objects come in any order, so not 10"
    assert result.controls["shuffled"] < result.score / 2
    assert result.controls["majority"] < result.score / 2


def test_pope_scores_the_random_setting_and_reports_all_three(folder: Path) -> None:
    result = run("scenes.pope", folder, lambda truth, question: "yes")
    assert result.kinds == pytest.approx(dict.fromkeys(("adversarial", "popular", "random"), 2 / 3))
    assert result.score == result.kinds["random"]
    assert result.counts["items"] == 3 * result.n
    assert result.measures["yes_ratio"] == 1
    assert result.controls == pytest.approx({"majority": 2 / 3, "shuffled": 2 / 3})


def test_vqa_has_every_kind_and_the_kinds_of_other_tasks_are_parts_of_it(folder: Path) -> None:
    items = scenes_task("scenes.vqa", folder).items()
    kinds = {item.kind for item in items}
    assert kinds == {
        "existence", "count", "colour", "shape", "size", "place", "object", "relation", "digit", "word",
    }  # fmt: skip
    words = scenes_task("scenes.ocr", folder).items()
    assert [w.truth for w in words] == [i.truth for i in items if i.kind == "word"]
    digits = scenes_task("scenes.digits", folder).items()
    assert [d.truth for d in digits] == [i.truth for i in items if i.kind == "digit"]
    assert digits


def test_boxes_are_exact_and_not_the_rounded_text(folder: Path) -> None:
    truths = {t.image.stem: t for t in read_truth(folder / "test.truth.jsonl")}
    for item in scenes_task("scenes.grounding", folder).items():
        boxes = [list(each.box) for each in truths[item.id.split("/")[0]].scene.objects]
        assert item.truth in boxes


def test_questions_that_point_carry_their_region_and_an_answer_that_needs_it(folder: Path) -> None:
    items = scenes_task("scenes.referring", folder).items()
    assert {item.kind for item in items} == {"box", "point"}
    answers: dict[tuple[str, str], set[str]] = {}
    for item in items:
        [region] = item.regions
        assert (region.kind, len(region.points)) == (("box", 4) if item.kind == "box" else ("points", 2))
        assert "<region>" not in item.prompt
        answers.setdefault((item.media[0].ref.name, item.prompt), set()).add(item.truth)
    assert any(len(each) > 1 for each in answers.values()), "one question, two regions, two answers"


@pytest.mark.parametrize("template", [LLAVA_V0, VICUNA_V1, SHIKRA, CHATSPOT, MINIGPT_V2, QWEN_VL, KOSMOS2_CHAT])
def test_grounding_is_read_as_the_template_spells_it_and_nothing_else_counts(folder: Path, template: Template) -> None:
    """Bins of a thirty-second of the side cost some; a spelling of another system is no box."""
    task = scenes_task("scenes.grounding", folder)
    boxes = {(i.media[0].ref.name, i.prompt): Region("box", tuple(i.truth)) for i in task.items()}

    def answer(samples: list[Sample], form: RegionFormat = template.regions) -> list[str]:
        asked = [s.root.turns[0].parts for s in samples]
        return [f"It is {form.format([boxes.get((p[0].ref.name, p[1].text), NOWHERE)])}." for p in asked]

    def read(sample: Sample, text: str) -> list[Region]:
        return template.read_regions(text, sample.media())

    result = evaluate(answer, task, read=read)
    assert result.score > (0.6 if template is KOSMOS2_CHAT else 0.98)
    assert result.measures["unread"] == 0
    other = Numbers(group=Frame(before="(", after=")"), between=";")
    wrong = evaluate(lambda samples: answer(samples, other), task, read=read)
    assert (wrong.score, wrong.measures["unread"]) == (0, 1)


def test_ids_do_not_depend_on_where_the_folder_is(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.symlink_to(folder, target_is_directory=True)
    for name in NAMES:
        here, there = scenes_task(name, folder).items(), scenes_task(name, moved).items()
        assert [(i.id, i.prompt, i.truth, i.media[0].ref.name) for i in here] == [
            (i.id, i.prompt, i.truth, i.media[0].ref.name) for i in there
        ]


def test_truths_are_json(folder: Path) -> None:
    for name in NAMES:
        for item in scenes_task(name, folder).items():
            assert json.loads(json.dumps(item.truth)) == item.truth


def test_a_folder_without_scenes_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="quintet data make scenes"):
        scenes_task("scenes.vqa", tmp_path).items()


def test_mentions_are_named_as_truths_are() -> None:
    assert named_mentions("A red circle and blue stars, a red circle") == ["red circle", "blue star", "red circle"]
