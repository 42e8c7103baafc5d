"""CHAIR, Object HalBench, AMBER and MMHal-Bench from files in their published layouts, and faults with their places."""

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from quintet.errors import ConfigError, DataError
from quintet.evaluation.run import Answer, evaluate
from quintet.evaluation.tasks.catalogue import TASKS, find_task
from quintet.evaluation.tasks.coco_files import CHAIR_PROMPT
from quintet.evaluation.tasks.hallucination_files import FILES
from quintet.evaluation.tasks.scenes_mmhal import TYPES
from quintet.values import Sample, Text


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


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


# ---- COCO --------------------------------------------------------------------------------------------------------
CATS, DOGS = "COCO_val2014_000000000042.jpg", "COCO_val2014_000000000007.jpg"


def captions() -> dict[str, Any]:
    return {
        "images": [{"id": 42, "file_name": CATS}, {"id": 7, "file_name": DOGS}],
        "annotations": [
            {"id": 1, "image_id": 42, "caption": "A kitten on a sofa."},
            {"id": 2, "image_id": 7, "caption": "Two dogs run."},
            {"id": 3, "image_id": 42, "caption": "Something sleeps."},
        ],
    }


def instances() -> dict[str, Any]:
    return {
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 63, "name": "couch"}],
        "images": [{"id": 42, "file_name": CATS}, {"id": 7, "file_name": DOGS}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18},
            {"id": 2, "image_id": 7, "category_id": 1},
            {"id": 3, "image_id": 7, "category_id": 18},
        ],
    }


def coco(folder: Path) -> Path:
    write(folder / "captions_val2014.json", captions())
    write(folder / "instances_val2014.json", instances())
    return folder


def test_the_truth_is_what_is_outlined_and_what_people_name(tmp_path: Path) -> None:
    """The cat and the couch are in a caption alone, the person in the outlines alone."""
    items = find_task("chair", data=coco(tmp_path)).items()
    assert [(item.id, item.truth["objects"]) for item in items] == [
        ("000000000007", ["dog", "person"]),
        ("000000000042", ["cat", "couch"]),
    ]
    assert items[1].truth["captions"] == ["A kitten on a sofa.", "Something sleeps."]
    assert (items[0].prompt, items[0].media[0].ref.path) == (CHAIR_PROMPT, tmp_path.resolve() / DOGS)


def test_chair_of_cocos_files(tmp_path: Path) -> None:
    """Mentions: cat, sofa, bird | man, dog, dog: one of six is made up, one of two captions has it; all is found."""
    said = {CATS: "A cat on a sofa watches a bird.", DOGS: "A man and a dog, the dog runs."}
    result = evaluate(says(said), find_task("chair", data=coco(tmp_path)))
    assert result.score == pytest.approx(1 / 6)
    assert result.measures == pytest.approx({"chair_s": 0.5, "recall": 1.0, "words": 8.0, "mentions": 3.0})
    assert result.beside == "recall"
    assert result.controls["majority"] is not None


def test_a_file_brings_the_one_beside_it_and_a_folder_all_of_its_splits(tmp_path: Path) -> None:
    coco(tmp_path / "annotations")
    one = {"images": [{"id": 5, "file_name": "a.jpg"}], "annotations": []}
    write(tmp_path / "annotations/instances_train2014.json", one | {"categories": []})
    words = [{"image_id": 5, "caption": "A bus."}]
    write(tmp_path / "annotations/captions_train2014.json", one | {"annotations": words})
    assert len(find_task("chair", data=tmp_path).items()) == 3
    assert len(find_task("chair", data=tmp_path / "annotations/captions_val2014.json").items()) == 2
    [item] = find_task("chair", data=tmp_path / "annotations/instances_train2014.json", images=tmp_path).items()
    assert (item.truth["objects"], item.media[0].ref.path) == (["bus"], tmp_path.resolve() / "a.jpg")


def test_one_kind_of_annotations_is_not_enough(tmp_path: Path) -> None:
    write(tmp_path / "captions_val2014.json", captions())
    for data in (tmp_path, tmp_path / "captions_val2014.json"):
        assert fault_of("chair", data).fault == "missing-file"


Spoil = Callable[[dict[str, Any], dict[str, Any]], object]


