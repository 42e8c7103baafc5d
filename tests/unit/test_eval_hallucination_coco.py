"""CHAIR and Object HalBench from COCO's files in their published layouts, and faults with their places."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from source_rows import write, write_lines

from quintet.errors import DataError
from quintet.evaluation.run import Answer, evaluate
from quintet.evaluation.tasks.catalogue import find_task
from quintet.evaluation.tasks.coco_files import CHAIR_PROMPT
from quintet.values import Sample


def says(answers: dict[str, str]) -> Answer:
    """Answers by the name of the picture."""

    def answer(samples: list[Sample]) -> list[str]:
        return [answers[next(iter(sample.media())).ref.name] for sample in samples]

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
