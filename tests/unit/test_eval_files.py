"""Tasks over files of the field: POPE, VQAv2, COCO captions, questions with answers, and conversations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from source_rows import write, write_lines

from quintet.data.sources import CocoCaptions, Reading, Source, Vqa
from quintet.errors import ConfigError, DataError
from quintet.evaluation.run import Answer, evaluate
from quintet.evaluation.task import Item
from quintet.evaluation.tasks.catalogue import TASKS, find_task
from quintet.evaluation.tasks.conversations import conversations_task
from quintet.evaluation.tasks.files import caption_task, pope_task, questions_task, vqav2_task
from quintet.values import Media, Node, Origin, Ref, Sample, Text, Turn


def says(answers: dict[str, str]) -> Answer:
    """Answers by the words of the question."""

    def answer(samples: list[Sample]) -> list[str]:
        turns = [next(sample.turns()) for sample in samples]
        return [answers[part.text] for turn in turns for part in turn.parts if isinstance(part, Text)]

    return answer


# ---- POPE --------------------------------------------------------------------------------------------------------
def pope_rows(label: str = "yes") -> list[dict[str, Any]]:
    return [
        {"question_id": 1, "image": "COCO_1.jpg", "text": "Is there a cat in the image?", "label": label},
        {"question_id": 2, "image": "COCO_1.jpg", "text": "Is there a dog in the image?", "label": "no"},
    ]


def test_pope_reads_the_official_files_and_scores_the_random_one(tmp_path: Path) -> None:
    """Random: one right yes, one right no: F1 1. Adversarial: the "yes" to the cat is wrong: TP 0, F1 0."""
    files = [
        write_lines(tmp_path / "coco_pope_random.json", pope_rows()),
        write_lines(tmp_path / "coco_pope_adversarial.json", pope_rows("no")),
    ]
    task = pope_task(files, images=tmp_path)
    answers = {"Is there a cat in the image?": "Yes, there is.", "Is there a dog in the image?": "No."}
    result = evaluate(says(answers), task)
    assert (result.score, result.n) == (1, 2)
    assert result.kinds == {"adversarial": 0, "random": 1}
    assert task.items()[2].media[0].ref.path == tmp_path.resolve() / "COCO_1.jpg"


def test_pope_of_one_file_scores_that_file(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "coco_pope_popular.json", pope_rows())
    result = evaluate(says({row["text"]: "yes" for row in pope_rows()}), pope_task([file], images=tmp_path))
    assert (result.n, result.score) == (2, pytest.approx(2 / 3))


# ---- VQAv2 -------------------------------------------------------------------------------------------------------
def vqav2_files(folder: Path) -> tuple[Path, Path]:
    answers = {10: ["cat"] * 3 + ["dog"] * 7, 11: ["yes"] * 10}
    questions = [
        {"question_id": 10, "image_id": 42, "question": "What is it?"},
        {"question_id": 11, "image_id": 7, "question": "Is it red?"},
    ]
    annotations = [
        {
            "question_id": key,
            "image_id": 42 if key == 10 else 7,
            "answer_type": "other" if key == 10 else "yes/no",
            "multiple_choice_answer": texts[-1],
            "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(texts)],
        }
        for key, texts in answers.items()
    ]
    return (
        write(folder / "q.json", {"data_subtype": "val2014", "questions": questions}),
        write(folder / "a.json", {"annotations": annotations}),
    )


def test_vqav2_joins_its_two_files_and_scores_softly(tmp_path: Path) -> None:
    """ "cat" is said by 3 of ten: 0.9. "Yes" against ten times "yes": nothing is cleaned, 0."""
    task = vqav2_task(Vqa(*vqav2_files(tmp_path), root=tmp_path), suffix="\nOne word.")
    result = evaluate(says({"What is it?\nOne word.": "cat", "Is it red?\nOne word.": "Yes"}), task)
    assert result.kinds == pytest.approx({"other": 0.9, "yes/no": 0})
    assert result.score == pytest.approx(0.45)
    assert task.items()[0].media[0].ref.name == "COCO_val2014_000000000042.jpg"


def test_a_question_without_annotation_is_refused(tmp_path: Path) -> None:
    questions, annotations = vqav2_files(tmp_path)
    write(annotations, {"annotations": json.loads(annotations.read_text())["annotations"][:1]})
    with pytest.raises(DataError, match="question 11 has no annotation") as caught:
        vqav2_task(Vqa(questions, annotations, root=tmp_path)).items()
    assert (caught.value.row, caught.value.field) == (2, "question_id")


# ---- captions ----------------------------------------------------------------------------------------------------
def test_coco_captions_of_a_picture_are_its_references(tmp_path: Path) -> None:
    data = {
        "images": [{"id": 2, "file_name": "b.jpg"}, {"id": 1, "file_name": "a.jpg"}],
        "annotations": [
            {"image_id": 1, "caption": "A cat on a mat."},
            {"image_id": 2, "caption": "Two dogs run."},
            {"image_id": 1, "caption": "The cat lies there."},
        ],
    }
    task = caption_task(CocoCaptions(write(tmp_path / "captions.json", data), root=tmp_path), prompt="Caption:")
    assert [(item.truth, item.media[0].ref.name, item.prompt) for item in task.items()] == [
        (["A cat on a mat.", "The cat lies there."], "a.jpg", "Caption:"),
        (["Two dogs run."], "b.jpg", "Caption:"),
    ]
    assert evaluate(lambda samples: ["nothing"] * len(samples), task).score == 0


def test_a_picture_without_captions_is_refused(tmp_path: Path) -> None:
    data = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}
    with pytest.raises(DataError, match=r"picture 'a.jpg' has no caption"):
        caption_task(CocoCaptions(write(tmp_path / "c.json", data), root=tmp_path)).items()


# ---- questions ---------------------------------------------------------------------------------------------------
QUESTIONS = [
    {"id": "a", "image": "a.png", "question": "Colour?", "answer": "red", "kind": "colour"},
    {"id": "b", "image": "b.png", "question": "How many?", "answers": ["2", "two"], "kind": "count"},
    {"id": "c", "question": "What is 1 + 1?", "answer": "2", "kind": "text"},
]


@pytest.mark.parametrize("writer", [write, write_lines])
def test_questions_come_from_a_list_or_from_lines(tmp_path: Path, writer: Callable[[Path, Any], Path]) -> None:
    task = questions_task(writer(tmp_path / "my.json", QUESTIONS), images=tmp_path)
    result = evaluate(says({"Colour?": "Red.", "How many?": "two", "What is 1 + 1?": "3"}), task)
    assert result.kinds == {"colour": 1, "count": 1, "text": 0}
    assert result.counts["shuffled"] == 2, "the question without a picture cannot be shuffled"


def test_questions_can_be_scored_softly(tmp_path: Path) -> None:
    rows = [{"id": 1, "image": "a.png", "question": "What?", "answers": ["cat"] * 2 + ["dog"] * 8}]
    task = questions_task(write(tmp_path / "my.json", rows), images=tmp_path, soft=True)
    assert evaluate(says({"What?": "The cat"}), task).score == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("row", "fault", "field"),
    [
        ({"question": "Q?"}, "missing-key", "answer"),
        ({"question": "Q?", "answer": 3}, "wrong-type", "answer"),
        ({"question": "Q?", "answer": " "}, "empty-answer", "answers"),
        ({"question": "Q?", "answers": []}, "empty-answer", "answers"),
        ({"answer": "x"}, "missing-key", "question"),
        ({"question": "Q?", "answer": "x", "image": "../secret.png"}, "outside-root", "image"),
        ({"question": "Q?", "answer": "x", "image": "http://a/b.png"}, "remote-media", "image"),
        ({"question": "Q?", "answer": "x", "image": 7}, "wrong-type", "image"),
        ({"question": "Q?", "answer": "x", "id": True}, "wrong-type", "id"),
        (["Q?", "x"], "wrong-type", None),
    ],
)
def test_a_bad_row_is_refused_with_its_place(tmp_path: Path, row: Any, fault: str, field: str | None) -> None:
    file = write_lines(tmp_path / "my.jsonl", [QUESTIONS[0], row])
    with pytest.raises(DataError) as caught:
        questions_task(file, images=tmp_path).items()
    error = caught.value
    assert (error.fault, error.row, error.field, error.file) == (fault, 2, field, str(file))


def test_a_broken_line_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"question": "Q?", "answer": "x"}\n{"question"\n')
    with pytest.raises(DataError, match=r"broken.jsonl, row 2: "):
        questions_task(tmp_path / "broken.jsonl", images=tmp_path).items()
    with pytest.raises(DataError, match="no such file"):
        questions_task(tmp_path / "absent.json", images=tmp_path).items()


# ---- conversations -----------------------------------------------------------------------------------------------
class Listed(Source):
    """Samples from memory."""

    name = file = "memory"

    def __init__(self, *roots: Node) -> None:
        self.roots = roots

    def __len__(self) -> int:
        return len(self.roots)

    def read(self, index: int) -> Reading:
        raise NotImplementedError

    def sample(self, index: int) -> Sample:
        return Sample(self.roots[index], Origin("memory", index + 1))


def user(*parts: Text | Media) -> Turn:
    return Turn("user", parts)


def reply(text: str, weight: float = 1.0) -> Turn:
    return Turn("assistant", (Text(text),), weight)


A, B = (Media("image", Ref(name, data=name.encode())) for name in "ab")


def asked(*roots: Node) -> list[Item]:
    return conversations_task(Listed(*roots)).items()


def test_each_answer_of_a_conversation_is_a_question_with_the_pictures_before_it() -> None:
    root = Node(
        (
            Turn("system", (Text("be brief"),)),
            user(A, Text("What?")),
            reply("a cat"),
            user(Text("And here?"), B),
            reply("a dog"),
            user(Text("Which is larger?")),
            reply("the dog"),
        )
    )
    items = asked(root)
    assert [(item.parts, item.truth, item.kind) for item in items] == [
        ((A, Text("What?")), "a cat", "first"),
        ((A, Text("And here?"), B), "a dog", "later"),
        ((A, B, Text("Which is larger?")), "the dog", "later"),
    ]
    assert {item.system for item in items} == {"be brief"}
    assert all(turn.role != "assistant" for item in items for turn in item.sample().turns())


def test_branches_are_asked_apart_with_the_shared_picture() -> None:
    children = tuple(Node((user(Text(q)), reply(a))) for q, a in (("Colour?", "red"), ("Shape?", "star")))
    items = asked(Node((user(A),), children))
    assert [(item.parts, item.truth) for item in items] == [
        ((A, Text("Colour?")), "red"),
        ((A, Text("Shape?")), "star"),
    ]


def test_an_answer_that_is_not_learnt_is_no_question() -> None:
    [item] = asked(Node((user(A, Text("One?")), reply("x", 0.0), user(Text("Two?")), reply("y"))))
    assert (item.parts, item.truth) == ((A, Text("Two?")), "y")


def test_conversations_are_scored_by_exact_match() -> None:
    roots = [Node((user(Media("image", Ref(q, data=q.encode())), Text(q)), reply(q.upper()))) for q in "xyz"]
    result = evaluate(says({"x": "x", "y": "Y.", "z": "wrong"}), conversations_task(Listed(*roots)))
    assert result.score == pytest.approx(2 / 3)


# ---- by name -----------------------------------------------------------------------------------------------------
LLAVA = [
    {
        "id": "1",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "red"}],
    }
]


def test_a_users_own_file_is_measured_whether_it_holds_questions_or_conversations(tmp_path: Path) -> None:
    for file in (write(tmp_path / "chat.json", LLAVA), write_lines(tmp_path / "ask.jsonl", QUESTIONS[:1])):
        [item] = find_task("vqa", data=file).items()
        assert (item.prompt, item.media[0].ref.path) == ("Colour?", tmp_path.resolve() / "a.png")
        assert evaluate(says({"Colour?": "red"}), find_task("vqa", data=file)).score == 1


def test_named_file_tasks_find_their_files(tmp_path: Path) -> None:
    pope = tmp_path / "pope"
    pope.mkdir()
    for setting in ("random", "popular"):
        write_lines(pope / f"coco_pope_{setting}.json", pope_rows())
    assert {item.kind for item in find_task("pope", data=pope, images=tmp_path).items()} == {"random", "popular"}
    questions, annotations = vqav2_files(tmp_path)
    questions.rename(tmp_path / "v2_questions.json")
    annotations.rename(tmp_path / "v2_annotations.json")
    assert len(find_task("vqav2", data=tmp_path / "v2_questions.json").items()) == 2
    captions = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "A cat."}],
    }
    assert len(find_task("caption", data=write(tmp_path / "captions.json", captions)).items()) == 1
    soft = find_task("vqa.soft", data=write_lines(tmp_path / "ask.jsonl", QUESTIONS))
    assert (soft.name, soft.metric.name) == ("vqa.soft", "VQA soft accuracy")


def test_every_name_is_known_and_others_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'scenes\.vqa'"):
        find_task("scenes.vqs", data=tmp_path)
    assert {"scenes.vqa", "vqa", "pope"} < set(TASKS)
    assert find_task("scenes.vqa", data=tmp_path).name == "scenes.vqa"


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="caption reads"):
        find_task("caption", data=write(tmp_path / "chat.json", LLAVA))
    with pytest.raises(DataError, match="no POPE file"):
        find_task("pope", data=tmp_path)
    with pytest.raises(DataError, match="no such file"):
        find_task("vqa", data=tmp_path / "absent.json")
    (tmp_path / "pretty.json").write_text(json.dumps({"info": {"a": 1}, "licenses": []}, indent=1))
    with pytest.raises(DataError, match="the keys 'info', 'licenses'"):
        find_task("vqa", data=tmp_path / "pretty.json")
