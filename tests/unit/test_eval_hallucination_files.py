"""AMBER and MMHal-Bench from files in their published layouts, and faults with their places."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from source_rows import write

from quintet.errors import ConfigError, DataError
from quintet.evaluation.run import Answer, evaluate
from quintet.evaluation.tasks.catalogue import TASKS, find_task
from quintet.evaluation.tasks.hallucination_files import FILES
from quintet.evaluation.tasks.scenes_mmhal import TYPES
from quintet.values import Sample, Text


def says(answers: dict[str, str]) -> Answer:
    """Answers by the name of the picture."""

    def answer(samples: list[Sample]) -> list[str]:
        return [answers[next(iter(sample.media())).ref.name] for sample in samples]

    return answer


def by_words(answers: dict[str, str]) -> Answer:
    """Answers by the words of the question."""

    def answer(samples: list[Sample]) -> list[str]:
        turns = [next(sample.turns()) for sample in samples]
        return [answers[part.text] for turn in turns for part in turn.parts if isinstance(part, Text)]

    return answer


def fault_of(name: str, data: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        find_task(name, data=data).items()
    return caught.value


# ---- AMBER -------------------------------------------------------------------------------------------------------
QUERIES = [
    {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
    {"id": 2, "image": "AMBER_2.jpg", "query": "Describe this picture."},
    {"id": 3, "image": "AMBER_1.jpg", "query": "Is the sky sunny in this image?"},
    {"id": 4, "image": "AMBER_1.jpg", "query": "Are there two people in this image?"},
    {"id": 5, "image": "AMBER_1.jpg", "query": "Is there a cloud in this image?"},
    {"id": 6, "image": "AMBER_2.jpg", "query": "Is there direct contact between the cup and wall?"},
    {"id": 7, "image": "AMBER_2.jpg", "query": "Is there direct contact between the cup and table?"},
]
NOTES = [
    {"id": 1, "type": "generative", "truth": ["sky", "person", "forest"], "hallu": ["cloud", "bird"]},
    {"id": 2, "type": "generative", "truth": ["cup", "cup", "TV"], "hallu": ["table"]},
    {"id": 3, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 4, "type": "discriminative-attribute-number", "truth": "no"},
    {"id": 5, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 6, "type": "relation", "truth": "no"},
    {"id": 7, "type": "discriminative-relation", "truth": "yes"},
]
NAMES = ("sky", "cloud", "bird", "cup", "camera")
RELATION = {name: [] for name in NAMES} | {"person": ["man", "woman"], "forest": ["tree"]}
RELATION |= {"table": ["desk"], "TV": ["screen"]}


def amber(folder: Path, queries: Any = QUERIES, notes: Any = NOTES, relation: Any = RELATION) -> Path:
    write(folder / "annotations.json", notes)
    write(folder / "query/query_all.json", queries)
    write(folder / "relation.json", relation)
    (folder / "safe_words.txt").write_text("camera\nlight\n")
    return folder


def test_amber_scores_its_descriptions(tmp_path: Path) -> None:
    """Mentions: man, trees, birds | cups, camera, desks, TV. Made up: birds | desks; the camera is safe.

    CHAIR 2/7. Cover: person and forest of three, cup and TV of two (the cup is listed twice and counts once): 4/5.
    Both are expected: Cog 2/7, listed 2/3.
    """
    task = find_task("amber", data=amber(tmp_path), images=tmp_path)
    said = {"AMBER_1.jpg": "A man among trees and birds.", "AMBER_2.jpg": "Cups, a camera, desks and a TV."}
    result = evaluate(says(said), task)
    assert result.score == pytest.approx(2 / 7)
    found = result.measures
    assert (found["cover"], found["hal"]) == (pytest.approx(4 / 5), 1)
    assert (found["cog"], found["cog_listed"]) == (pytest.approx(2 / 7), pytest.approx(2 / 3))
    assert [item.prompt for item in task.items()] == ["Describe this image.", "Describe this picture."]


def test_without_associations_a_word_stands_for_itself(tmp_path: Path) -> None:
    """The lexicon is then what annotations list, and `man` and `trees` are no words of it."""
    (amber(tmp_path) / "relation.json").unlink()
    (tmp_path / "safe_words.txt").unlink()
    said = {"AMBER_1.jpg": "A man among trees, birds, a person.", "AMBER_2.jpg": "Cups, a camera."}
    result = evaluate(says(said), find_task("amber", data=tmp_path))
    assert (result.score, result.measures["mentions"]) == (pytest.approx(1 / 3), 1.5)


def test_amber_scores_its_questions_to_the_letter(tmp_path: Path) -> None:
    """Gold no: 4, 5, 6; denied: 4, 6 and 7. P 2/3, R 2/3. `no.` to 5 is no answer, so 3 of 5 are right."""
    answers = dict(zip((row["query"] for row in QUERIES[2:]), ("Yes", "No", "no.", "No", "No"), strict=True))
    result = evaluate(by_words(answers), find_task("amber_questions", data=amber(tmp_path / "data").parent))
    assert result.score == pytest.approx(2 / 3)
    assert result.measures["accuracy"] == pytest.approx(3 / 5)
    assert result.measures["unread"] == pytest.approx(1 / 5)
    assert result.measures["attribute accuracy"] == 1
    assert result.measures["existence recall"] == 0
    assert result.measures["relation precision"] == 0.5
    assert set(result.kinds) == {"attribute-state", "attribute-number", "existence", "relation"}


def test_ambers_halves_have_files_of_their_own(tmp_path: Path) -> None:
    (amber(tmp_path) / "query/query_all.json").unlink()
    assert fault_of("amber", tmp_path).fault == "missing-file"
    write(tmp_path / "query/query_generative.json", QUERIES[:2])
    write(tmp_path / "query/query_discriminative.json", QUERIES[2:])
    existence = write(tmp_path / "query/query_discriminative-existence.json", QUERIES[4:5])
    assert len(find_task("amber", data=tmp_path).items()) == 2
    assert len(find_task("amber_questions", data=tmp_path).items()) == 5
    assert len(find_task("amber_questions", data=existence, images=tmp_path).items()) == 1
    assert fault_of("amber", existence).fault == "no-items"
    (tmp_path / "annotations.json").unlink()
    assert fault_of("amber", tmp_path).fault == "missing-file"


@pytest.mark.parametrize(
    ("name", "row", "change", "fault", "field"),
    [
        ("amber", 1, {"truth": "sky"}, "wrong-type", "truth"),
        ("amber", 1, {"hallu": ["cloud", 3]}, "wrong-type", "hallu"),
        ("amber", 1, {"type": "generativ"}, "unknown-type", "type"),
        ("amber", 2, {"id": 1}, "duplicate-id", "id"),
        ("amber_questions", 3, {"truth": "Yes"}, "bad-label", "truth"),
        ("amber_questions", 3, {"truth": True}, "wrong-type", "truth"),
        ("amber_questions", 4, {"type": "discriminative-colour"}, "unknown-type", "type"),
    ],
)
def test_a_bad_annotation_of_amber_has_its_place(
    tmp_path: Path, name: str, row: int, change: dict[str, Any], fault: str, field: str
) -> None:
    notes = [note | change if number == row else note for number, note in enumerate(NOTES, start=1)]
    error = fault_of(name, amber(tmp_path, notes=notes))
    assert (error.fault, error.row, error.field, error.file) == (fault, row, field, str(tmp_path / "annotations.json"))


@pytest.mark.parametrize(
    ("change", "fault", "field"),
    [
        ({"id": 99}, "unequal-counts", "id"),
        ({"id": []}, "wrong-type", "id"),
        ({"image": "../x.jpg"}, "outside-root", "image"),
        ({"query": None}, "wrong-type", "query"),
    ],
)
@pytest.mark.parametrize(("name", "row"), [("amber", 2), ("amber_questions", 3)])
def test_a_bad_query_of_amber_has_its_place(
    tmp_path: Path, name: str, row: int, change: dict[str, Any], fault: str, field: str
) -> None:
    queries = [query | change if number == row else query for number, query in enumerate(QUERIES, start=1)]
    error = fault_of(name, amber(tmp_path, queries=queries))
    assert (error.fault, error.row, error.field, error.file) == (
        fault,
        row,
        field,
        str(tmp_path / "query/query_all.json"),
    )


def test_bad_associations_are_refused(tmp_path: Path) -> None:
    for relation, fault in (([], "wrong-type"), ({"sky": "blue"}, "wrong-type"), ({"sky": [1]}, "wrong-type")):
        assert fault_of("amber", amber(tmp_path, relation=relation)).fault == fault


# ---- MMHal -------------------------------------------------------------------------------------------------------
def question(kind: str = "attribute", **change: Any) -> dict[str, Any]:
    return {
        "question_type": kind,
        "question_topic": "outdoor",
        "image_id": f"id-{kind}",
        "image_src": f"https://example.org/8/{kind}_o.jpg",
        "image_content": ["Fire hydrant", "Tree"],
        "question": f"What is {kind}?",
        "gt_answer": "It is yellow.",
        "model_answer": "",
    } | change


class Judge:
    """Gives the number of words of an answer."""

    name = "counts words"

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, tuple[str, ...]]] = []

    def __call__(self, question: str, truth: str, content: Sequence[str], answer: str) -> int:
        self.seen.append((question, truth, tuple(content)))
        return min(len(answer.split()), 6)


def test_mmhal_is_rated_by_the_judge_that_is_given(tmp_path: Path) -> None:
    """Four words for half of the types, one for the others: mean 2.5, half under 3."""
    file = write(tmp_path / "response_template.json", [question(kind) for kind in TYPES])
    judge = Judge()
    task = find_task("mmhal", data=tmp_path, judge=judge)
    answers = {f"What is {kind}?": "one" if i % 2 else "one two three four" for i, kind in enumerate(TYPES)}
    result = evaluate(by_words(answers), task)
    assert (result.score, result.measures["hallucination_rate"]) == (2.5, 0.5)
    assert set(result.kinds) == set(TYPES)
    assert judge.seen[0] == ("What is attribute?", "It is yellow.", ("Fire hydrant", "Tree"))
    assert task.score(task.items()[:1], ["x"]).details[0]["by"] == "counts words"
    assert find_task("mmhal", data=file, judge=judge).items() == task.items()


def test_pictures_of_mmhal_have_the_end_of_their_address_or_their_id(tmp_path: Path) -> None:
    file = write(tmp_path / "response_template.json", [question("attribute"), question("counting"), question("other")])
    for name in ("attribute_o.jpg", "id-attribute.jpg", "id-counting.jpg"):
        (tmp_path / name).write_bytes(b"x")
    items = find_task("mmhal", data=file, judge=Judge()).items()
    assert [item.media[0].ref.name for item in items] == ["attribute_o.jpg", "id-counting.jpg", "other_o.jpg"]


def test_without_a_judge_mmhal_says_which_there_are(tmp_path: Path) -> None:
    write(tmp_path / "response_template.json", [question()])
    with pytest.raises(
        ConfigError, match=r"rated by a judge, and none is given.*folder of a run.*endpoint.*scenes\.mmhal"
    ):
        find_task("mmhal", data=tmp_path)


@pytest.mark.parametrize(
    ("change", "fault", "field"),
    [
        ({"question_type": "colour"}, "unknown-type", "question_type"),
        ({"image_content": "Tree"}, "wrong-type", "image_content"),
        ({"image_content": [3]}, "wrong-type", "image_content"),
        ({"question": None}, "wrong-type", "question"),
        ({"gt_answer": 3}, "wrong-type", "gt_answer"),
        ({"image_src": 3}, "wrong-type", "image_src"),
        ({"image_src": "https://example.org/"}, "bad-path", "image_src"),
    ],
)
def test_a_bad_row_of_mmhal_has_its_place(tmp_path: Path, change: dict[str, Any], fault: str, field: str) -> None:
    file = write(tmp_path / "mmhal.json", [question(), question(**change)])
    with pytest.raises(DataError) as caught:
        find_task("mmhal", data=file, judge=Judge()).items()
    error = caught.value
    assert (error.fault, error.row, error.field, error.file) == (fault, 2, field, str(file))


# ---- by name -----------------------------------------------------------------------------------------------------
def test_every_benchmark_of_hallucination_is_found_by_name(tmp_path: Path) -> None:
    assert set(FILES) == {"chair", "objhal", "amber", "amber_questions", "mmhal"}
    assert set(FILES) < set(TASKS)
    for name in FILES:
        with pytest.raises(DataError):
            find_task(name, data=tmp_path, judge=Judge()).items()
