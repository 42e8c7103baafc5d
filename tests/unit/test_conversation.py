"""What stands in a row of conversation, and every fault of it by file, row and field. About 1 s."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from source_rows import ASKED, faults, llava, messages, one, png, shown, wrote

from quintet.data.sources import open_source
from quintet.errors import DataError


# ---- what stands in a turn ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<image>\nWhat?", ["[a.png]", "What?"]),
        ("What?\n<image>", ["What?", "[a.png]"]),
        ("<image> What?", ["[a.png]", "What?"]),
        ("Look:\n<image>\nWhat?", ["Look:\n", "[a.png]", "What?"]),
        ("Is <image> red?", ["Is ", "[a.png]", " red?"]),
        ("<image>\n\nWhat?\n", ["[a.png]", "\nWhat?\n"]),
        ("<image>", ["[a.png]"]),
    ],
)
def test_a_picture_stands_where_its_placeholder_stood(tmp_path: Path, text: str, parts: list[str]) -> None:
    assert shown(one(tmp_path, llava(text)).sample(0))[0] == ("user", parts)


def test_several_pictures_keep_their_order_over_turns(tmp_path: Path) -> None:
    row = llava("<image>\n<image>\nWhich?", image=["1.png", "2.png", "3.png"])
    row["conversations"] += [{"from": "human", "value": "And <image>?"}, {"from": "gpt", "value": "No."}]
    turns = shown(one(tmp_path, row).sample(0))
    assert turns[0] == ("user", ["[1.png]", "[2.png]", "Which?"])
    assert turns[2] == ("user", ["And ", "[3.png]", "?"])


def test_a_system_turn_comes_first_from_either_place(tmp_path: Path) -> None:
    beside = llava(system="Be brief.")
    inside = llava()
    inside["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    for row in (beside, inside):
        assert shown(one(tmp_path, row).sample(0)) == [("system", ["Be brief."]), *ASKED]
    assert shown(one(tmp_path, llava(system="")).sample(0)) == ASKED
    assert faults(one(tmp_path, inside | {"system": "Be brief."})) == [("role-order", "conversations")]


def test_regions_take_the_places_of_their_tags(tmp_path: Path) -> None:
    row = llava("<image>\nWhat is in <region>?", "A cat at <region>.", regions=[[0, 0.25, 0.5, 1], [0.5, 0.5]])
    turns = shown(one(tmp_path, row).sample(0))
    assert turns[0][1] == ["[a.png]", "What is in ", "(0.0, 0.25, 0.5, 1.0)", "?"]
    assert turns[1][1] == ["A cat at ", "(0.5, 0.5)", "."]
    assert (
        shown(one(tmp_path, llava("<image>What does <region> mean?")).sample(0))[0][1][1] == "What does <region> mean?"
    )


def test_weights_of_turns_are_kept(tmp_path: Path) -> None:
    row = messages()
    row["messages"][1]["weight"] = 0
    row["messages"] += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes.", "loss": True}]
    assert [turn.weight for turn in one(tmp_path, row).sample(0).turns()] == [1, 0, 1, 1]


def test_a_data_uri_is_the_picture_itself(tmp_path: Path) -> None:
    uri = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    sample = one(
        tmp_path, messages([{"type": "image_url", "image_url": {"url": uri, "detail": "low"}}], images=None)
    ).sample(0)
    assert sample.media()[0].ref.read() == png()


# ---- faults ------------------------------------------------------------------------------------------------------
def changed(turn: int, **change: Any) -> dict[str, Any]:
    row = llava()
    row["conversations"][turn] |= change
    return row


FAULTS = {
    "a row that is no object": (7, "wrong-type", None),
    "neither conversations nor messages": ({"id": 1, "text": "x"}, "missing-key", None),
    "both": (llava() | messages(), "missing-key", None),
    "an empty conversation": ({"conversations": []}, "no-answer", "conversations"),
    "a conversation that is no list": ({"conversations": "hi"}, "wrong-type", "conversations"),
    "a turn that is no object": (llava(image=None, conversations=["hi"]), "wrong-type", "conversations[0]"),
    "no value": (changed(1, value=None), "missing-key", "conversations[1].value"),
    "no role": (changed(1, **{"from": None}), "missing-key", "conversations[1].from"),
    "a number as value": (changed(1, value=3), "wrong-type", "conversations[1].value"),
    "an unknown role": (changed(1, **{"from": "robot"}), "unknown-role", "conversations[1].from"),
    "a tool's role": (changed(1, **{"from": "function_call"}), "unsupported-role", "conversations[1].from"),
    "a role that is a list": (changed(1, **{"from": ["gpt"]}), "wrong-type", "conversations[1].from"),
    "roles out of order": (llava(conversations=llava()["conversations"][::-1]), "role-order", "conversations"),
    "no last answer": (llava(conversations=llava()["conversations"][:1]), "no-answer", "conversations"),
    "an empty answer": (changed(1, value=" \n"), "empty-answer", "conversations[1].value"),
    "an empty question": (llava("", image=None), "empty-question", "conversations[0].value"),
    "two places for one picture": (llava("<image><image>What?"), "image-count", "conversations"),
    "no place for a picture": (llava("What?"), "image-count", "conversations"),
    "a place without a picture": (llava(image=None), "image-count", "conversations"),
    "a picture in the answer": (llava("What?", "<image>This."), "image-place", "conversations[1].value"),
    "an unknown key": (llava(imagee="b.png"), "unknown-key", "imagee"),
    "an unknown key of a turn": (changed(1, mood="sad"), "unknown-key", "conversations[1].mood"),
    "a key that is not read": (llava(video="a.mp4"), "unsupported-key", "video"),
    "a number as picture": (llava(image=3), "wrong-type", "image"),
    "a number among the pictures": (llava("<image><image>?", image=["a.png", 3]), "wrong-type", "image[1]"),
    "an object of the wrong kind as picture": (llava(image={"uri": "a"}), "wrong-type", "image"),
    "an id that is a list": (llava(id=[1]), "wrong-type", "id"),
    "a path upwards": (llava(image="../a.png"), "outside-root", "image"),
    "an absolute path": (llava(image="/etc/passwd"), "outside-root", "image"),
    "the root itself": (llava(image="."), "outside-root", "image"),
    "an empty path": (llava(image=""), "bad-path", "image"),
    "a NUL in a path": (llava(image="a\0.png"), "bad-path", "image"),
    "an address": (llava(image="https://example.com/a.png"), "remote-media", "image"),
    "a file address": (llava(image="file:///etc/passwd"), "remote-media", "image"),
    "a data URI that is no picture": (llava(image="data:text/plain;base64,aGk="), "bad-data-uri", "image"),
    "a data URI that is no base64": (llava(image="data:image/png;base64,%%%"), "bad-data-uri", "image"),
    "a box outside the picture": (llava("<image><region>", regions=[[0, 0, 1, 1.5]]), "bad-region", "regions[0]"),
    "a box turned over": (llava("<image><region>", regions=[[0.5, 0, 0.2, 1]]), "bad-region", "regions[0]"),
    "a box of six numbers": (
        llava("<image><region>", regions=[{"box": [0, 0, 1, 1, 0, 1]}]),
        "wrong-type",
        "regions[0]",
    ),
    "a region of two kinds": (
        llava("<image><region>", regions=[{"box": [0, 0, 1, 1], "points": [0, 1]}]),
        "wrong-type",
        "regions[0]",
    ),
    "a phrase that is no text": (
        llava("<image><region>", regions=[{"box": [0, 0, 1, 1], "phrase": 3}]),
        "wrong-type",
        "regions[0]",
    ),
    "three numbers as region": (llava("<image><region>", regions=[[0, 0, 1]]), "wrong-type", "regions[0]"),
    "more regions than places": (llava(regions=[[0, 0, 1, 1]]), "region-count", "conversations"),
    "a part of another kind": (
        messages([{"type": "input_audio"}], images=None), "unsupported-part", "messages[0].content[0].type"
    ),
    "a negative weight": (changed(1, weight=-1), "wrong-type", "conversations[1].weight"),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_named_with_file_row_and_field(tmp_path: Path, what: str) -> None:
    row, fault, field = FAULTS[what]
    path = wrote(tmp_path, [llava(), row], "data.jsonl")
    source = open_source(path, format="llava")  # or a row of messages would be called a mixture
    source.sample(0)
    assert (fault, field) in faults(source, 1)
    with pytest.raises(DataError) as caught:
        source.sample(1)
    assert (caught.value.file, caught.value.row) == (str(path), 2)


@pytest.mark.parametrize(
    "what", [key for key in FAULTS if key not in ("roles out of order", "a picture in the answer")]
)
def test_one_mistake_is_reported_once(tmp_path: Path, what: str) -> None:
    """The two left out are two mistakes each: the order and the last answer, the place and the counts."""
    row, fault, _ = FAULTS[what]
    found = faults(one(tmp_path, row))
    assert len(found) == 1 or fault in ("unknown-role", "missing-key"), found


def test_all_faults_of_a_row_are_found_in_one_look(tmp_path: Path) -> None:
    row = llava("What?", "", image=["../a.png", "b.png"], extra=1, id=1.5)
    assert sorted(faults(one(tmp_path, row))) == [
        ("empty-answer", "conversations[1].value"),
        ("image-count", "conversations"),
        ("outside-root", "image[0]"),
        ("unknown-key", "extra"),
        ("wrong-type", "id"),
    ]


def test_half_a_surrogate_pair_is_refused_before_a_tokenizer_meets_it(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(llava(answer="\ud83d")) + "\n")
    assert faults(open_source(path)) == [("not-unicode", "conversations[1].value")]


def test_links_that_leave_the_root_are_refused_and_links_inside_are_not(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "out").symlink_to(outside)
    (root / "round").symlink_to(root / "round")
    (root / "in").symlink_to(root)
    path = wrote(root, [llava(image=f"{name}/a.png") for name in ("out", "in", "round", "x/../y")], "data.jsonl")
    source = open_source(path)
    assert faults(source, 0) == [("outside-root", "image")]
    assert source.sample(1).media()[0].ref.path == root.resolve() / "a.png"
    assert faults(source, 2) == []  # a loop is no file: `data check` and loading say missing-file
    assert source.sample(3).media()[0].ref.path == root.resolve() / "y/a.png"


def test_another_root_may_be_named(tmp_path: Path) -> None:
    path = wrote(tmp_path, [llava()])
    (tmp_path / "pictures").mkdir()
    sample = open_source(path, root=tmp_path / "pictures").sample(0)
    assert sample.media()[0].ref.path == (tmp_path / "pictures").resolve() / "a.png"


def test_notes_are_left_unread_only_if_known_marked_or_declared(tmp_path: Path) -> None:
    path = wrote(tmp_path, [llava(source="web", _mine=1, rating=5)])
    assert faults(open_source(path)) == [("unknown-key", "rating")]
    reading = open_source(path, extra=("rating",)).read(0)
    assert not reading.faults
    assert reading.ignored == ("_mine", "rating", "source")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"conversations": [', "invalid-json"),
        (b"", "invalid-json"),
        (b'{"conversations": [], "a": NaN}', "invalid-json"),
        (b'{"id": 1, "id": 2, "conversations": []}', "duplicate-key"),
        (b'{"conversations": "\xff"}', "not-utf8"),
        (b"[" * 100_000, "invalid-json"),
        (b"1" * 5_000, "invalid-json"),
    ],
)
def test_a_broken_line_is_a_faulty_row_and_the_others_stay_good(tmp_path: Path, line: bytes, fault: str) -> None:
    good = json.dumps(llava()).encode()
    path = tmp_path / "data.jsonl"
    path.write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    source = open_source(path)
    assert len(source) == 3
    assert [f for f, _ in faults(source, 1)] == [fault]
    assert not faults(source, 0) + faults(source, 2)


@pytest.mark.parametrize(
    ("harm", "fault", "where"),
    [
        (lambda whole: whole[:-3], "invalid-json", "byte"),
        (lambda whole: whole.replace(b"cat", b"c\xfft", 1), "not-utf8", "byte"),
        (lambda whole: whole + b"{}", "invalid-json", "after the end"),
        (lambda whole: b"[" + b"[" * 100_000, "invalid-json", "deeply"),
    ],
)
def test_a_broken_list_is_refused_whole_with_the_place(tmp_path: Path, harm: Any, fault: str, where: str) -> None:
    path = wrote(tmp_path, [llava(), llava()])
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DataError, match=where) as caught:
        open_source(path, format="llava")
    assert caught.value.fault == fault
    assert caught.value.file == str(path)
