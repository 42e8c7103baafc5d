"""Rows of every format become the same turns; what is wrong is refused by file, row and field. About 4 s."""

import base64
import builtins
import io
import json
import pickle
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from quintet.data.sources import FORMATS, Mix, Source, Vqa, detect, open_source
from quintet.errors import ConfigError, DataError
from quintet.values import Media, Part, Region, Sample, Text


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return file.getvalue()


def llava(question: str = "<image>\nWhat is it?", answer: str = "A cat.", **more: Any) -> dict[str, Any]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "7", "image": "a.png", "conversations": said} | more


def messages(content: Any = "<image>What is it?", **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}]
    return {"messages": said, "images": ["a.png"]} | more


def wrote(folder: Path, rows: list[Any], name: str = "data.json") -> Path:
    path = folder / name
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    path.write_text(
        json.dumps(rows, ensure_ascii=False, indent=1) if name.endswith(".json") else lines, encoding="utf-8"
    )
    return path


def one(folder: Path, row: Any) -> Source:
    return open_source(wrote(folder, [row], "one.jsonl"), format="llava")


def shown(sample: Sample) -> list[tuple[str, list[str]]]:
    """Turns in short: text as it is, a picture as its name in brackets, a region as its numbers."""

    def short(part: Part) -> str:
        match part:
            case Text(text=text):
                return text
            case Media(ref=ref):
                return f"[{ref.name}]"
            case Region(points=points):
                return str(points)

    return [(turn.role, [short(part) for part in turn.parts]) for turn in sample.turns()]


def faults(source: Source, index: int = 0) -> list[tuple[str, str | None]]:
    return [(error.fault, error.field) for error in source.read(index).faults]


ASKED = [("user", ["[a.png]", "What is it?"]), ("assistant", ["A cat."])]


# ---- formats -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("llava", llava()),
        ("llava", llava(image=["a.png"])),
        ("sharegpt", llava(image=None, images=["a.png"])),
        ("messages", messages()),
        (
            "messages",
            messages(
                [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What is it?"}],
                images=None,
            ),
        ),
        (
            "messages",
            messages([{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}], images=None),
        ),
    ],
)
def test_one_question_reads_alike_in_every_dialect(tmp_path: Path, name: str, format: str, row: dict[str, Any]) -> None:
    path = wrote(tmp_path, [row, row, row], name)
    assert detect(path) == format
    source = open_source(path)
    assert len(source) == 3
    assert shown(source.sample(1)) == ASKED
    medium = source.sample(1).media()[0]
    assert medium.kind == "image"
    assert medium.ref.path == tmp_path.resolve() / "a.png"
    assert (source.sample(1).origin.file, source.sample(1).origin.row) == (str(path), 2)


def test_rows_are_found_by_byte_also_after_a_mark_and_wide_characters(tmp_path: Path) -> None:
    rows = [llava(answer="ß🙂" * n, id=n) for n in range(1, 30)]
    listed, lined = wrote(tmp_path, rows), wrote(tmp_path, rows, "data.jsonl")
    listed.write_bytes(b"\xef\xbb\xbf  " + listed.read_bytes() + b"\n\n")
    lined.write_bytes(b"\xef\xbb\xbf" + lined.read_bytes().replace(b"\n", b"\r\n") + b"\n \n")
    for path in (listed, lined):
        source = open_source(path)
        assert [source.sample(i).origin.id for i in range(len(source))] == [str(n) for n in range(1, 30)]
        assert shown(source.sample(28))[1][1] == ["ß🙂" * 29]


@pytest.mark.parametrize(
    "name", ["data.json", "data.jsonl", "shards", "data.parquet", "captions.json", "v2_questions.json"]
)
def test_a_source_travels_to_workers(tmp_path: Path, name: str) -> None:
    everything(tmp_path)
    source = open_source(tmp_path / name)
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == len(source) > 0
    assert copy.sample(0) == source.sample(0)


def everything(folder: Path) -> None:
    """One small set in every format."""
    wrote(folder, [llava()])
    wrote(folder, [llava()], "data.jsonl")
    (folder / "shards").mkdir()
    shard(folder / "shards" / "0.tar", {"a.png": png(), "a.txt": b"A cat."})
    table(folder / "data.parquet", [llava()])
    coco(folder / "captions.json")
    vqa(folder)


