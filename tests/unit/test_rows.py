"""Converting, filtering, mixing: what is written reads back as what was read, and nothing is lost in silence."""

import json
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from quintet.data.sources import Mix, Reading, Source, open_source
from quintet.errors import ConfigError, DataError
from quintet.lab.rows import Rules, row_of, write_rows
from quintet.lab.sheet import pick, write_sheet
from quintet.values import Media, Origin, Part, Ref, Region, Text, Turn


def said(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures and a file of six rows: two good, one without its picture, one empty, one broken, one twice."""
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (20 + i, 16), colour).save(tmp_path / f"{i}.png")
    rows: list[Any] = [
        {"id": "a", "image": "0.png", "conversations": said("<image>\nWhich colour is it?", "It is red.")},
        {"id": "b", "image": ["1.png", "2.png"], "conversations": said("<image>\n<image>\nAnd these?", "Green, blue.")},
        {"id": "c", "image": "gone.png", "conversations": said("<image>\nWhat is it?", "I do not know.")},
        {"id": "d", "conversations": said("Why?", "")},
        {"id": "e", "conversations": "Why?"},
        {"id": "f", "image": "0.png", "conversations": said("<image>\nWhich colour is it?", "It is red.")},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def turns(source: Source, rows: Iterable[int] | None = None) -> list[list[tuple[str, float, list[Any]]]]:
    """What rows say (all by default), pictures as their bytes."""
    return [
        [
            (t.role, t.weight, [p.ref.read() if isinstance(p, Media) else p for p in t.parts])
            for t in source.read(i).turns
        ]
        for i in (range(len(source)) if rows is None else rows)
    ]


def dropped(path: Path) -> dict[int, str]:
    """Row → fault, of what was left out."""
    return {row["row"]: row["fault"] for row in map(json.loads, path.read_text().splitlines())}


def test_faulty_rows_are_left_out_and_listed_with_their_row_and_fault(folder: Path) -> None:
    source = open_source(folder / "rows.json")
    written = write_rows(source, folder / "out.jsonl")
    assert (written.read, written.kept) == (6, 4)
    assert dropped(folder / "out.dropped.jsonl") == {4: "empty-answer", 5: "wrong-type"}
    again = open_source(folder / "out.jsonl")
    assert [again.read(i).origin.id for i in range(len(again))] == ["a", "b", "c", "f"]
    assert not (folder / "out.media").exists()


def test_a_filter_drops_what_cannot_be_opened_and_what_breaks_its_rules(folder: Path) -> None:
    rules = Rules(min_answer=3, unique=True, checked=True)
    written = write_rows(open_source(folder / "rows.json"), folder / "out.jsonl", rules=rules)
    assert dropped(folder / "out.dropped.jsonl") == {
        2: "short-answer", 3: "missing-file", 4: "empty-answer", 5: "wrong-type", 6: "duplicate-row",
    }  # fmt: skip
    assert written.kept == 1


def test_rows_that_are_too_long_are_dropped_by_their_words(folder: Path) -> None:
    """By hand: row 1 has 4 + 3 words, row 2 has 2 + 2, row 3 has 3 + 4."""
    written = write_rows(open_source(folder / "rows.json"), folder / "out.jsonl", rules=Rules(max_words=6))
    assert written.dropped == {"long-row": 3, "empty-answer": 1, "wrong-type": 1}


def test_pictures_that_lie_elsewhere_come_along(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    source = open_source(folder / "rows.json")
    write_rows(source, place / "out.jsonl", rules=Rules(checked=True))
    again = open_source(place / "out.jsonl")
    assert turns(again) == turns(source, (0, 1, 5))
    assert len(list((place / "out.media").iterdir())) == 3  # row 6 has the picture of row 1


def test_pictures_of_a_shard_become_files(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "x.png")
    (tmp_path / "x.txt").write_text("A red square.")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("x.png", "x.txt"):
            tar.add(tmp_path / name, name)
    source = open_source(tmp_path / "0.tar")
    write_rows(source, tmp_path / "out.jsonl")
    assert turns(open_source(tmp_path / "out.jsonl")) == turns(source)


def test_a_mix_holds_the_shares_that_were_asked_for_and_ids_stay_unique(folder: Path) -> None:
    good = {"id": "z", "conversations": said("How much?", "Three of them.")}
    (folder / "one.json").write_text(json.dumps([good]))
    write_rows(open_source(folder / "rows.json"), folder / "good.jsonl", rules=Rules(checked=True))
    sources = [open_source(folder / "good.jsonl"), open_source(folder / "one.json")]
    written = write_rows(Mix.weighted(sources, weights=[1, 1], size=8), folder / "mix.jsonl")
    again = open_source(folder / "mix.jsonl")
    ids = [again.read(i).origin.id for i in range(len(again))]
    assert written.kept == 8
    assert sum(name.startswith("z") for name in ids) == 4
    assert len(set(ids)) == 8


def test_a_file_that_exists_is_not_written_over(folder: Path) -> None:
    source = open_source(folder / "rows.json")
    (folder / "out.jsonl").touch()
    with pytest.raises(ConfigError, match="name another file"):
        write_rows(source, folder / "out.jsonl")
    with pytest.raises(ConfigError, match=r"ending \.jsonl"):
        write_rows(source, folder / "out.json")


def test_no_file_is_left_where_no_row_is(folder: Path) -> None:
    with pytest.raises(DataError, match="none of 6 rows"):
        write_rows(open_source(folder / "rows.json"), folder / "out.jsonl", rules=Rules(min_answer=99))
    assert not (folder / "out.jsonl").exists()
    assert len(dropped(folder / "out.dropped.jsonl")) == 6
    assert not list(folder.glob(".*"))


def test_words_that_look_like_a_place_are_refused_and_not_written() -> None:
    turn = Turn("user", (Text("Write <image> here."),))
    with pytest.raises(DataError, match="would be read as a place"):
        row_of(Reading(Origin(), (turn, Turn("assistant", (Text("Why?"),)))), lambda ref: ref.name)


WORDS = st.text(alphabet="ab \n.é", min_size=1, max_size=8).filter(lambda t: t.strip(" \t") == t and t.strip())
PARTS = st.lists(
    st.one_of(
        WORDS.map(Text),
        st.sampled_from("xy").map(lambda n: Media("image", Ref(f"{n}.png", Path(f"{n}.png")))),
        st.sampled_from(
            [
                Region("points", (0.25, 0.5)),
                Region("box", (0.25, 0.5, 0.75, 1.0), phrase="a dog"),
                Region("points", (0.25, 0.5, 0.5, 0.75)),
                Region("mask", (0.25, 0.5, 0.5, 0.75, 0.0, 1.0)),
            ]
        ),
    ),
    min_size=1,
    max_size=6,
)


def joined(parts: list[Part]) -> tuple[Part, ...]:
    """Neighbouring words as one text, as every reader gives them."""
    made: list[Part] = []
    for part in parts:
        if made and isinstance(part, Text) and isinstance(made[-1], Text):
            made[-1] = Text(made[-1].text + part.text)
        else:
            made.append(part)
    return tuple(made)


@settings(deadline=None, max_examples=80)  # time says nothing here
@given(PARTS, WORDS, st.sampled_from([1.0, 0.0, 0.5]))
def test_what_is_written_reads_back_equal(parts: list[Part], answer: str, weight: float) -> None:
    """For every order of words, pictures and regions in a turn."""
    asked, told = joined(parts), Turn("assistant", (Text(answer),), weight)
    row = row_of(Reading(Origin(), (Turn("user", asked), told)), lambda ref: ref.name)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "rows.jsonl").write_text(json.dumps(row) + "\n")
        reading = open_source(Path(place) / "rows.jsonl").read(0)
    assert not reading.faults
    names = [p.ref.name if isinstance(p, Media) else p for p in reading.turns[0].parts]
    assert names == [p.ref.name if isinstance(p, Media) else p for p in asked]
    assert reading.turns[1] == told


# ---- looking -----------------------------------------------------------------------------------------------------
def test_rows_are_picked_from_the_front_from_a_row_or_by_lot(folder: Path) -> None:
    source = open_source(folder / "rows.json")
    assert pick(source, n=2) == [0, 1]
    assert pick(source, n=9, row=5) == [4, 5]
    assert pick(source, n=3, seed=1) == pick(source, n=3, seed=1)
    assert len(set(pick(source, n=99, seed=1))) == 6


def test_a_sheet_shows_pictures_words_and_faults(folder: Path) -> None:
    source = open_source(folder / "rows.json")
    html = write_sheet(source, range(6), folder / "sheet.html").read_text()
    assert html.count("<img") == 4
    assert "gone.png" in html
    assert "empty-answer" in html
    assert "Which colour is it?" in html
