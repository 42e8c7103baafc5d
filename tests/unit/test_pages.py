"""Interleaved documents in two published layouts: what is taken, what is left out, and every fault by its place."""

import hashlib
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from conftest import picture
from quintet.cli.app import app
from quintet.data.check import check
from quintet.data.sources import Mix, Pages, Source, detect, open_source
from quintet.data.sources.pages import address_name
from quintet.errors import ConfigError, DataError
from quintet.evaluation.tasks.conversations import conversations_task
from quintet.lab.rows import write_rows
from quintet.values import Media, Text

URL = "https://example.com/pictures/cat.jpg?size=2"


def saved(folder: Path, *names: str) -> Path:
    """Pictures of these names in the folder."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, height=16, width=16).save(folder / name, "PNG")
    return folder


def info(name: str, index: Any, similarity: float = 0.3, **more: Any) -> dict[str, Any]:
    return {"image_name": name, "raw_url": f"http://x/{name}", "matched_text_index": index, "matched_sim": similarity,
            "face_detections": None} | more  # fmt: skip


def mmc4(**more: Any) -> dict[str, Any]:
    """A page in MMC4's layout, with all of its published keys."""
    infos = [info("b.png", 2, 0.2), info("a.png", 0)]
    row = {"url": "http://x", "text_list": ["One.", "Two.", " Three. "], "image_info": infos}
    return row | {"similarity_matrix": [[0.1, 0.1, 0.2], [0.3, 0.1, 0.1]], "could_have_url_duplicate": 0} | more


def obelics(**more: Any) -> dict[str, Any]:
    """The same page in OBELICS' layout."""
    row = {"images": ["a.png", None, "b.png", None], "texts": [None, "One. Two.", None, "Three."]}
    return row | {"metadata": "[null]", "general_metadata": "{}"} | more