@pytest.mark.parametrize(
    ("spoil", "fault", "row", "field", "words"),
    [
        (lambda c, i: c["annotations"].pop(1), "missing-answer", 2, "images[1].id", "has no caption"),
        (lambda c, i: i["images"].pop(0), "unequal-counts", 1, "images[0].id", "in no instances file"),
        (lambda c, i: c["images"].append(c["images"][0]), "duplicate-id", 3, "images[2].id", "listed twice"),
        (lambda c, i: c["images"][0].pop("file_name"), "missing-key", 1, "images[0].file_name", "no 'file_name'"),
        (lambda c, i: c["annotations"][1].update(image_id=9), "missing-key", 2, "annotations[1].image_id", "picture 9"),
        (
            lambda c, i: c["annotations"][2].update(caption=3),
            "wrong-type",
            3,
            "annotations[2].caption",
            "expected text",
        ),
        (lambda c, i: i["annotations"][2].update(category_id=9), "missing-key", 3, "annotations[2].category_id", "9"),
        (
            lambda c, i: i["annotations"][0].pop("category_id"),
            "missing-key",
            1,
            "annotations[0].category_id",
            "no 'category_id'",
        ),
        (lambda c, i: i["categories"][1].update(name="wolf"), "unknown-class", 2, "categories[1].name", "'wolf'"),
        (lambda c, i: i.pop("categories"), "missing-key", None, "categories", "must be a list"),
        (lambda c, i: c["images"].insert(0, 3), "wrong-type", 1, "images[0]", "expected an object"),
        (lambda c, i: c["images"][1].update(file_name="../x.jpg"), "outside-root", 2, "file_name", "leaves"),
    ],
)
def test_a_fault_of_cocos_files_has_its_place(
    tmp_path: Path, spoil: Spoil, fault: str, row: int | None, field: str, words: str
) -> None:
    said, drawn = captions(), instances()
    spoil(said, drawn)
    write(tmp_path / "captions_val2014.json", said)
    write(tmp_path / "instances_val2014.json", drawn)
    with pytest.raises(DataError, match=words) as caught:
        find_task("chair", data=tmp_path).items()
    assert (caught.value.fault, caught.value.row, caught.value.field) == (fault, row, field)
    assert caught.value.file is not None


def test_a_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    coco(tmp_path)
    write(tmp_path / "instances_val2014.json", [1])
    assert fault_of("chair", tmp_path).fault == "wrong-type"


# ---- Object HalBench ---------------------------------------------------------------------------------------------
def test_object_halbench_reads_pictures_in_base64_and_by_name(tmp_path: Path) -> None:
    """Mentions: cat, sofa | person, bird. One of two answers makes something up, one word of four."""
    rows = [
        {"image_id": "000000000042", "question": "Describe it.", "image": base64.b64encode(b"cats").decode()},
        {"image_id": 7, "question": "What is there?", "image": DOGS},
        {"image_id": 7, "question": "Say more."},
        {"image_id": 7, "question": "And more.", "image_path": "other.jpg"},
    ]
    write_lines(coco(tmp_path) / "obj_halbench_300_with_image.jsonl", rows)
    task = find_task("objhal", data=tmp_path)
    items = task.items()
    assert [item.truth["objects"] for item in items] == [["cat", "couch"], *[["dog", "person"]] * 3]
    assert items[0].media[0].ref.read() == b"cats"
    assert [item.media[0].ref.path for item in items[1:]] == [tmp_path.resolve() / n for n in (DOGS, DOGS, "other.jpg")]
    said = ["A cat sleeps on a sofa.", "two men and a bird", "dogs", ""]
    result = task.score(items, said)
    assert (result.score, result.measures["mention_rate"]) == (0.5, 0.25)
    assert result.measures["recall"] == pytest.approx(3 / 8), "cat, couch and person of four times two"
    assert find_task("objhal", data=tmp_path / "obj_halbench_300_with_image.jsonl").items() == items


@pytest.mark.parametrize(
    ("change", "fault", "field"),
    [
        ({"image_id": 9}, "unequal-counts", "image_id"),
        ({"image_id": None}, "wrong-type", "image_id"),
        ({"question": 3}, "wrong-type", "question"),
        ({"image": "no picture!"}, "bad-image", "image"),
        ({"image": "../secret.jpg"}, "outside-root", "image"),
        ({"image_path": "http://a/b.jpg"}, "remote-media", "image_path"),
    ],
)
def test_a_bad_row_of_object_halbench_has_its_place(
    tmp_path: Path, change: dict[str, Any], fault: str, field: str
) -> None:
    row = {"image_id": 42, "question": "Describe it."}
    file = write_lines(coco(tmp_path) / "obj_halbench.jsonl", [row, row | change])
    error = fault_of("objhal", tmp_path)
    assert (error.fault, error.row, error.field, error.file) == (fault, 2, field, str(file))


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
        ConfigError, match=r"rated by a judge, and none is given.*run's folder.*endpoint.*scenes\.mmhal"
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