def shard(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def table(path: Path, rows: list[dict[str, Any]], *, group: int = 2) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def coco(path: Path, **changed: Any) -> Path:
    note = {"id": 5, "image_id": 1, "caption": "A cat. "} | changed
    data = {"images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}], "annotations": [note]}
    path.write_text(json.dumps(data, indent=2))
    return path


def vqa(folder: Path, question: Mapping[str, Any] | None = None, note: Mapping[str, Any] | None = None) -> Path:
    asked = {"question_id": 9, "image_id": 42, "question": "What is it?"} | dict(question or {})
    answers = [{"answer": "cat" if n else "dog", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    noted = {"question_id": 9, "image_id": 42, "multiple_choice_answer": "cat", "answers": answers}
    noted |= {"question_type": "what is", "answer_type": "other"} | dict(note or {})
    (folder / "v2_questions.json").write_text(json.dumps({"data_subtype": "val2014", "questions": [asked]}))
    (folder / "v2_annotations.json").write_text(json.dumps({"data_subtype": "val2014", "annotations": [noted]}))
    return folder / "v2_questions.json"


def test_captions_of_coco_are_one_row_each(tmp_path: Path) -> None:
    path = coco(tmp_path / "captions.json")
    assert detect(path) == "coco"
    sample = open_source(path).sample(0)
    assert shown(sample) == [("user", ["[a.png]"]), ("assistant", ["A cat."])]
    assert sample.origin.id == "5"


def test_vqa_joins_its_two_files_and_keeps_the_ten_answers(tmp_path: Path) -> None:
    (tmp_path / "val2014").mkdir()
    questions = vqa(tmp_path)
    for path in (questions, tmp_path / "v2_annotations.json"):
        assert detect(path) == "vqav2"
        source = open_source(path)
        assert isinstance(source, Vqa)
        image = "val2014/COCO_val2014_000000000042.jpg"
        assert shown(source.sample(0)) == [("user", [f"[{image}]", "What is it?"]), ("assistant", ["cat"])]
        truth = source.truth(0)
        assert truth.answers == ("dog", *("cat",) * 9)
        assert (truth.question_id, truth.question_type, truth.answer_type) == ("9", "what is", "other")


def test_vqa_files_are_found_by_their_published_names(tmp_path: Path) -> None:
    vqa(tmp_path)
    questions = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"
    annotations = tmp_path / "v2_mscoco_val2014_annotations.json"
    (tmp_path / "v2_questions.json").rename(questions)
    with pytest.raises(DataError, match="v2_mscoco_val2014_annotations"):
        open_source(questions)
    (tmp_path / "v2_annotations.json").rename(annotations)
    assert len(open_source(questions)) == len(open_source(annotations)) == 1


def test_vqa_questions_and_annotations_that_do_not_meet_are_reported(tmp_path: Path) -> None:
    source = open_source(vqa(tmp_path, note={"question_id": 10}))
    assert faults(source) == [("unequal-counts", "question_id")]
    assert [(error.fault, error.row) for error in source.loose] == [("unequal-counts", 1)]
    assert faults(open_source(vqa(tmp_path, note={"image_id": 3}))) == [("image-count", "image_id")]


# ---- shards ------------------------------------------------------------------------------------------------------
def test_shards_have_random_access_to_slices_of_the_file(tmp_path: Path) -> None:
    for n in range(2):
        members = {
            f"{n}{k}.{end}": content
            for k in range(3)
            for end, content in (
                ("png", png("red" if k else "blue")),
                ("txt", f"caption {n}{k}\n".encode()),
                ("json", b'{"status": "success", "width": 4}'),
            )
        }
        shard(tmp_path / f"{n}.tar", members)
    source = open_source(tmp_path)
    assert detect(tmp_path) == detect(tmp_path / "0.tar") == "webdataset"
    assert len(source) == 6
    sample = source.sample(4)
    assert shown(sample) == [("user", ["[11.png]"]), ("assistant", ["caption 11"])]
    assert (sample.origin.file, sample.origin.row, sample.origin.id) == (str(tmp_path / "1.tar"), 2, "11")
    assert sample.media()[0].ref.read() == png("red")
    assert source.read(4).ignored == ("status", "width")
    assert len(open_source(tmp_path / "0.tar")) == 3


def test_a_shard_may_hold_conversations_about_pictures_that_it_names(tmp_path: Path) -> None:
    row = llava("<image>\n<image>\nWhich is red?", image=["x/1.b.png", "a.png"])
    source = open_source(
        shard(tmp_path / "0.tar", {"1.a.png": png(), "1.b.png": png("blue"), "1.json": json.dumps(row).encode()})
    )
    assert shown(source.sample(0))[0] == ("user", ["[1.b.png]", "[1.a.png]", "Which is red?"])


def test_what_a_shard_lacks_is_reported(tmp_path: Path) -> None:
    members = {
        "0.png": png(),
        "0.txt": b" ",
        "1.txt": b"words",
        "2.png": png(),
        "3.png": png(),
        "3.txt": b"\xff",
        "4.png": png(),
        "4.txt": b"x",
        "4.npy": b"x",
        "5.json": b'{"status": "failed_to_download", "caption": "x"}',
        "6.png": png(),
        "6.json": b"[1]",
        "7.json": json.dumps(llava(image="other.png")).encode(),
        "7.a.png": png(),
        "7.b.png": png("blue"),
    }
    source = open_source(shard(tmp_path / "0.tar", members))
    assert [faults(source, i) for i in range(len(source))] == [
        [("empty-answer", "txt")],
        [("missing-file", "image")],
        [("missing-key", "caption")],
        [("not-utf8", "txt")],
        [("unknown-key", "npy")],
        [("missing-file", "status")],
        [("wrong-type", "json"), ("missing-key", "caption")],
        [("missing-file", "image"), ("image-count", "image")],
    ]


def test_a_link_in_a_shard_is_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        text = tarfile.TarInfo("0.txt")
        text.size = 1
        tar.addfile(text, io.BytesIO(b"x"))
    assert faults(open_source(tmp_path)) == [("invalid-tar", "png"), ("missing-file", "image")]


@pytest.mark.parametrize(
    "harm", ["cut in a header", "cut between members", "cut in a member", "broken header", "two archives"]
)
def test_a_shard_that_would_lose_samples_in_silence_is_refused(tmp_path: Path, harm: str) -> None:
    """A member takes 512 bytes of header and 512 of content; `tarfile` stops at a broken header without a word."""
    path = shard(tmp_path / "0.tar", {f"{n}.txt": b"words" for n in range(4)})
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut in a header": whole[: 2 * 1024 + 100],
            "cut between members": whole[: 2 * 1024],
            "cut in a member": whole[: 2 * 1024 + 600],
            "broken header": whole[:2048] + b"x" * 512 + whole[2560:],
            "two archives": whole + whole,
        }[harm]
    )
    with pytest.raises(DataError) as caught:
        open_source(path, format="webdataset")
    assert caught.value.fault == "invalid-tar"
    assert caught.value.file == str(path)


# ---- parquet -----------------------------------------------------------------------------------------------------
def test_parquet_holds_pictures_or_names_them(tmp_path: Path) -> None:
    rows = [llava(image={"bytes": png(), "path": "x.png"}, id=str(n)) for n in range(5)]
    source = open_source(table(tmp_path / "data.parquet", rows))
    assert detect(tmp_path / "data.parquet") == "parquet"
    assert [source.sample(i).origin.id for i in (4, 0, 3)] == ["4", "0", "3"]
    assert source.sample(2).media()[0].ref.read() == png()
    named = open_source(table(tmp_path / "named.parquet", [llava()]))
    assert shown(named.sample(0)) == ASKED
    text = {"conversations": json.dumps(llava()["conversations"]), "image": {"bytes": None, "path": "a.png"}}
    assert shown(open_source(table(tmp_path / "text.parquet", [text])).sample(0)) == ASKED


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "data.parquet", [llava()])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError) as caught:
        open_source(path)
    assert caught.value.fault == "invalid-parquet"