def lines(folder: Path, *rows: Any, name: str = "pages.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def shown(source: Source, row: int = 0) -> list[str]:
    """The parts of a document; a picture is its name in brackets."""
    [turn] = source.sample(row).turns()
    assert turn.role == "document"
    return [part.text if isinstance(part, Text) else f"[{part.ref.name}]" for part in turn.parts
            if isinstance(part, Text | Media)]  # fmt: skip


PAGE = ["[a.png]", "One. Two.", "[b.png]", "Three."]


# ---- layouts -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("format", "row"), [("mmc4", mmc4()), ("obelics", obelics())])
def test_a_page_is_read_alike_from_both_layouts(tmp_path: Path, format: str, row: dict[str, Any]) -> None:
    path = lines(saved(tmp_path, "a.png", "b.png"), row, row)
    (tmp_path / "list.json").write_text(json.dumps([row, row], indent=1))
    for file in (path, tmp_path / "list.json"):
        assert detect(file) == format
        source = open_source(file)
        assert len(source) == 2
        assert shown(source, 1) == PAGE
        assert source.sample(1).origin.row == 2
        assert not source.read(0).faults
        assert not source.read(0).left_out


def test_mmc4_is_read_from_the_zip_that_it_is_published_in(tmp_path: Path) -> None:
    path = lines(saved(tmp_path, "a.png", "b.png"), mmc4(), mmc4(text_list=["1", "2", "3"]))
    with zipfile.ZipFile(tmp_path / "shard_0.jsonl.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(path, "shard_0.jsonl")
    source = open_source(tmp_path / "shard_0.jsonl.zip")
    assert len(source) == 2
    again = pickle.loads(pickle.dumps(source))
    assert shown(again, 1) == ["[a.png]", "1 2", "[b.png]", "3"]
    assert len(pickle.dumps(source)) < 2000, "the text itself does not travel"


def test_obelics_is_read_from_parquet_with_names_or_with_bytes(tmp_path: Path) -> None:
    saved(tmp_path, "a.png", "b.png")
    named = obelics()
    data = (tmp_path / "a.png").read_bytes()
    packed = obelics(images=[{"bytes": data, "path": "x.png"}, None, {"bytes": None, "path": "b.png"}, None])
    for row, first in ((named, "a.png"), (packed, "x.png")):
        pq.write_table(pa.Table.from_pylist([row] * 5), tmp_path / "t.parquet", row_group_size=2)
        source = pickle.loads(pickle.dumps(open_source(tmp_path / "t.parquet")))
        assert shown(source, 4) == [f"[{first}]", *PAGE[1:]]
        assert source.sample(4).media()[0].ref.read() == data


def test_pictures_lie_by_name_or_by_the_hash_of_their_address(tmp_path: Path) -> None:
    hashed = f"{address_name(URL)}.jpg"
    assert hashed.startswith(hashlib.sha256(URL.encode()).hexdigest())
    saved(tmp_path, "by/a.png", hashed)
    row = mmc4(image_info=[info("by/a.png", 0), info("gone.png", 1, raw_url=URL)])
    assert shown(open_source(lines(tmp_path, row))) == ["[by/a.png]", "One.", f"[{hashed}]", "Two. Three."]
    assert shown(open_source(lines(tmp_path, obelics(images=[URL, None, "by/a.png", None]))))[0] == f"[{hashed}]"
    elsewhere = tmp_path / "rows"
    elsewhere.mkdir()
    assert len(open_source(lines(elsewhere, row), root=tmp_path).sample(0).media()) == 2


def test_consecutive_texts_of_obelics_are_paragraphs(tmp_path: Path) -> None:
    row = {"images": [None, None], "texts": ["One.", "Two."]}
    assert shown(open_source(lines(tmp_path, row))) == ["One.\n\nTwo."]


# ---- rules -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pages", "parts", "left_out"),
    [
        (Pages(similarity=0.24), ["[a.png]", "One. Two. Three."], ("low-similarity",)),
        (Pages(similarity=0.2), PAGE, ()),
        (Pages(pictures=1), ["[a.png]", "One. Two. Three."], ("too-many",)),
        (Pages(words=2), ["[a.png]", "One. Two."], ()),
        (Pages(place="after"), ["One.", "[a.png]", "Two. Three.", "[b.png]"], ()),
        (Pages(least=2), PAGE, ()),
    ],
)
def test_what_is_taken_of_a_page(tmp_path: Path, pages: Pages, parts: list[str], left_out: tuple[str, ...]) -> None:
    source = open_source(lines(saved(tmp_path, "a.png", "b.png"), mmc4()), pages=pages)
    assert shown(source) == parts
    assert source.read(0).left_out == left_out


def test_a_picture_that_is_missing_is_left_out_or_its_page_is_refused(tmp_path: Path) -> None:
    path = lines(saved(tmp_path, "a.png"), mmc4(), obelics())
    for row in (0, 1):
        leave, refuse = (
            open_source(path, format="mmc4"),
            open_source(path, format="mmc4", pages=Pages(missing="refuse")),
        )
        assert [part for part in shown(leave, row) if part.startswith("[")] == ["[a.png]"]
        assert leave.read(row).left_out == ("missing-file",)
        with pytest.raises(DataError, match="not under") as caught:
            refuse.sample(row)
        assert (caught.value.fault, caught.value.row) == ("missing-file", row + 1)
        assert caught.value.field == ("image_info[0].image_name", "images[2]")[row]


def test_a_page_with_fewer_pictures_than_asked_for_is_refused_with_the_reason(tmp_path: Path) -> None:
    source = open_source(lines(saved(tmp_path, "a.png"), mmc4()), pages=Pages(least=2, similarity=0.24))
    with pytest.raises(DataError, match=r"1 pictures are left, 2 are asked for.*low-similarity"):
        source.sample(0)


@pytest.mark.parametrize("wrong", [{"pictures": 0}, {"least": -1}, {"least": 3, "pictures": 2}, {"words": 0}])
def test_rules_that_nothing_can_keep_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Pages(**wrong)


# ---- faults ------------------------------------------------------------------------------------------------------
FAULTS: dict[str, tuple[Any, str, str | None]] = {
    "no object": (3, "wrong-type", None),
    "neither layout": ({"a": 1}, "missing-key", None),
    "both layouts": (mmc4() | obelics(), "missing-key", None),
    "no sentences": (mmc4(text_list=None), "missing-key", "text_list"),
    "sentences that are no list": (mmc4(text_list="One."), "wrong-type", "text_list"),
    "a sentence that is no text": (mmc4(text_list=["One.", 2, "Three."]), "wrong-type", "text_list[1]"),
    "half a character": (mmc4(text_list=["One.", "\ud83d", "3"]), "not-unicode", "text_list[1]"),
    "no words": (mmc4(text_list=["", " ", ""]), "empty-text", None),
    "pictures that are no list": (mmc4(image_info={}), "wrong-type", "image_info"),
    "a picture that is no object": (mmc4(image_info=["a.png"]), "wrong-type", "image_info[0]"),
    "no index": (mmc4(image_info=[info("a.png", None)]), "missing-key", "image_info[0].matched_text_index"),
    "an index that is text": (mmc4(image_info=[info("a.png", "0")]), "wrong-type", "image_info[0].matched_text_index"),
    "an index out of range": (mmc4(image_info=[info("a.png", 3)]), "bad-index", "image_info[0].matched_text_index"),
    "a negative index": (mmc4(image_info=[info("a.png", -1)]), "bad-index", "image_info[0].matched_text_index"),
    "a similarity that is text": (
        mmc4(image_info=[info("a.png", 0, matched_sim="high")]), "wrong-type", "image_info[0].matched_sim"
    ),
    "no name and no address": (
        mmc4(image_info=[{"matched_text_index": 0, "matched_sim": 1}]), "missing-key", "image_info[0].image_name"
    ),
    "a name outside the root": (mmc4(image_info=[info("../a.png", 0)]), "outside-root", "image_info[0].image_name"),
    "an address as a name": (mmc4(image_info=[info(URL, 0)]), "remote-media", "image_info[0].image_name"),
    "an address that is no text": (
        mmc4(image_info=[info("a.png", 0, raw_url=3)]), "wrong-type", "image_info[0].raw_url"
    ),
    "an unknown key": (mmc4(text_lists=[]), "unknown-key", "text_lists"),
    "an unknown key of a picture": (mmc4(image_info=[info("a.png", 0, sim=1)]), "unknown-key", "image_info[0].sim"),
    "a key that is not read": (mmc4(video="a.mp4"), "unsupported-key", "video"),
    "lists of two lengths": (obelics(texts=["One."]), "unequal-counts", "texts"),
    "no images": (obelics(images=None), "missing-key", "images"),
    "both at one position": (
        obelics(images=["a.png", None], texts=["One.", "Two."]), "text-or-image", "texts[0]"
    ),
    "neither at one position": (obelics(images=[None, None], texts=["One.", None]), "text-or-image", "texts[1]"),
    "a picture that is a number": (obelics(images=[3, None], texts=[None, "Two."]), "wrong-type", "images[0]"),
    "a path outside the root": (
        obelics(images=["/etc/passwd", None], texts=[None, "Two."]), "outside-root", "images[0]"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_named_once_with_file_row_and_field(tmp_path: Path, what: str) -> None:
    row, fault, field = FAULTS[what]
    path = lines(saved(tmp_path, "a.png", "b.png"), mmc4(), row)
    report = check(path, format="mmc4")
    assert [(f.file, f.row, f.fault, f.field or None) for f in report.faults] == [(str(path), 2, fault, field)]
    assert (report.rows, report.good) == (2, 1)


def test_all_faults_of_a_page_are_found_in_one_look_also_behind_a_limit(tmp_path: Path) -> None:
    row = mmc4(text_list=["One two three.", 2], image_info=[info("a.png", 5), info("b.png", None)], mood=1)
    source = open_source(lines(tmp_path, row), pages=Pages(words=1))
    assert [f.field for f in source.read(0).faults] == [
        "mood", "text_list[1]", "image_info[0].matched_text_index", "image_info[1].matched_text_index",
    ]  # fmt: skip


def test_data_check_counts_what_rules_left_out_and_says_so(tmp_path: Path) -> None:
    path = lines(saved(tmp_path, "a.png"), mmc4(), mmc4(), obelics(images=[None], texts=["One."]))
    report = check(path, format="mmc4")
    assert report.left_out == {"missing-file": 2}
    assert not report.faults
    assert report.media == 1
    said = CliRunner().invoke(app, ["data", "check", str(path), "--format", "mmc4"])
    assert said.exit_code == 0, said.output
    assert "pictures left out of their documents: 2 missing-file" in said.output


@pytest.mark.parametrize("harm", ["broken", "two files", "conversations", "locked"])
def test_a_zip_that_holds_no_pages_is_refused(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "a.zip"
    row = json.dumps({"conversations": []} if harm == "conversations" else mmc4())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("a.jsonl", "b.jsonl")[: 2 if harm == "two files" else 1]:
            packed.writestr(name, row)
    if harm == "broken":
        path.write_bytes(path.read_bytes()[:-30])
    if harm == "locked":
        data = bytearray(path.read_bytes())
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.index(mark) + offset] |= 1  # encrypted
        path.write_bytes(bytes(data))
    with pytest.raises(DataError) as caught:
        open_source(path)
    assert caught.value.fault == ("corrupt-archive" if harm in ("broken", "locked") else "unknown-format")


def test_pages_and_conversations_do_not_share_a_file(tmp_path: Path) -> None:
    said = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi."}]}
    with pytest.raises(DataError, match="1 of llava, 1 of mmc4"):
        open_source(lines(tmp_path, mmc4(), said))


@pytest.mark.parametrize(("row", "joint"), [(mmc4(), " "), (obelics(), "\n\n")])
def test_pages_are_written_as_they_were_taken_and_read_back_equal(tmp_path: Path, row: Any, joint: str) -> None:
    last = {"images": [None, "a.png"], "texts": ["One.", None]}
    path = lines(saved(tmp_path, "a.png", "b.png"), row, last)
    written = write_rows(open_source(path, format="mmc4", pages=Pages(pictures=1)), tmp_path / "out.jsonl")
    assert written.kept == 2
    again = open_source(tmp_path / "out.jsonl")
    assert (shown(again), shown(again, 1)) == (["[a.png]", f"One. Two.{joint}Three."], ["One.", "[a.png]"])


def test_what_would_be_two_layouts_in_one_file_is_dropped_with_that_reason(tmp_path: Path) -> None:
    said = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi."}]}
    pages, talk = lines(saved(tmp_path, "a.png", "b.png"), mmc4()), lines(tmp_path, said, name="talk.jsonl")
    written = write_rows(Mix([open_source(pages), open_source(talk)], sizes=[1, 1]), tmp_path / "out.jsonl")
    assert (written.kept, written.dropped) == (1, {"mixed-layouts": 1})


def test_documents_ask_nothing(tmp_path: Path) -> None:
    source = open_source(lines(saved(tmp_path, "a.png", "b.png"), mmc4()))
    with pytest.raises(DataError, match="nothing to ask"):
        conversations_task(source).items()
