"""Rows of every format become the same turns; files, shards, tables and mixtures. About 3 s."""

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
from source_rows import ASKED, faults, llava, messages, png, shown, wrote

from quintet.data.sources import FORMATS, Mix, Source, Vqa, detect, open_source
from quintet.errors import ConfigError, DataError


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


# ---- telling the format ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("content", [b"hello", b"[1, 2]", b'{"a": 1}', b"\x1f\x8b123", b'{"a": 1}\n{"a": 2}\n', b"{"])
def test_a_file_of_no_known_format_is_refused_with_what_was_tried(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_source(path)
    assert caught.value.fault == "unknown-format"
    assert all(name in str(caught.value) for name in FORMATS)


@pytest.mark.parametrize("content", [b"", b" \n", b"[]", b"{ }\n"])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(DataError, match=f"there is {'no row' if content.strip() else 'nothing'} in it") as caught:
        open_source(tmp_path / "data")
    assert caught.value.fault == "empty-file"


def test_a_table_of_commas_is_told_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("image,question,answer\na.png,What?,This.\n")
    with pytest.raises(DataError, match=r"kind \.csv is not read; write its rows as JSON lines") as caught:
        open_source(tmp_path / "data.csv")
    assert caught.value.fault == "unknown-format"


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
