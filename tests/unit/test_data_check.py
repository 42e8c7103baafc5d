"""`data check` finds every planted fault, and loses no row. About 2 s."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from quintet.cli.app import app
from quintet.data.check import Fault, check, is_late_image
from quintet.values import Media, Part, Ref, Text, Turn


def row(*said: str, **more: Any) -> dict[str, Any]:
    """A row of LLaVA whose turns are `said`; ids are made up unless given."""
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
    return {"id": f"row {said} {more}", "image": "good.png", "conversations": turns} | more


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data root with one good picture and four bad ones."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:50])
    (tmp_path / "page.jpg").write_text("<html>")
    Image.new("RGB", (8_001, 8_000)).save(tmp_path / "huge.png")
    return tmp_path


def lines(folder: Path, rows: list[Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(
        b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in rows) + b"\n"
    )
    return path


ASK, ANSWER = "<image>\nWhat is it?", "A red square."
PLANTED: dict[str, tuple[Any, str, str]] = {
    "empty answer": (row(ASK, " "), "empty-answer", "conversations[1].value"),
    "two places for one picture": (row("<image><image>What?", ANSWER), "image-count", "conversations"),
    "missing file": (row(ASK, ANSWER, image="none.png"), "missing-file", "image"),
    "wrong role order": (
        row(ASK, ANSWER, conversations=row(ASK, ANSWER)["conversations"][::-1]), "role-order", "conversations"
    ),
    "unknown role": (
        row(conversations=[{"from": "robot", "value": ASK}]), "unknown-role", "conversations[0].from"
    ),
    "unknown key": (row(ASK, ANSWER, imgae="x"), "unknown-key", "imgae"),
    "bytes that are not UTF-8": (json.dumps(row(ASK, ANSWER)).encode().replace(b"red", b"r\xe9d"), "not-utf8", ""),
    "broken JSON": (b'{"id": 1', "invalid-json", ""),
    "an id twice": (row(ASK, ANSWER, id="first"), "duplicate-id", "id"),
    "picture after its question": (row("What colour is the car?", "Red.", ASK, ANSWER), "late-image", "conversations"),
    "fewer places than pictures": (row(ASK, ANSWER, image=["good.png", "good.png"]), "image-count", "conversations"),
    "a number as picture": (row(ASK, ANSWER, image=3), "wrong-type", "image"),
    "no conversations": ({"id": "none"}, "missing-key", ""),
    "a box outside the picture": (row("<image><region>?", ANSWER, regions=[[0, 0, 2, 1]]), "bad-region", "regions[0]"),
    "a path out of the root": (row(ASK, ANSWER, image="../../etc/passwd"), "outside-root", "image"),
    "zero bytes": (row(ASK, ANSWER, image="empty.png"), "empty-file", "image"),
    "a picture cut short": (row(ASK, ANSWER, image="cut.png"), "corrupt-media", "image"),
    "a page instead of a picture": (row(ASK, ANSWER, image="page.jpg"), "unsupported-format", "image"),
    "a bomb": (row(ASK, ANSWER, image="huge.png"), "too-large", "image"),
    "no last answer": (row(ASK), "no-answer", "conversations"),
}  # fmt: skip


def test_every_planted_fault_is_found_in_its_row_and_field(folder: Path) -> None:
    rows = [row(ASK, ANSWER, id="first"), *(planted for planted, _, _ in PLANTED.values()), row(ASK, ANSWER, id="last")]
    report = check(lines(folder, rows))
    found = {(fault.row, fault.fault, fault.field) for fault in report.faults}
    for n, (what, (_, fault, field)) in enumerate(PLANTED.items()):
        assert (n + 2, fault, field) in found, what
    assert {fault.row for fault in report.faults} == set(range(2, len(PLANTED) + 2))
    assert (report.rows, report.faulty, report.good) == (len(PLANTED) + 2, len(PLANTED), 2)


def test_a_good_file_has_no_fault(folder: Path) -> None:
    report = check(lines(folder, [row(ASK, ANSWER, id=n, source="mine") for n in range(5)]))
    assert report.faults == []
    assert (report.rows, report.good, report.media) == (5, 5, 1)
    assert report.ignored == {"source": 5}
    assert report.sources == {str(folder / "data.jsonl"): 5}


def test_without_media_no_picture_is_opened_but_missing_ones_are_found(folder: Path) -> None:
    names = ["good.png", "cut.png", "none.png"]
    report = check(lines(folder, [row(ASK, ANSWER, image=name) for name in names]), media=False)
    assert [(fault.row, fault.fault) for fault in report.faults] == [(3, "missing-file")]


def test_a_bad_picture_hurts_every_row_that_shows_it(folder: Path) -> None:
    report = check(lines(folder, [row(ASK, ANSWER, image="cut.png", id=n) for n in range(3)]))
    assert [fault.row for fault in report.faults] == [1, 2, 3]
    assert report.media == 1


def test_rows_without_a_picture_among_others_are_told(folder: Path) -> None:
    plain = {"id": "plain", "conversations": row("What is red?", "A colour.")["conversations"]}
    path = lines(folder, [row(ASK, ANSWER), plain])
    report = check(path)
    assert not report.faults
    assert [origin.row for origin in report.without] == [2]
    told = CliRunner().invoke(app, ["data", "check", str(path)])
    assert f"good rows without a picture: 1 of 2; the first: {path}, row 2\n" in told.output
    # Where all are, it is what the file is.
    assert "without a picture" not in CliRunner().invoke(app, ["data", "check", str(lines(folder, [plain]))]).output


def test_ids_are_compared_over_shards(tmp_path: Path) -> None:
    for shard in "ab":
        (tmp_path / "0.txt").write_text("words")
        Image.new("RGB", (2, 2)).save(tmp_path / "0.png")
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            tar.add(tmp_path / "0.png", "0.png")
            tar.add(tmp_path / "0.txt", "0.txt")
    report = check(tmp_path)
    assert [(fault.fault, fault.row, fault.file) for fault in report.faults] == [
        ("duplicate-id", 1, str(tmp_path / "b.tar"))
    ]
    assert report.sources == {str(tmp_path / "a.tar"): 1, str(tmp_path / "b.tar"): 1}


def test_a_file_that_cannot_be_opened_has_one_fault_that_refuses_it(folder: Path) -> None:
    path = folder / "data.json"
    path.write_text(json.dumps([row(ASK, ANSWER)])[:-5])
    report = check(path)
    assert report.rows == 0
    assert [fault.fault for fault in report.faults] == ["invalid-json"]
    assert check(folder / "none.json").faults == [
        Fault(None, "", "missing-file", "no such file", str(folder / "none.json"))
    ]


def test_annotations_without_a_question_are_reported_beside_the_rows(folder: Path) -> None:
    (folder / "questions.json").write_text('{"data_subtype": "x", "questions": []}')
    (folder / "annotations.json").write_text('{"annotations": [{"question_id": 1}]}')
    report = check(folder / "questions.json")
    assert (report.rows, report.faulty) == (0, 0)
    assert [(fault.fault, fault.file) for fault in report.faults] == [
        ("unequal-counts", str(folder / "annotations.json"))
    ]


def test_limit_and_progress_count_rows(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = lines(folder, [row(ASK, ANSWER, id=n) for n in range(5)])
    report = check(path, limit=3, progress=lambda done, total: seen.append((done, total)))
    assert report.rows == 3
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_report_is_plain_data(folder: Path) -> None:
    report = check(lines(folder, [row(ASK, ""), row(ASK, ANSWER)])).to_json()
    assert json.loads(json.dumps(report)) == report
    assert report["rows"] == 2
    assert report["counts"] == {"empty-answer": 1}
    assert report["faults"] == [
        {
            "row": 1,
            "field": "conversations[1].value",
            "fault": "empty-answer",
            "message": "the answer is empty; write one or delete the row",
            "file": str(folder / "data.jsonl"),
        }
    ]


PICTURE = "[picture]"


def talk(*said: str) -> tuple[Turn, ...]:
    def parts(text: str) -> tuple[Part, ...]:
        words = text.removeprefix(PICTURE)
        return (*((Media("image", Ref("a")),) if words != text else ()), *((Text(words),) if words else ()))

    return tuple(Turn(("user", "assistant")[i % 2], parts(text)) for i, text in enumerate(said))


@pytest.mark.parametrize(
    "said",
    [
        ("What colour is the car?", "Red.", PICTURE, "Yes."),
        ("Describe the image.", "A cat.", f"{PICTURE}And now?", "A dog."),
        ("How many dogs are there?", "Two.", "Sure?", "Yes.", f"{PICTURE}Look.", "Three."),
    ],
)
def test_a_picture_after_the_answer_that_needs_it_is_late(said: tuple[str, ...]) -> None:
    assert is_late_image(talk(*said))


@pytest.mark.parametrize(
    "said",
    [
        (f"{PICTURE}What is it?", "A cat."),
        ("Hello! How are you?", "Fine.", f"{PICTURE}What is it?", "A cat."),
        ("Hi.", "Hello.", f"{PICTURE}What is it?", "A cat."),
        ("Can I ask something?", "Yes.", f"{PICTURE}What is it?", "A cat."),
        (f"{PICTURE}What is it?", "A cat.", f"{PICTURE}And what is in this picture?", "A dog."),
        ("What is the capital of France?", "Paris.", "And of Spain?", "Madrid."),
    ],
)
def test_small_talk_second_pictures_and_plain_text_are_not_late(said: tuple[str, ...]) -> None:
    assert not is_late_image(talk(*said))