def test_without_pyarrow_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "data.parquet", [llava()])
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"quintet\[parquet\]"):
        open_source(path)


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


# ---- telling the format ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "content", [b"", b"hello", b"[1, 2]", b'{"a": 1}', b"\x1f\x8b123", b'{"a": 1}\n{"a": 2}\n', b"[]", b"{"]
)
def test_a_file_of_no_known_format_is_refused_with_what_was_tried(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_source(path)
    assert caught.value.fault == "unknown-format"
    assert all(name in str(caught.value) for name in FORMATS)


def test_rows_of_two_formats_in_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of llava, 1 of messages"):
        open_source(wrote(tmp_path, [llava(), messages()]))


def test_the_first_good_row_tells_the_format(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("broken\n" + json.dumps(messages()) + "\n")
    assert detect(path) == "messages"


def test_a_line_longer_than_a_megabyte_tells_its_format(tmp_path: Path) -> None:
    row = llava(image="data:image/png;base64," + "A" * (2**21))
    for name in ("data.json", "data.jsonl"):
        assert detect(wrote(tmp_path, [row, row], name)) == "llava"


def test_missing_files_and_unknown_formats_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_source(tmp_path / "none.json")
    with pytest.raises(DataError, match="folder without"):
        open_source(tmp_path)
    (tmp_path / "wide.json").write_text("[]", encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16"):
        open_source(tmp_path / "wide.json")
    with pytest.raises(ConfigError, match="did you mean 'llava'"):
        open_source(wrote(tmp_path, [llava()]), format="lava")


# ---- mixtures ----------------------------------------------------------------------------------------------------
def numbered(folder: Path, name: str, rows: int) -> Source:
    return open_source(wrote(folder, [llava(id=f"{name}{n}") for n in range(rows)], f"{name}.jsonl"))


def ids(mix: Mix) -> list[str]:
    return [mix.sample(i).origin.id for i in range(len(mix))]


def test_a_mix_repeats_evenly_and_chooses_without_repeats(tmp_path: Path) -> None:
    few, many = numbered(tmp_path, "few", 3), numbered(tmp_path, "many", 50)
    mix = Mix([few, many], sizes=[8, 20], seed=1)
    counts = Counter(ids(mix))
    assert mix.counts == {"few.jsonl": 8, "many.jsonl": 20}
    assert sorted(n for key, n in counts.items() if key.startswith("few")) == [2, 3, 3]
    assert sorted(n for key, n in counts.items() if key.startswith("many")) == [1] * 20
    assert len(mix) == 28
    kinds = "".join(key[0] for key in ids(mix))
    assert "f" in kinds[:14]
    assert "f" in kinds[14:]


def test_a_mix_is_the_same_again_and_another_with_another_seed(tmp_path: Path) -> None:
    sources = [numbered(tmp_path, "a", 10), numbered(tmp_path, "b", 10)]
    first = ids(Mix(sources, sizes=[10, 10], seed=3))
    assert first == ids(pickle.loads(pickle.dumps(Mix(sources, sizes=[10, 10], seed=3))))
    assert first != ids(Mix(sources, sizes=[10, 10], seed=4))


def test_weights_become_sizes_that_add_up(tmp_path: Path) -> None:
    """By hand: 1/3 and 2/3 of 20 are 6.67 and 13.33; the row that is left goes to the larger remainder."""
    sources = [numbered(tmp_path, "a", 10), numbered(tmp_path, "b", 10)]
    assert Mix.weighted(sources, weights=[1, 2]).sizes == (7, 13)
    assert Mix.weighted(sources, weights=[1, 0], size=5).sizes == (5, 0)


@pytest.mark.parametrize("wrong", [{"sizes": [1]}, {"sizes": [-1, 2]}])
def test_a_mix_of_wrong_sizes_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    sources = [numbered(tmp_path, "a", 2), numbered(tmp_path, "b", 2)]
    with pytest.raises(ConfigError):
        Mix(sources, **wrong)
    with pytest.raises(ConfigError):
        Mix.weighted(sources, weights=[0, 0])
